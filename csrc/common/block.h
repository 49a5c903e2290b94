// Sums and searches over the threads of a block.
//
// A Block is any type with thread(), threads() (a multiple of 32), sync(), and shuffle(value,
// lane), which all 32 threads of a warp call together. csrc/cuda/block.cuh defines the one for the
// GPU. The tests define one whose threads run on the host, so all code here is tested without a
// GPU.
#pragma once

#include "numbers.h"

namespace sedd {

constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;  // in a block

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

// Every lane gets the same bits: x + y and y + x round to the same number.
template <class Op, class Block, class V>
SEDD_HOST_DEVICE V warp_reduce(Block& block, V value) {
  for (int distance = kWarp / 2; distance; distance /= 2) {
    value = Op()(value, block.shuffle(value, lane(block) ^ distance));
  }
  return value;
}

// Every thread gets the same bits. `slots` has one entry per warp, which no thread may be reading;
// synchronises the block.
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

// Sum of values[0 .. n - 1]; every warp computes it separately.
template <class Block>
SEDD_HOST_DEVICE double warp_total(Block& block, const double* values, int n) {
  double sum = 0;
  SEDD_ROLLED
  for (int i = lane(block); i < n; i += kWarp) sum += values[i];
  return warp_reduce<Sum>(block, sum);
}

struct SearchResult {
  int index;     // -1 where no element has weight
  double share;  // fraction of its weight before the target, 0 to 1
};

// Inverse CDF by one warp: the first i of [0, n) at which the running sum of weight(i) exceeds
// `share` of the total. If rounding puts the target beyond the total, the result is the last i that
// has weight, with a share of 1.
//
// Each lane sums a run of neighbouring elements. A scan over the lanes finds the run that contains
// the target, and the lane of that run searches it.
template <class Block, class Weight>
SEDD_HOST_DEVICE SearchResult warp_search(Block& block, int n, double share, const Weight& weight) {
  const int run = (n + kWarp - 1) / kWarp;
  const int begin = lane(block) * run < n ? lane(block) * run : n;
  const int end = begin + run < n ? begin + run : n;
  double sum = 0;
  int last = -1;
  // A lane loads neighbouring elements one after the other; unrolling keeps four loads in flight.
  SEDD_UNROLL_4
  for (int i = begin; i < end; ++i) {
    const double w = weight(i);
    const bool counts = w > 0;
    sum += counts ? w : 0;
    last = counts ? i : last;
  }
  double through = sum;  // of this run and all runs before it
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
  SearchResult found{last, 1};
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
