// Checks the row functions (csrc/cpu/simd/rows.h) of the chosen instruction set, of every dtype in
// both tables, and those on blocks (head.h), against double formulas. check_rows.py compiles this
// program and runs it, for Arm in an emulator. Where SEDD_FAST_ISA names a set that the processor
// does not have, it checks nothing. The exit status is 1 if a comparison fails.
#include <cstdlib>
#include <string>

#include "tested.h"

int main() {
  const char* wanted = std::getenv("SEDD_FAST_ISA");
  if (wanted && wanted != std::string(sedd::instruction_set())) return 0;
  for (int dtype = 0; dtype < 4; ++dtype) {
    for (const bool exact : {false, true}) {
      const Tested tested(sedd::row_table(), dtype, exact);
      check_ordinary(tested);
      check_special(tested);
      check_softmax(tested);
    }
  }
  check_head();
  return checks.finish((std::string("row functions, ") + sedd::instruction_set()).c_str());
}
