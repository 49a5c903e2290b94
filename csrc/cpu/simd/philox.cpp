// fill_blocks of philox.h, some blocks in the lanes of a vector. Compiled once per instruction set
// (setup.py passes the flags and SEDD_ISA).
#include "philox.h"

#include "common/philox.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__SSE2__)

// GCC does not find the instruction that multiplies the lower halves of 64-bit lanes by itself.
struct VectorLanes {
#if defined(__AVX512F__)
  static constexpr int width = 8;
#elif defined(__AVX2__)
  static constexpr int width = 4;
#else
  static constexpr int width = 2;
#endif
  typedef uint64_t Word __attribute__((vector_size(8 * width)));
  typedef double Real __attribute__((vector_size(8 * width)));

  static inline Word product(Word x, uint32_t y) {
    const Word factor = Word{} + uint64_t{y};
#if defined(__AVX512F__)
    return (Word)_mm512_mul_epu32((__m512i)x, (__m512i)factor);
#elif defined(__AVX2__)
    return (Word)_mm256_mul_epu32((__m256i)x, (__m256i)factor);
#else
    return (Word)_mm_mul_epu32((__m128i)x, (__m128i)factor);
#endif
  }

  static inline Word from(uint64_t first) {  // first, first + 1, ...
    Word counters;
    for (int i = 0; i < width; ++i) counters[i] = first + i;
    return counters;
  }

  static inline void store(double* out, Real u0, Real u1) {
    for (int i = 0; i < width; ++i) {
      out[2 * i] = u0[i];
      out[2 * i + 1] = u1[i];
    }
  }
};

#else

struct VectorLanes : sedd::OneLane {
  static constexpr int width = 1;
  static inline Word from(uint64_t first) { return first; }
  static inline void store(double* out, Real u0, Real u1) {
    out[0] = u0;
    out[1] = u1;
  }
};

#endif

constexpr int kVectors = 2;  // in flight: a round waits for the product of the round before
constexpr int kGroup = kVectors * VectorLanes::width;

inline void fill_group(uint64_t key, uint64_t first, double* out) {
  sedd::Philox<VectorLanes> blocks[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    const uint64_t counter = first + v * VectorLanes::width;
    blocks[v] = sedd::Philox<VectorLanes>::at(VectorLanes::from(counter));
  }
  for (auto& block : blocks) block.encrypt(key);
  for (const auto& block : blocks) {
    VectorLanes::store(out, block.u0(), block.u1());
    out += 2 * VectorLanes::width;
  }
}

}  // namespace

void sedd::SEDD_ISA::fill_blocks(uint64_t key, uint64_t first, int64_t count, double* out) {
  int64_t done = 0;
  for (; done + kGroup <= count; done += kGroup) fill_group(key, first + done, out + 2 * done);
  if (done == count) return;
  double rest[2 * kGroup];
  fill_group(key, first + done, rest);
  memcpy(out + 2 * done, rest, 2 * (count - done) * sizeof(double));
}
