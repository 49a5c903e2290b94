// SIMD vectors of 64 bytes: loads, stores, exp and log for every element type.
//
// These are the vector extensions of GCC and clang. The compiler translates them to the
// instructions of the target, so the same source serves SSE2, AVX2, AVX-512 and Arm. Everything is
// in an unnamed namespace, and no inline function of a standard header is used: rows.cpp is
// compiled several times with different flags, and if two of its object files shared a function by
// name, the linker could keep the one with instructions that the processor does not have.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define SEDD_INLINE inline __attribute__((always_inline))

namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <int N>
struct Pack {  // N lanes of each width
  typedef float f32 __attribute__((vector_size(4 * N)));
  typedef int32_t i32 __attribute__((vector_size(4 * N)));
  typedef uint32_t u32 __attribute__((vector_size(4 * N)));
  typedef uint16_t u16 __attribute__((vector_size(2 * N)));
  typedef double f64 __attribute__((vector_size(8 * N)));
  typedef int64_t i64 __attribute__((vector_size(8 * N)));
};

template <class C>
struct Lanes;  // the vector in which C is computed
template <>
struct Lanes<float> {
  static constexpr int width = 16;
  typedef Pack<16>::f32 vec;
};
template <>
struct Lanes<double> {
  static constexpr int width = 8;
  typedef Pack<8>::f64 vec;
};

// --- loads: N elements as float -------------------------------------------------------------

