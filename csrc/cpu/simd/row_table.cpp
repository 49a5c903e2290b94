// Selects the functions for the instruction set of this processor, once, at first use.
#include <cstdlib>
#include <cstring>

#include "head.h"
#include "rows.h"

namespace sedd {

namespace baseline {
extern const RowTable table;
extern const HeadFunctions head_table[2];
}  // namespace baseline
#if defined(SEDD_X86)
namespace avx2 {
extern const RowTable table;
extern const HeadFunctions head_table[2];
}  // namespace avx2
namespace avx512 {
extern const RowTable table;
extern const HeadFunctions head_table[2];
}  // namespace avx512
#if defined(SEDD_AVX512_BF16)  // the compiler knows it
namespace avx512_bf16 {
extern const RowFunctions bfloat16_rows;
}
#endif
#endif

namespace {

struct Choice {
  RowTable table;
  const HeadFunctions* head;
  const char* name;
};

#if defined(SEDD_X86)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

// The best instruction set, not above the one that SEDD_FAST_ISA names, if any (for tests and
// comparisons).
Choice choose() {
#if defined(SEDD_X86)
  __builtin_cpu_init();
  const char* limit = std::getenv("SEDD_FAST_ISA");
  const auto at_most = [&](const char* name) { return limit && !std::strcmp(limit, name); };
  if (at_most("baseline") || !has_avx2())
    return {baseline::table, baseline::head_table, "baseline"};
  // Every processor with AVX2 and FMA has F16C, which is compiled in, too.
  if (at_most("avx2") || !has_avx512()) return {avx2::table, avx2::head_table, "avx2"};
#if defined(SEDD_AVX512_BF16)
  if (!at_most("avx512") && __builtin_cpu_supports("avx512bf16")) {
    RowTable table = avx512::table;
    table.fast[static_cast<int>(DType::bfloat16)] = avx512_bf16::bfloat16_rows;
    return {table, avx512::head_table, "avx512_bf16"};
  }
#endif
  return {avx512::table, avx512::head_table, "avx512"};
#else
  return {baseline::table, baseline::head_table, "baseline"};
#endif
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

const RowTable& row_table() { return choice().table; }
const HeadFunctions& head_functions(DType dtype) { return choice().head[dtype == DType::float64]; }
const char* instruction_set() { return choice().name; }

}  // namespace sedd
