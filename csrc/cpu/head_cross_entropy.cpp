// One pass of a cross entropy over all blocks of a head.
#include <cmath>

#include "head_products.h"

namespace sedd {
namespace {

// The shift of rows that are none: their exponentials are 0 at any bias.
constexpr double kBeyond = kInfinity;

// (padded rows,) copies of numbers of the rows, and another one beyond them.
std::vector<double> padded(const Operands& o, const double* of_rows, double beyond) {
  std::vector<double> made(o.rows, beyond);
  if (of_rows) std::copy_n(of_rows, o.head.rows, made.begin());
  return made;
}

// One pass of a cross entropy.
class CrossEntropy {
 public:
  CrossEntropy(const Operands& operands, const CrossEntropyPass& pass)
      : o_(operands),
        pass_(pass),
        shift_(padded(operands, pass.shift, kBeyond)),
        factor_(padded(operands, pass.factor, 0)),
        scaled_(pass.of_weight ? operands.rows * operands.width : 0, operands.item) {
    if (!pass.of_weight) return;
    const int64_t width = o_.head.width;
    for (const Strip& strip : o_.strips) {
      const int64_t known = std::min(strip.rows, o_.head.rows - strip.begin);
      Numbers rows(strip.rows * width, o_.item);
      rows.zero(strip.rows * width);
      const char* from = pass.scaled + strip.begin * width * o_.item;
      std::copy_n(from, known * width * o_.item, rows.at(0));
      o_.of.pack(rows.at(0), o_.head.dtype, width, 1, strip.rows, width, scaled(strip));
    }
  }

  void run() {
    const int64_t parts = o_.part_count(o_.head.states), numbers = o_.rows * o_.width;
    std::vector<std::vector<double>> sums(parts);
    std::vector<std::unique_ptr<Numbers>> totals(parts);
    o_.for_parts(o_.head.states, [&](int64_t part, int64_t step) {
      Former former(o_);
      if (pass_.of_hidden) {
        totals[part] = std::make_unique<Numbers>(numbers, o_.item);
        totals[part]->zero(numbers);
      }
      sums[part].assign(o_.rows, 0.0);
      Numbers converted(direct() ? 0 : o_.block * o_.head.width, o_.item);
      const auto visit = [&](int64_t number) {
        add(former, number, sums[part].data(), totals[part] ? totals[part]->at(0) : nullptr,
            converted);
      };
      const int64_t count = o_.blocks(o_.head.states), last = (count - 1 - part) / step;
      for (int64_t i = 0; i <= last; ++i) {
        // What was formed last may still be in a cache when it is read.
        visit(part + step * (pass_.kept_is_formed ? last - i : i));
      }
    });
    for (int64_t r = 0; pass_.sum_exp && r < o_.head.rows; ++r) {
      for (const auto& of_part : sums) pass_.sum_exp[r] += of_part[r];
    }
    if (pass_.of_hidden) store_totals(totals);
  }

 private:
  // Whether the gradient of the weight is added to its memory without a conversion.
  bool direct() const { return pass_.of_weight_dtype == o_.head.dtype; }

  char* scaled(const Strip& strip) const { return scaled_.at(strip.begin * o_.width); }

  void add(Former& former, int64_t number, double* sums, char* total, Numbers& converted) const {
    const int64_t first = number * o_.block, states = std::min(o_.block, o_.head.states - first);
    const bool is_kept = pass_.kept && first >= pass_.first_kept;
    char* kept = is_kept ? pass_.kept + (first - pass_.first_kept) * o_.rows * o_.item : nullptr;
    const bool formed = !is_kept || !pass_.kept_is_formed;
    if (formed) former.pack(number);
    for (const Strip& strip : o_.strips) {
      const BlockShape shape = shape_of(o_, number, strip);
      char* block = kept ? kept + strip.begin * states * o_.item : nullptr;
      if (formed) {
        block = former.form(strip, block);
        read_targets(block, shape, first, strip);
        double* of_strip = pass_.sum_exp ? sums + strip.begin : nullptr;
        o_.of.exponentials(block, shape, shift_.data() + strip.begin, true, of_strip);
      }
      put_targets(block, shape, first, strip);
      if (total) former.add_to_rows(block, strip, total);
      if (pass_.of_weight) add_to_weight(block, shape, first, strip, converted);
      if (pass_.of_bias) {
        char* out = pass_.of_bias + first * o_.item;
        o_.of.add_columns(block, states, strip.rows, factor_.data() + strip.begin, out);
      }
    }
    if (pass_.of_weight && !direct()) {
      const int64_t width = o_.head.width;
      char* out = pass_.of_weight + first * width * item_size(pass_.of_weight_dtype);
      o_.of.convert(converted.at(0), states * width, pass_.of_weight_dtype, out);
    }
  }

  // Calls run(row, index in the strip's block, state of the block) for the targets of a block.
  template <class Run>
  void for_targets(const BlockShape& shape, int64_t first, const Strip& strip,
                   const Run& run) const {
    const int64_t* end = pass_.target + o_.head.rows;
    const int64_t* at = std::lower_bound(pass_.target, end, first);
    for (; at < end && *at < first + shape.states; ++at) {
      const int64_t row = pass_.order[at - pass_.target], i = row - strip.begin;
      if (i >= 0 && i < strip.rows) run(row, i, *at - first);
    }
  }
  void read_targets(const char* block, const BlockShape& shape, int64_t first,
                    const Strip& strip) const {
    for_targets(shape, first, strip, [&](int64_t row, int64_t i, int64_t y) {
      pass_.f_target[row] = o_.of.output(block, shape, y, i);
      pass_.e_target[row] = std::exp(pass_.f_target[row] - pass_.shift[row]);
    });
  }
  void put_targets(char* block, const BlockShape& shape, int64_t first, const Strip& strip) const {
    for_targets(shape, first, strip, [&](int64_t row, int64_t i, int64_t y) {
      o_.of.set(block, y * strip.rows + i, pass_.missing ? at_target(row) : 0);
    });
  }
  // A row without a factor may have its target at a state of probability 0, where f is infinite.
  double at_target(int64_t row) const {
    if (factor_[row] == 0) return 0;
    const double cap = o_.head.softcap, t = cap != 0 ? pass_.f_target[row] / cap : 0;
    return (pass_.e_target[row] - pass_.missing[row]) * (1 - t * t);
  }

  void add_to_weight(const char* block, const BlockShape& shape, int64_t first, const Strip& strip,
                     Numbers& converted) const {
    const int64_t width = o_.head.width;
    char* out = direct() ? pass_.of_weight + first * width * o_.item : converted.at(0);
    const bool add = strip.begin > 0 || (direct() && pass_.add);
    o_.of.of_states(block, scaled(strip), shape.states, width, strip.rows, out, add);
  }

  void store_totals(const std::vector<std::unique_ptr<Numbers>>& totals) const {
    const int64_t width = o_.head.width, cost = width * static_cast<int64_t>(totals.size());
    parallel_for(o_.head.rows, cost, o_.head.threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * width; i < end * width; ++i) {
        double sum = 0;
        const int64_t at = i / width * o_.width + i % width;
        for (const auto& of_part : totals) sum += o_.of.get(of_part->at(0), at);
        o_.of.set(pass_.of_hidden, i, sum);
      }
    });
  }

  const Operands& o_;
  const CrossEntropyPass& pass_;
  const std::vector<double> shift_, factor_;
  Numbers scaled_;
};

}  // namespace

void head_cross_entropy(const LinearHead& head, const CrossEntropyPass& pass) {
  CrossEntropy(Operands(head), pass).run();
}

}  // namespace sedd