template <int N>
SEDD_INLINE typename Pack<N>::f32 load_floats(const float* p) {
  typename Pack<N>::f32 v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <int N>
SEDD_INLINE typename Pack<N>::u32 load_bits(const void* p) {
  typename Pack<N>::u16 half;
  memcpy(&half, p, sizeof half);
  return __builtin_convertvector(half, typename Pack<N>::u32);
}

template <int N>
SEDD_INLINE typename Pack<N>::f32 load_floats(const BFloat16* p) {
  return (typename Pack<N>::f32)(load_bits<N>(p) << 16);
}

template <int N>
SEDD_INLINE typename Pack<N>::f32 load_floats(const Half* p) {
  typedef typename Pack<N>::f32 f32;
  typedef typename Pack<N>::u32 u32;
  const u32 bits = load_bits<N>(p);
  // Exponent and mantissa read as a float, then rebiased by 2^112: exact, subnormals included.
  const f32 magnitude = (f32)((bits & 0x7fff) << 13) * 0x1p112f;
  const u32 special = (bits & 0x7c00) == 0x7c00 ? u32{} + 0x7f800000u : u32{};
  return (f32)((u32)magnitude | special | ((bits & 0x8000) << 16));
}

template <class C, class T>
SEDD_INLINE typename Lanes<C>::vec load(const T* p) {
  const auto v = load_floats<Lanes<C>::width>(p);
  return __builtin_convertvector(v, typename Lanes<C>::vec);
}
template <>
SEDD_INLINE Lanes<double>::vec load<double, double>(const double* p) {
  Lanes<double>::vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

// --- stores: N lanes, rounded to nearest even -----------------------------------------------

template <int N>
SEDD_INLINE void store_bits(void* p, typename Pack<N>::u32 bits) {
  const auto half = __builtin_convertvector(bits, typename Pack<N>::u16);
  memcpy(p, &half, sizeof half);
}

template <int N>
SEDD_INLINE void store_floats(BFloat16* p, typename Pack<N>::f32 v) {
  typedef typename Pack<N>::u32 u32;
  const u32 bits = (u32)v;
  const u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const u32 nan = (bits >> 16) | 0x40;
  store_bits<N>(p, v == v ? rounded : nan);
}

template <int N>
SEDD_INLINE void store_floats(Half* p, typename Pack<N>::f32 v) {
  typedef typename Pack<N>::f32 f32;
  typedef typename Pack<N>::u32 u32;
  const u32 sign = ((u32)v >> 16) & 0x8000;
  const u32 bits = (u32)v & 0x7fffffff;
  const f32 magnitude = (f32)bits;
  // Below 2^-14 the half is subnormal: adding 0.5 leaves its 10 bits at the bottom of the mantissa.
  const u32 subnormal = (u32)(magnitude + 0.5f) - 0x3f000000u;
  const u32 normal = (bits - 0x38000000u + 0xfff + ((bits >> 13) & 1)) >> 13;
  u32 out = magnitude < 0x1p-14f ? subnormal : normal;
  out = magnitude >= 65520.0f ? u32{} + 0x7c00u : out;
  out = magnitude == magnitude ? out : u32{} + 0x7e00u;
  store_bits<N>(p, out | sign);
}

template <int N>
SEDD_INLINE void store_floats(float* p, typename Pack<N>::f32 v) {
  memcpy(p, &v, sizeof v);
}

template <class C, class T>
SEDD_INLINE void store(T* p, typename Lanes<C>::vec v) {
  constexpr int n = Lanes<C>::width;
  store_floats<n>(p, __builtin_convertvector(v, typename Pack<n>::f32));
}
template <>
SEDD_INLINE void store<double, double>(double* p, Lanes<double>::vec v) {
  memcpy(p, &v, sizeof v);
}

// --- streaming ------------------------------------------------------------------------------
// Stores past the caches: memory is written without being read first. For results larger than the
// caches; `p` must be aligned to 64 bytes.

template <class Bits>
SEDD_INLINE void stream(void* p, Bits v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
#if defined(__AVX__)
  typedef __m256i Piece;
#elif defined(__SSE2__)
  typedef __m128i Piece;
#endif
#if defined(__SSE2__)
  Piece pieces[sizeof v / sizeof(Piece)];
  memcpy(pieces, &v, sizeof v);
  for (unsigned i = 0; i < sizeof v / sizeof(Piece); ++i) {
#if defined(__AVX__)
    _mm256_stream_si256((Piece*)p + i, pieces[i]);
#else
    _mm_stream_si128((Piece*)p + i, pieces[i]);
#endif
  }
#else
  memcpy(p, &v, sizeof v);
#endif
}

SEDD_INLINE void end_of_stream() {  // before another thread reads
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// Stores the lanes, rounded to T, past the caches.
template <class C, class T>
SEDD_INLINE void stream_lanes(T* p, typename Lanes<C>::vec v) {
  constexpr int n = Lanes<C>::width;
  T rounded[n];
  store<C>(rounded, v);
  typedef uint8_t Bytes __attribute__((vector_size(n * sizeof(T))));
  Bytes bits;
  memcpy(&bits, rounded, sizeof bits);
  stream(p, bits);
}

// --- exp --------------------------------------------------------------------------------------
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; the polynomials are Chebyshev fits
// (relative error 3e-9 for float, 1e-17 for double). Overflows to inf, underflows to 0, keeps NaN.

template <class V>
SEDD_INLINE V clamped(V x, V low, V high) {  // keeps NaN
  x = x < low ? low : x;
  return x > high ? high : x;
}

SEDD_INLINE Pack<16>::f32 exp_lanes(Pack<16>::f32 x) {
  typedef Pack<16>::f32 f32;
#if defined(__AVX512F__)
  // One instruction per bound, which returns NaN if its second operand is NaN; the ternary needs
  // two.
  x = (f32)_mm512_min_ps((__m512)(f32{} + 110.0f),
                         _mm512_max_ps((__m512)(f32{} - 110.0f), (__m512)x));
  const f32 n = (f32)_mm512_roundscale_ps((__m512)(x * 1.44269504f), 0);
#else
  x = clamped(x, f32{} - 110.0f, f32{} + 110.0f);
  const f32 magic = f32{} + 0x1.8p23f;  // adding it rounds to an integer
  const f32 n = (x * 1.44269504f + magic) - magic;
#endif
  f32 r = x - n * 0x1.62ep-1f;  // ln 2 in two parts, the first exact in 12 bits
  r = r - n * 0x1.0bfbe8p-15f;
  f32 p = f32{} + 0.0013942159833661435643f;
  p = p * r + 0.0083759682263114252871f;
  p = p * r + 0.041666340142225575983f;
  p = p * r + 0.16666405302634304496f;
  p = p * r + 0.50000000500187977f;
  p = p * r + 1.0000000400388700f;
  p = p * r + 1.0f;
#if defined(__AVX512F__)
  return (f32)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  // 2^n in two factors, so that neither leaves the normal range.
  typedef Pack<16>::i32 i32;
  const i32 whole = __builtin_convertvector(x == x ? n : f32{}, i32);
  const i32 half = whole >> 1;
  return p * (f32)((half + 127) << 23) * (f32)((whole - half + 127) << 23);
#endif
}

SEDD_INLINE Pack<8>::f64 exp_lanes(Pack<8>::f64 x) {
  typedef Pack<8>::f64 f64;
  typedef Pack<8>::i64 i64;
  x = clamped(x, f64{} - 760.0, f64{} + 760.0);
  const f64 magic = f64{} + 0x1.8p52;
  const f64 shifted = x * 1.4426950408889634074 + magic;
  const f64 n = shifted - magic;
  f64 r = x - n * 0x1.62e42fee00000p-1;
  r = r - n * 0x1.a39ef35793c76p-33;
  f64 p = f64{} + 2.5111203257471138685e-8;
  p = p * r + 2.7634155490989483406e-7;
  p = p * r + 2.7557237736740599929e-6;
  p = p * r + 0.000024801481344570322675;
  p = p * r + 0.00019841269893049545164;
  p = p * r + 0.0013888888956219214689;
  p = p * r + 0.0083333333333184622646;
  p = p * r + 0.041666666666473292202;
  p = p * r + 0.16666666666666682285;
  p = p * r + 0.50000000000000203099;
  p = p * r + 1.0;
  p = p * r + 1.0;
  const i64 whole = (i64)(x == x ? shifted : magic) - (i64)magic;
  const i64 half = whole >> 1;
  return p * (f64)((half + 1023) << 52) * (f64)((whole - half + 1023) << 52);
}

// --- log --------------------------------------------------------------------------------------
// ln x = n ln 2 + ln m, m in [sqrt(1/2), sqrt(2)); ln m = 2 artanh(s), s = (m - 1) / (m + 1), by
// its series (relative error 1e-9 for float, 1e-18 for double). ln 0 = -inf, the log of a negative
// number is NaN; keeps inf and NaN.

template <class V>
SEDD_INLINE V log_specials(V x, V result) {
  const V infinity = V{} + __builtin_inff(), nan = V{} + __builtin_nanf("");
  result = x == 0 ? -infinity : result;
  result = x < 0 ? nan : result;
  return x < infinity ? result : x;  // inf and NaN as they are
}

SEDD_INLINE Pack<16>::f32 log_lanes(Pack<16>::f32 x) {
  typedef Pack<16>::f32 f32;
  typedef Pack<16>::i32 i32;
  const auto tiny = x < f32{} + 0x1p-126f;  // subnormal
  const f32 normal = tiny ? x * 0x1p32f : x;
  const i32 bits = (i32)normal;
  const i32 whole = (bits - 0x3f3504f3) >> 23;
  const f32 m = (f32)(bits - (whole << 23));
  const f32 n = __builtin_convertvector(whole, f32) - (tiny ? f32{} + 32 : f32{});
  const f32 s = (m - 1) / (m + 1), q = s * s;
  f32 p = f32{} + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  const f32 log_m = 2 * s + 2 * s * (q * p);
  return log_specials(x, n * 0x1.62ep-1f + (n * 0x1.0bfbe8p-15f + log_m));
}

SEDD_INLINE Pack<8>::f64 log_lanes(Pack<8>::f64 x) {
  typedef Pack<8>::f64 f64;
  typedef Pack<8>::i64 i64;
  const auto tiny = x < f64{} + 0x1p-1022;
  const f64 normal = tiny ? x * 0x1p64 : x;
  const i64 bits = (i64)normal;
  const i64 whole = (bits - 0x3fe6a09e667f3bcd) >> 52;
  const f64 m = (f64)(bits - (whole << 52));
  const f64 n = __builtin_convertvector(whole, f64) - (tiny ? f64{} + 64 : f64{});
  const f64 s = (m - 1) / (m + 1), q = s * s;
  f64 p = f64{} + 1.0 / 21;
  for (int k = 19; k >= 3; k -= 2) p = p * q + 1.0 / k;
  const f64 log_m = 2 * s + 2 * s * (q * p);
  return log_specials(x, n * 0x1.62e42fee00000p-1 + (n * 0x1.a39ef35793c76p-33 + log_m));
}

// --- pieces of a row --------------------------------------------------------------------------

constexpr int64_t kBlock = 2048;  // states summed in lanes before they are added in double

// Pairwise sum of all lanes: a sequential sum would be one long dependency chain.
template <class C>
SEDD_INLINE double total(typename Lanes<C>::vec v) {
  double lanes[Lanes<C>::width];
  for (int j = 0; j < Lanes<C>::width; ++j) lanes[j] = v[j];
  for (int half = Lanes<C>::width / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

// Sum of the first n lanes.
template <class C>
SEDD_INLINE double total(typename Lanes<C>::vec v, int n) {
  double sum = 0;
  for (int j = 0; j < n; ++j) sum += v[j];
  return sum;
}

// Loads n elements, fewer than a vector has; the other lanes are 0.
template <class C, class T>
SEDD_INLINE typename Lanes<C>::vec load_tail(const T* p, int n) {
  T buffer[Lanes<C>::width] = {};
  memcpy(buffer, p, n * sizeof(T));
  return load<C>(static_cast<const T*>(buffer));
}

template <class C, class T>
SEDD_INLINE void store_tail(T* p, typename Lanes<C>::vec v, int n) {
  T buffer[Lanes<C>::width];
  store<C>(buffer, v);
  memcpy(p, buffer, n * sizeof(T));
}

struct NoGradient {};

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

}  // namespace
