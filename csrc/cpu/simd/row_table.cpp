// Selects the row functions for the instruction set of this processor, once, at first use.
#include <cstdlib>
#include <cstring>

#include "rows.h"

namespace sedd {

namespace baseline {
extern const RowTable table;
}
#if defined(SEDD_X86)
namespace avx2 {
extern const RowTable table;
}
namespace avx512 {
extern const RowTable table;
}
#endif

namespace {

struct Choice {
  const RowTable* table;
  const char* name;
};

// SEDD_FAST_ISA=baseline or avx2 selects a smaller instruction set, for tests and comparisons.
Choice choose() {
#if defined(SEDD_X86)
  const char* limit = std::getenv("SEDD_FAST_ISA");
  const bool below_512 = limit && (!std::strcmp(limit, "avx2") || !std::strcmp(limit, "baseline"));
  const bool below_2 = limit && !std::strcmp(limit, "baseline");
  __builtin_cpu_init();
  if (!below_512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return {&avx512::table, "avx512"};
  }
  if (!below_2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return {&avx2::table, "avx2"};
  }
#endif
  return {&baseline::table, "baseline"};
}

const Choice& choice() {
  static const Choice chosen = choose();
  return chosen;
}

}  // namespace

const RowTable& row_table() { return *choice().table; }
const char* instruction_set() { return choice().name; }

}  // namespace sedd
