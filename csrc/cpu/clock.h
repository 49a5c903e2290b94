// The clock of the processor, for the benchmark's cycles per element.
#pragma once

namespace sedd {

// Cycles per second of the core that runs the caller, measured in about 10 ms; 0 where the compiler
// or the processor has no loop for it here.
double clock_hz();

}  // namespace sedd
