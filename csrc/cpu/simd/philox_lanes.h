// Uniform numbers of many blocks of Philox, one block a lane.
#pragma once

#include "common/philox.h"
#include "lanes.h"

namespace sedd {
namespace SEDD_ISA {
namespace {

struct PhiloxLanes {
  static constexpr int width = Lanes<double>::width;
  typedef Pack<width>::u64 Word;
  typedef Doubles Real;

  static SEDD_INLINE Word product(Word x, uint32_t y) {
    return lower_product(x, Word{} + uint64_t{y});
  }
};

constexpr int kVectors = 2;  // in flight: a round waits for the product of the round before
constexpr int kGroup = kVectors * PhiloxLanes::width;

SEDD_INLINE void fill_group(uint64_t key, uint64_t first, double* out) {
  constexpr int width = PhiloxLanes::width;
  PhiloxLanes::Word counters;
  for (int i = 0; i < width; ++i) counters[i] = first + i;
  Philox<PhiloxLanes> blocks[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    blocks[v] = Philox<PhiloxLanes>::at(counters + uint64_t(v) * width);
  }
  for (auto& block : blocks) block.encrypt(key);
  for (int v = 0; v < kVectors; ++v) {
    const Doubles u0 = blocks[v].u0(), u1 = blocks[v].u1();
    for (int i = 0; i < width; ++i) {
      out[2 * (v * width + i)] = u0[i];
      out[2 * (v * width + i) + 1] = u1[i];
    }
  }
}

inline void fill_uniforms(uint64_t key, uint64_t first, int64_t count, double* out) {
  int64_t done = 0;
  for (; done + kGroup <= count; done += kGroup) fill_group(key, first + done, out + 2 * done);
  if (done == count) return;
  double rest[2 * kGroup];
  fill_group(key, first + done, rest);
  memcpy(out + 2 * done, rest, 2 * (count - done) * sizeof(double));
}

}  // namespace
}  // namespace SEDD_ISA
}  // namespace sedd
