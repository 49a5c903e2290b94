// Sums and searches over the threads of a block.
//
// A Block is anything with thread(), threads() (a multiple of 32), sync(), and shuffle(value,
// lane), which all 32 threads of a warp call together. csrc/cuda/block.cuh is the GPU's; the tests
// have one that runs its threads on the host, so that everything here is tested without a GPU.
#pragma once

#include "numbers.h"

namespace sedd {

constexpr int kWarp = 32;
constexpr int kWarps = 32;  // at most, in a block

template <class Block>
SEDD_HOST_DEVICE int lane(const Block& block) {
  return block.thread() % kWarp;
}
template <class Block>
SEDD_HOST_DEVICE int warp(const Block& block) {
  return block.thread() / kWarp;
}
template <class Block>
SEDD_HOST_DEVICE int warps(const Block& block) {
  return block.threads() / kWarp;
}

struct Sum {
  template <class V>
  SEDD_HOST_DEVICE V operator()(V a, V b) const {
    return a + b;
  }
};
struct Largest {
  template <class V>
  SEDD_HOST_DEVICE V operator()(V a, V b) const {
    return a < b ? b : a;
  }
};

// The same bits in every lane: x + y and y + x round alike.
template <class Op, class Block, class V>
SEDD_HOST_DEVICE V warp_reduce(Block& block, V value) {
  for (int distance = kWarp / 2; distance; distance /= 2) {
    value = Op()(value, block.shuffle(value, lane(block) ^ distance));
  }
  return value;
}

// The same bits in every thread. `slots` (one a warp) must not be in use; synchronises.
template <class Op, class Block>
SEDD_HOST_DEVICE double block_reduce(Block& block, double value, double* slots) {
  value = warp_reduce<Op>(block, value);
  if (lane(block) == 0) slots[warp(block)] = value;
  block.sync();
  double result = slots[0];
  SEDD_ROLLED
  for (int w = 1; w < warps(block); ++w) result = Op()(result, slots[w]);
  return result;
}

// Sum of values[0 .. n - 1], by every warp for itself.
template <class Block>
SEDD_HOST_DEVICE double warp_total(Block& block, const double* values, int n) {
  double sum = 0;
  SEDD_ROLLED
  for (int i = lane(block); i < n; i += kWarp) sum += values[i];
  return warp_reduce<Sum>(block, sum);
}

struct Found {
  int index;     // -1: nothing has weight
  double share;  // how far into its weight, 0 to 1
};

// The first i of [0, n) at which the running sum of weight(i) passes `share` of the total; the last
// that has weight if rounding leaves the target past all of them (its share is then 1).
//
// One warp: each lane sums a run of neighbours, a scan over lanes finds the run, its lane walks it.
template <class Block, class Weight>
SEDD_HOST_DEVICE Found warp_search(Block& block, int n, double share, const Weight& weight) {
  const int run = (n + kWarp - 1) / kWarp;
  const int begin = lane(block) * run < n ? lane(block) * run : n;
  const int end = begin + run < n ? begin + run : n;
  double sum = 0;
  int last = -1;
  // A lane's loads are of neighbours, one after the other: four of them wait together.
  SEDD_UNROLL_4
  for (int i = begin; i < end; ++i) {
    const double w = weight(i);
    const bool counts = w > 0;
    sum += counts ? w : 0;
    last = counts ? i : last;
  }
  double through = sum;  // of this run and all before it
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int from = lane(block) - distance;
    const double below = block.shuffle(through, from < 0 ? 0 : from);
    if (from >= 0) through += below;
  }
  const double before = block.shuffle(through, lane(block) ? lane(block) - 1 : 0);
  const double target = share * block.shuffle(through, kWarp - 1);
  const bool passes = last >= 0 && target < through;
  const int first = -warp_reduce<Largest>(block, passes ? -lane(block) : -kWarp);
  if (first == kWarp) return {warp_reduce<Largest>(block, last), 1};
  double residual = target - (lane(block) ? before : 0);
  Found found{last, 1};
  if (lane(block) == first) {
    SEDD_ROLLED
    for (int i = begin; i <= last; ++i) {
      const double w = weight(i);
      if (!(w > 0)) continue;
      if (residual < w) {
        found = {i, residual / w};
        break;
      }
      residual -= w;
    }
  }
  return {block.shuffle(found.index, first), block.shuffle(found.share, first)};
}

}  // namespace sedd
