// Element types of the GPU kernels, in vectors of 16 bytes: load, unpack, pack, store.
//
// The same functions exist on the host, for the tests of the row functions (tests/ops). The vector
// types of the CPU backend are in csrc/cpu/simd/lanes.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "coefficients.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

// Hooks with which a test counts loads and stores and checks their alignment; empty otherwise.
#if !defined(SEDD_COUNT_LOAD)
#define SEDD_COUNT_LOAD(address, bytes)
#define SEDD_COUNT_STORE(address, bytes)
#endif

#if defined(__CUDACC__)
#define SEDD_UNROLL _Pragma("unroll")
#define SEDD_UNROLL_4 _Pragma("unroll 4")
#define SEDD_ROLLED _Pragma("unroll 1")  // for rare loops, where unrolling would cost registers
#else
#define SEDD_UNROLL
#define SEDD_UNROLL_4
#define SEDD_ROLLED
#endif

namespace sedd {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

struct alignas(16) Vector16 {
  uint32_t word[4];
};

// The type in which a thread computes: double for double scores, else float.
template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

// --- one element ------------------------------------------------------------------------------

template <class To, class From>
SEDD_HOST_DEVICE inline To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits are copied, not converted");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

SEDD_HOST_DEVICE inline float widen(float x) { return x; }
SEDD_HOST_DEVICE inline double widen(double x) { return x; }
SEDD_HOST_DEVICE inline float widen(BFloat16 x) {
  return bit_copy<float>(static_cast<uint32_t>(x.bits) << 16);
}
SEDD_HOST_DEVICE inline float widen(Half x) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t magnitude = x.bits & 0x7fff, sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  // Exponent and mantissa read as a float, then rebiased by 2^112: exact, subnormals included.
  const float value = bit_copy<float>(magnitude << 13) * 0x1p112f;
  const uint32_t bits =
      magnitude >= 0x7c00 ? magnitude << 13 | 0x7f800000 : bit_copy<uint32_t>(value);
  return bit_copy<float>(bits | sign);
#endif
}

// Rounds to nearest even.
SEDD_HOST_DEVICE inline void narrow(float x, float* to) { *to = x; }
SEDD_HOST_DEVICE inline void narrow(double x, float* to) { *to = static_cast<float>(x); }
SEDD_HOST_DEVICE inline void narrow(double x, double* to) { *to = x; }
SEDD_HOST_DEVICE inline void narrow(float x, BFloat16* to) {
#if defined(__CUDA_ARCH__)
  to->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t bits = bit_copy<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to->bits = static_cast<uint16_t>(x == x ? rounded : bits >> 16 | 0x40);
#endif
}
SEDD_HOST_DEVICE inline void narrow(float x, Half* to) {
#if defined(__CUDA_ARCH__)
  to->bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t sign = bit_copy<uint32_t>(x) >> 16 & 0x8000;
  const uint32_t bits = bit_copy<uint32_t>(x) & 0x7fffffff;
  const float magnitude = bit_copy<float>(bits);
  uint32_t out = (bits - 0x38000000u + 0xfff + (bits >> 13 & 1)) >> 13;
  // Below 2^-14 a half is subnormal: adding 0.5 leaves its 10 bits at the bottom of the mantissa.
  if (magnitude < 0x1p-14f) out = bit_copy<uint32_t>(magnitude + 0.5f) - 0x3f000000u;
  if (magnitude >= 65520.0f) out = 0x7c00;
  if (x != x) out = 0x7e00;
  to->bits = static_cast<uint16_t>(out | sign);
#endif
}
SEDD_HOST_DEVICE inline void narrow(double x, BFloat16* to) { narrow(static_cast<float>(x), to); }
SEDD_HOST_DEVICE inline void narrow(double x, Half* to) { narrow(static_cast<float>(x), to); }

// --- 16 bytes ---------------------------------------------------------------------------------

// `once`: the cache line is not read again and should be evicted first.
template <bool once>
SEDD_HOST_DEVICE inline Vector16 load_vector(const void* address) {
  SEDD_COUNT_LOAD(address, 16);
#if defined(__CUDA_ARCH__)
  const uint4* from = static_cast<const uint4*>(address);
  const uint4 v = once ? __ldcs(from) : __ldg(from);
  return {{v.x, v.y, v.z, v.w}};
#else
  Vector16 v;
  memcpy(&v, address, sizeof v);
  return v;
#endif
}

// One part of a vector. Its cache line is kept, because the other parts are read next.
template <class P>
SEDD_HOST_DEVICE inline P load_piece(const void* address) {
  SEDD_COUNT_LOAD(address, sizeof(P));
#if defined(__CUDA_ARCH__)
  return __ldg(static_cast<const P*>(address));
#else
  P piece;
  memcpy(&piece, address, sizeof piece);
  return piece;
#endif
}

// 16 bytes from an address that is only a multiple of `bytes`: 8, 4 or 2.
template <int bytes>
SEDD_HOST_DEVICE inline Vector16 load_pieces(const void* address) {
  const char* from = static_cast<const char*>(address);
  Vector16 v;
  SEDD_UNROLL
  for (int j = 0; j < 4; ++j) {
    if constexpr (bytes == 8) {
      if (j % 2) continue;
      const uint64_t pair = load_piece<unsigned long long>(from + 4 * j);
      v.word[j] = static_cast<uint32_t>(pair);
      v.word[j + 1] = static_cast<uint32_t>(pair >> 32);
    } else if constexpr (bytes == 4) {
      v.word[j] = load_piece<uint32_t>(from + 4 * j);
    } else {
      const uint32_t low = load_piece<uint16_t>(from + 4 * j);
      const uint32_t high = load_piece<uint16_t>(from + 4 * j + 2);
      v.word[j] = low | high << 16;
    }
  }
  return v;
}

