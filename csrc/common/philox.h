// Philox-4x32-10: a counter-based generator of random numbers. A block of four 32-bit words is a
// function of a counter (128 bits) and a key (64 bits) and of nothing else, so threads and vector
// lanes may compute the blocks in any order.
//
// Source: Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once

#include <stdint.h>
#include <string.h>

namespace sedd {

// One block, or one in every lane of a vector. Each word is in the lower half of a 64-bit integer;
// the upper half has no meaning, because a multiplication reads the lower halves only.
//
// Lanes has the types Word (uint64_t, or a vector of them) and Real (double, or a vector of them),
// and product(x, y): the 64-bit products of the lower half of every lane of x with y.
template <class Lanes>
struct Philox {
  typedef typename Lanes::Word Word;
  typedef typename Lanes::Real Real;
  static constexpr uint64_t kLower = 0xffffffff;

  Word x0, x1, x2, x3;

  // Blocks whose counters are below 2^64.
  static inline Philox at(Word counter) { return {counter, counter >> 32, Word{}, Word{}}; }

  // Turns the counter into the block.
  inline void encrypt(uint64_t key) {
    uint32_t key0 = static_cast<uint32_t>(key), key1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
      const Word a = Lanes::product(x0, 0xd2511f53), b = Lanes::product(x2, 0xcd9e8d57);
      x0 = (b >> 32) ^ x1 ^ uint64_t{key0};
      x1 = b;
      x2 = (a >> 32) ^ x3 ^ uint64_t{key1};
      x3 = a;
      key0 += 0x9e3779b9;
      key1 += 0xbb67ae85;
    }
  }

  // The two uniform numbers of a block, multiples of 2^-53 in [0, 1): the first 53 bits of x0 x1,
  // and those of x2 x3.
  inline Real u0() const { return uniform(x0, x1); }
  inline Real u1() const { return uniform(x2, x3); }

 private:
  static inline Real uniform(Word high, Word low) {
    // The bits of 2^20 + high 2^-32 and of 1/2 + (low >> 11) 2^-53: no integer is converted to a
    // floating-point number, for which AVX2 has no instruction. The sums are exact.
    const Word upper = (high & kLower) | 0x4130000000000000;
    const Word lower = ((low & kLower) >> 11) | 0x3fe0000000000000;
    Real x, y;
    memcpy(&x, &upper, sizeof x);
    memcpy(&y, &lower, sizeof y);
    return (x - (0x1p20 + 0.5)) + y;
  }
};

struct OneLane {
  typedef uint64_t Word;
  typedef double Real;
  static inline Word product(Word x, uint32_t y) { return (x & 0xffffffff) * y; }
};

}  // namespace sedd
