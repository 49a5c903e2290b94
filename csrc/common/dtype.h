// The dtypes of scores, with the codes that Python passes (DTYPES of the backends cpp and
// cuda). This header includes no other one: csrc/cpu/simd/rows.cpp, which
// is compiled once per instruction set, must not share an inline function with other object files.
#pragma once

namespace sedd {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

}  // namespace sedd
