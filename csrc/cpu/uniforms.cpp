// Uniform numbers for the operations, two a block of Philox (csrc/common/philox.h). They depend on
// the key and the number of the block, not on threads or the instruction set.
#include "common/philox.h"
#include "operations.h"
#include "parallel.h"

namespace sedd {

constexpr int64_t kBlockCost = 8;  // a block takes as long as reading so many elements

void fill_uniforms(uint64_t key, uint64_t first, double* u, int64_t count, int threads) {
  const auto fill = row_table().fill_uniforms;
  parallel_for(count / 2, kBlockCost, threads, [&](int64_t begin, int64_t end) {
    fill(key, first + begin, end - begin, u + 2 * begin);
  });
  if (count % 2) {
    auto block = Philox<OneLane>::at(first + count / 2);
    block.encrypt(key);
    u[count - 1] = block.u0();
  }
}

}  // namespace sedd
