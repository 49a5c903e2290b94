// Uniform numbers of many blocks of Philox, for one instruction set.
#pragma once

#include <stdint.h>

namespace sedd {

// out[2 i], out[2 i + 1] = the uniform numbers of block first + i, for i < count.
typedef void FillBlocks(uint64_t key, uint64_t first, int64_t count, double* out);

namespace baseline {
FillBlocks fill_blocks;
}
#if defined(SEDD_X86)
namespace avx2 {
FillBlocks fill_blocks;
}
namespace avx512 {
FillBlocks fill_blocks;
}
#endif

}  // namespace sedd
