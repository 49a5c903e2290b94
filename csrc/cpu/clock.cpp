// Measures the clock by a chain of instructions that each wait for the one before and take one
// cycle.
#include "clock.h"

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace sedd {

#if defined(__GNUC__) && (defined(__x86_64__) || defined(__aarch64__))

namespace {

constexpr int64_t kTries = 32, kTurns = 1 << 14, kSteps = 64;  // 2^20 cycles a try: 0.3 ms

// One exclusive or of two registers, a single cycle on every processor of these kinds. After the
// barrier the compiler does not know the value, so it cannot combine two of them; a processor
// executes them, where it might add up constants or drop moves while it renames registers.
inline __attribute__((always_inline)) void step(uint64_t& value, uint64_t other) {
  value ^= other;
  __asm__ volatile("" : "+r"(value));
}

// kTurns * kSteps steps. The loop's own instructions do not wait for them, and run beside them.
uint64_t chain(uint64_t value, uint64_t other) {
  __asm__ volatile("" : "+r"(value), "+r"(other));
  for (int64_t turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 64
    for (int64_t i = 0; i < kSteps; ++i) step(value, other);
  }
  return value;
}

}  // namespace

// The largest of the tries: the system may interrupt some, and the clock has yet to rise in others.
double clock_hz() {
  using Clock = std::chrono::steady_clock;
  double largest = 0;
  for (int64_t i = 0; i < kTries; ++i) {
    const auto begin = Clock::now();
    const uint64_t value = chain(1, 3);
    __asm__ volatile("" : : "r"(value));
    const std::chrono::duration<double> seconds = Clock::now() - begin;
    largest = std::max(largest, kTurns * kSteps / seconds.count());
  }
  return largest;
}

#else

double clock_hz() { return 0; }

#endif

}  // namespace sedd