// A gradient is next read by another kernel, so it is stored with the streaming cache policy.
SEDD_HOST_DEVICE inline void store_vector(void* address, const Vector16& v) {
  SEDD_COUNT_STORE(address, 16);
#if defined(__CUDA_ARCH__)
  __stcs(static_cast<uint4*>(address), make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]));
#else
  memcpy(address, &v, sizeof v);
#endif
}

template <class T>
constexpr int kWidth = 16 / static_cast<int>(sizeof(T));  // elements in a Vector16

SEDD_HOST_DEVICE inline void unpack(const Vector16& v, const float*, float (&out)[4]) {
  SEDD_UNROLL
  for (int j = 0; j < 4; ++j) out[j] = bit_copy<float>(v.word[j]);
}
SEDD_HOST_DEVICE inline void unpack(const Vector16& v, const double*, double (&out)[2]) {
  SEDD_UNROLL
  for (int j = 0; j < 2; ++j) {
    out[j] = bit_copy<double>(static_cast<uint64_t>(v.word[2 * j + 1]) << 32 | v.word[2 * j]);
  }
}
template <class T>  // two elements in a word
SEDD_HOST_DEVICE inline void unpack(const Vector16& v, const T*, float (&out)[8]) {
  SEDD_UNROLL
  for (int j = 0; j < 4; ++j) {
    out[2 * j] = widen(T{static_cast<uint16_t>(v.word[j])});
    out[2 * j + 1] = widen(T{static_cast<uint16_t>(v.word[j] >> 16)});
  }
}

SEDD_HOST_DEVICE inline uint32_t pack_pair(float low, float high, const BFloat16*) {
#if defined(__CUDA_ARCH__)
  return bit_copy<uint32_t>(__floats2bfloat162_rn(low, high));
#else
  BFloat16 a, b;
  narrow(low, &a);
  narrow(high, &b);
  return a.bits | static_cast<uint32_t>(b.bits) << 16;
#endif
}
SEDD_HOST_DEVICE inline uint32_t pack_pair(float low, float high, const Half*) {
#if defined(__CUDA_ARCH__)
  return bit_copy<uint32_t>(__floats2half2_rn(low, high));
#else
  Half a, b;
  narrow(low, &a);
  narrow(high, &b);
  return a.bits | static_cast<uint32_t>(b.bits) << 16;
#endif
}

// Stores N numbers at an address that is a multiple of 16 bytes.
template <int N>
SEDD_HOST_DEVICE inline void store_numbers(float* to, const float (&x)[N]) {
  SEDD_UNROLL
  for (int j = 0; j < N; j += 4) {
    store_vector(to + j, {{bit_copy<uint32_t>(x[j]), bit_copy<uint32_t>(x[j + 1]),
                           bit_copy<uint32_t>(x[j + 2]), bit_copy<uint32_t>(x[j + 3])}});
  }
}
SEDD_HOST_DEVICE inline void store_numbers(double* to, const double (&x)[2]) {
  const uint64_t a = bit_copy<uint64_t>(x[0]), b = bit_copy<uint64_t>(x[1]);
  store_vector(to, {{static_cast<uint32_t>(a), static_cast<uint32_t>(a >> 32),
                     static_cast<uint32_t>(b), static_cast<uint32_t>(b >> 32)}});
}
template <class T>
SEDD_HOST_DEVICE inline void store_pairs(T* to, const float (&x)[8]) {
  Vector16 v;
  SEDD_UNROLL
  for (int j = 0; j < 4; ++j) v.word[j] = pack_pair(x[2 * j], x[2 * j + 1], to);
  store_vector(to, v);
}
SEDD_HOST_DEVICE inline void store_numbers(BFloat16* to, const float (&x)[8]) {
  store_pairs(to, x);
}
SEDD_HOST_DEVICE inline void store_numbers(Half* to, const float (&x)[8]) { store_pairs(to, x); }

// expf, not __expf: the fast form rounds x * log2(e) once, so its relative error grows with |x|
// (2 + 1.2 |x| units in the last place: 3e-6 at a score of 20). At small noise, S and c * l_{x_0}
// cancel, and such an error would show. expf costs about two instructions more.
SEDD_HOST_DEVICE inline float exponential(float x) { return ::expf(x); }
SEDD_HOST_DEVICE inline double exponential(double x) { return ::exp(x); }

// 2^x by the GPU's instruction, accurate to two units in the last place; 0 below 2^-126.
SEDD_HOST_DEVICE inline float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return x < -126 ? 0 : ::exp2f(x);
#endif
}

// exp of a bfloat16 score in five instructions instead of eight. The product of x and log2(e)
// rounded to 16 bits is exact; the rounded part of log2(e) is corrected by the factor 1 + x * rest.
// The lower bound avoids 0 * infinity at a score of minus infinity; scores above -200 do not reach
// it.
SEDD_HOST_DEVICE inline float exponential16(float x) {
  const float high = 47274 / 32768.0f, rest = 4.888495152143634e-06f;
  const float power = power_of_two(x * high);
  return power + power * ::fmaxf(x * rest, -1e-3f);
}

// exp of a score that was loaded as a T.
template <class T, class C>
SEDD_HOST_DEVICE inline C exponential_of(C x) {
  if constexpr (std::is_same<T, BFloat16>::value && sizeof(C) == 4) {
    return exponential16(x);
  } else {
    return exponential(x);
  }
}

}  // namespace sedd
