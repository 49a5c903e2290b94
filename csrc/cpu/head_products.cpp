// Sizes, and the largest output of rows.
#include "head_products.h"

namespace sedd {

int64_t LinearHead::block() const {
  // A multiple of the rows of a tile, also of the smaller one.
  for (const int64_t states : {120, 60, 24}) {
    if (states * width * item_size(dtype) <= kBlockBytes) return states;
  }
  return 12;
}

int64_t LinearHead::padded_rows() const { return rounded_up(rows, head_functions(dtype).panel); }

void head_largest(const LinearHead& head, int64_t states, double* largest) {
  const Operands o(head);
  std::vector<std::vector<double>> found(o.part_count(states));
  o.for_parts(states, [&](int64_t part, int64_t step) {
    Former former(o);
    found[part].assign(o.rows, -kInfinity);
    for (int64_t number = part; number < o.blocks(states); number += step) {
      former.pack(number);
      for (const Strip& strip : o.strips) {
        double* most = found[part].data() + strip.begin;
        o.of.largest(former.form(strip), shape_of(o, number, strip), most);
      }
    }
  });
  for (int64_t r = 0; r < head.rows; ++r) {
    largest[r] = -kInfinity;
    for (const auto& of_part : found) largest[r] = std::max(largest[r], of_part[r]);
  }
}

}  // namespace sedd
