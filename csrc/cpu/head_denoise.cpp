// The statistics of a denoising step over all blocks of a head, and the scores of single groups.
#include <cmath>

#include "head_products.h"

namespace sedd {
namespace {

// The statistics of one thread's states.
struct PartStatistics {
  std::vector<double> shift, sum_exp, weighted, top, second, rescaled;
  std::vector<int64_t> argmax;
  std::unique_ptr<Numbers> embedding;

  PartStatistics(const Operands& o, const DenoisePass& pass)
      : shift(o.rows, -kInfinity),
        sum_exp(o.rows, 0.0),
        weighted(o.rows, 0.0),
        top(o.rows, -kInfinity),
        second(o.rows, -kInfinity),
        rescaled(o.rows, 1.0),
        argmax(o.rows, 0) {
    if (!pass.embedding) return;
    embedding = std::make_unique<Numbers>(o.rows * o.width, o.item);
    embedding->zero(o.rows * o.width);
  }
  RowStatistics pointers(int64_t begin, bool with_top) {
    return {shift.data() + begin,    sum_exp.data() + begin,
            weighted.data() + begin, with_top ? top.data() + begin : nullptr,
            second.data() + begin,   argmax.data() + begin,
            rescaled.data() + begin};
  }
};

double finite_or_zero(double x) { return std::isfinite(x) ? x : 0; }

// A row of the results, from those of the parts.
void combine(const Operands& o, const DenoisePass& pass,
             const std::vector<std::unique_ptr<PartStatistics>>& parts, int64_t r) {
  double largest = -kInfinity;
  for (const auto& part : parts) largest = std::max(largest, part->shift[r]);
  double sum_exp = 0, weighted = 0, top = -kInfinity, second = -kInfinity;
  int64_t argmax = 0;
  std::vector<double> factors;
  for (const auto& part : parts) {
    const bool none = part->shift[r] == -kInfinity;  // the sums are 0
    const double apart = none ? 0 : finite_or_zero(part->shift[r]) - finite_or_zero(largest);
    const double factor = std::exp(apart);
    factors.push_back(factor);
    sum_exp += factor * part->sum_exp[r];
    weighted += factor * (part->weighted[r] + apart * part->sum_exp[r]);
    const bool earlier = part->top[r] == top && part->argmax[r] < argmax;
    if (part->top[r] > top || earlier) {
      second = std::max(top, part->second[r]);
      top = part->top[r];
      argmax = part->argmax[r];
    } else {
      second = std::max(second, part->top[r]);
    }
  }
  pass.largest[r] = largest, pass.sum_exp[r] = sum_exp, pass.weighted[r] = weighted;
  if (pass.top) pass.top[r] = top, pass.second[r] = second, pass.argmax[r] = argmax;
  for (int64_t k = 0; pass.embedding && k < o.head.width; ++k) {
    double sum = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      sum += factors[i] * o.of.get(parts[i]->embedding->at(0), r * o.width + k);
    }
    o.of.set(pass.embedding, r * o.head.width + k, sum);
  }
}

}  // namespace

void head_denoise(const LinearHead& head, const DenoisePass& pass) {
  const Operands o(head);
  std::vector<std::unique_ptr<PartStatistics>> parts(o.part_count(head.states));
  o.for_parts(head.states, [&](int64_t part, int64_t step) {
    Former former(o);
    parts[part] = std::make_unique<PartStatistics>(o, pass);
    PartStatistics& found = *parts[part];
    for (int64_t number = part; number < o.blocks(head.states); number += step) {
      former.pack(number);
      for (const Strip& strip : o.strips) {
        char* block = former.form(strip);
        const int64_t at = number * o.rows + strip.begin;
        const RowStatistics rows = found.pointers(strip.begin, pass.top != nullptr);
        o.of.statistics(block, shape_of(o, number, strip), number * o.block,
                        pass.inverse_temperature, rows, pass.groups ? pass.groups + at : nullptr);
        if (pass.groups) std::copy_n(rows.shift, strip.rows, pass.group_shift + at);
        if (!pass.embedding) continue;
        char* of_strip = found.embedding->at(strip.begin * o.width);
        o.of.scale_rows(of_strip, strip.rows, o.width, rows.rescaled);
        former.add_to_rows(block, strip, found.embedding->at(0));
      }
    }
  });
  const int64_t cost = pass.embedding ? head.width * static_cast<int64_t>(parts.size()) : 1;
  parallel_for(head.rows, cost, head.threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) combine(o, pass, parts, r);
  });
}

void head_group_scores(const LinearHead& head, const int64_t* group, char* scores) {
  const HeadFunctions& of = head_functions(head.dtype);
  const int64_t block = head.block(), item = item_size(head.dtype);
  parallel_for(head.rows, block * head.width, head.threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = 0; i < block; ++i) {
        const int64_t y = group[r] * block + i;
        double found = 0;
        if (y < head.states) {
          const char* row = head.weight + y * head.row_stride * item_size(head.weight_dtype);
          found = of.dot(row, head.weight_dtype, head.column_stride,
                         head.hidden + r * head.width * item, head.width);
        }
        of.set(scores, r * block + i, found);
      }
    }
  });
}

}  // namespace sedd
