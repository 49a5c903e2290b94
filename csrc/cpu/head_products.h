// A cross entropy and the statistics of a denoising step straight from the operands of a linear
// head: every block of states is packed once, multiplied, and used for all that is wanted of it
// while it is in a cache. Every thread has states of its own, and sums over states are added up in
// the order of the threads at the end, so that results depend on the number of threads alone.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

#include "operations.h"
#include "parallel.h"
#include "simd/head.h"

namespace sedd {

// Bytes of a packed block of the weight: that many stay in the second cache beside its outputs.
inline constexpr int64_t kBlockBytes = int64_t{256} << 10;
// Rows whose outputs of a block are formed at a time, for the same reason; whole panels of any set.
inline constexpr int64_t kStripRows = 128;
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Numbers in C, on a boundary of cache lines.
class Numbers {
 public:
  Numbers(int64_t count, int64_t item) : memory_(new char[count * item + kLine]), item_(item) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
    data_ = memory_.get() + (kLine - address % kLine) % kLine;
  }
  char* at(int64_t index) const { return data_ + index * item_; }
  void zero(int64_t count) { std::fill_n(data_, count * item_, 0); }

 private:
  static constexpr int64_t kLine = 64;
  std::unique_ptr<char[]> memory_;
  int64_t item_;
  char* data_;
};

// Some neighbouring rows, padded.
struct Strip {
  int64_t begin, rows;
};

// What every thread reads: the head, and its hidden states as a right operand.
class Operands {
 public:
  explicit Operands(const LinearHead& head)
      : head(head),
        of(head_functions(head.dtype)),
        item(item_size(head.dtype)),
        rows(head.padded_rows()),
        width(rounded_up(head.width, of.panel)),
        block(head.block()),
        hidden_(rows * head.width, item) {
    for (int64_t begin = 0; begin < rows; begin += kStripRows) {
      strips.push_back({begin, std::min(kStripRows, rows - begin)});
    }
    of.pack_transposed(head.hidden, head.rows, head.width, hidden_.at(0));
  }

  int64_t blocks(int64_t states) const { return (states + block - 1) / block; }

  // Calls run(part, step) for the parts of the blocks of the first `states` states: a part has the
  // blocks part, part + step, and so on, because neighbouring ones may be cheaper than others.
  template <class Run>
  void for_parts(int64_t states, const Run& run) const {
    const int64_t parts = part_count(states), cost = states * head.rows;
    parallel_for(parts, cost, static_cast<int>(parts), [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) run(part, parts);
    });
  }
  int64_t part_count(int64_t states) const {
    return std::max<int64_t>(1, std::min<int64_t>(head.threads, blocks(states)));
  }

  const LinearHead& head;
  const HeadFunctions& of;
  const int64_t item, rows, width, block;
  std::vector<Strip> strips;
  const char* hidden(const Strip& strip) const { return hidden_.at(strip.begin * head.width); }

 private:
  Numbers hidden_;
};

// One thread's packed block of the weight, and the block's outputs.
class Former {
 public:
  explicit Former(const Operands& operands)
      : o_(operands),
        weight_(operands.block * operands.width, operands.item),
        outputs_(operands.block * std::min(operands.rows, kStripRows), operands.item) {}

  void pack(int64_t number) {
    const LinearHead& head = o_.head;
    const int64_t first = number * o_.block;
    states_ = std::min(o_.block, head.states - first);
    const char* from = head.weight + first * head.row_stride * item_size(head.weight_dtype);
    o_.of.pack(from, head.weight_dtype, head.row_stride, head.column_stride, states_, head.width,
               weight_.at(0));
  }
  // Forms the raw scores of the block that was packed last, at `outputs` or in this thread's
  // memory.
  char* form(const Strip& strip, char* outputs = nullptr) {
    char* to = outputs ? outputs : outputs_.at(0);
    o_.of.scores(weight_.at(0), o_.hidden(strip), states_, o_.head.width, strip.rows, to);
    return to;
  }
  // The strip's rows of total (padded rows, padded width) += outputs^T weight.
  void add_to_rows(const char* outputs, const Strip& strip, char* total) const {
    char* to = total + strip.begin * o_.width * o_.item;
    o_.of.add_to_rows(outputs, weight_.at(0), states_, o_.width, strip.rows, to);
  }

 private:
  const Operands& o_;
  Numbers weight_, outputs_;
  int64_t states_ = 0;
};

inline BlockShape shape_of(const Operands& o, int64_t number, const Strip& strip) {
  const int64_t first = number * o.block;
  return {std::min(o.block, o.head.states - first), strip.rows, o.head.bias + first * o.item,
          o.head.softcap};
}

}  // namespace sedd
