// The types of scores, as Python names them (DTYPES in sedd_fast/backends). No other header is
// included: csrc/cpu/rows.cpp, which is compiled once an instruction set, must share no function.
#pragma once

namespace sedd {

enum class DType : int { float32 = 0, bfloat16 = 1, float16 = 2, float64 = 3 };

}  // namespace sedd
