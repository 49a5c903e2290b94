// Loads, stores, exp and log of one vector register, for every element type.
//
// These are the vector extensions of GCC and clang, in vectors as wide as the registers of the
// instruction set (native.h). rows.cpp is compiled several times with different flags. Everything
// here is therefore in an unnamed namespace, and no inline function of a standard header is used:
// if two object files shared a function by name, the linker could keep the one with instructions
// that the processor does not have.
#pragma once

#include "native.h"

namespace sedd {
namespace SEDD_ISA {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class A, class B>
constexpr bool same = false;
template <class A>
constexpr bool same<A, A> = true;

template <class C>
struct Lanes;  // the vector in which C is computed
template <>
struct Lanes<float> {
  static constexpr int width = kVectorBytes / 4;
  typedef Pack<width>::f32 vec;
  typedef Pack<width>::i32 integers;
};
template <>
struct Lanes<double> {
  static constexpr int width = kVectorBytes / 8;
  typedef Pack<width>::f64 vec;
  typedef Pack<width>::i64 integers;
};
typedef Lanes<float>::vec Floats;
typedef Lanes<double>::vec Doubles;

// --- loads: N elements as float -------------------------------------------------------------

template <int N>
SEDD_INLINE typename Pack<N>::f32 load_floats(const float* p) {
  typename Pack<N>::f32 v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <int N>
SEDD_INLINE typename Pack<N>::u16 load_bits(const void* p) {
  typename Pack<N>::u16 bits;
  memcpy(&bits, p, sizeof bits);
  return bits;
}

template <int N>
SEDD_INLINE typename Pack<N>::f32 load_floats(const BFloat16* p) {
  return (typename Pack<N>::f32)(widen<N>(load_bits<N>(p)) << 16);
}

template <int N>
SEDD_INLINE typename Pack<N>::f32 load_floats(const Half* p) {
  return half_to_float<N>(load_bits<N>(p));
}

template <class C, class T>
SEDD_INLINE typename Lanes<C>::vec load(const T* p) {
  const auto v = load_floats<Lanes<C>::width>(p);
  return __builtin_convertvector(v, typename Lanes<C>::vec);
}
template <>
SEDD_INLINE Doubles load<double, double>(const double* p) {
  Doubles v;
  memcpy(&v, p, sizeof v);
  return v;
}

// --- stores: N lanes, rounded to nearest even -----------------------------------------------

template <int N>
SEDD_INLINE auto rounded(typename Pack<N>::f32 v, const BFloat16*) {
  return float_to_bfloat16<N>(v);
}
template <int N>
SEDD_INLINE auto rounded(typename Pack<N>::f32 v, const Half*) {
  return float_to_half<N>(v);
}
template <int N>
SEDD_INLINE auto rounded(typename Pack<N>::f32 v, const float*) {
  return v;
}

// The vector as elements of type T.
template <class C, class T>
SEDD_INLINE auto rounded(typename Lanes<C>::vec v, const T* p) {
  constexpr int n = Lanes<C>::width;
  return rounded<n>(__builtin_convertvector(v, typename Pack<n>::f32), p);
}
template <>
SEDD_INLINE auto rounded<double, double>(Doubles v, const double*) {
  return v;
}

template <class C, class T>
SEDD_INLINE void store(T* p, typename Lanes<C>::vec v) {
  const auto elements = rounded<C>(v, static_cast<const T*>(p));
  memcpy(p, &elements, sizeof elements);
}

// --- fewer elements than a vector has ---------------------------------------------------------

// Loads n elements; the other lanes are 0.
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

// The first n lanes; `other` in the others.
template <class C>
SEDD_INLINE typename Lanes<C>::vec first_lanes(typename Lanes<C>::vec v, int n, C other) {
  for (int j = n; j < Lanes<C>::width; ++j) v[j] = other;
  return v;
}

// --- exp --------------------------------------------------------------------------------------
// exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; the polynomials are Chebyshev fits
// (relative error 3e-9 for float, 1e-17 for double). Keeps NaN.
//
// Adding `magic` to x / ln 2 rounds it to an integer n in the last bits of the sum. `magic`
// includes the bias of the exponent, so those bits, shifted, are the number 2^n.

// Infinity above 88.37, where n = 128, and 0 below -87.68, where n = -127.
SEDD_INLINE Floats exp_lanes(Floats x) {
  typedef Pack<Lanes<float>::width>::u32 u32;
  x = smaller(Floats{} + 89.0f, larger(Floats{} - 88.1f, x));
  const float magic = 0x1.8p23f + 127;
  const Floats shifted = x * 1.44269504f + magic;
  const Floats n = shifted - magic;
  Floats r = x - n * 0x1.62ep-1f;  // ln 2 in two parts, the first exact in 12 bits
  r = r - n * 0x1.0bfbe8p-15f;
  const float c2 = 0.50000000500187977f, c3 = 0.16666405302634304496f,
              c4 = 0.041666340142225575983f;
  const float c5 = 0.0083759682263114252871f, c6 = 0.0013942159833661435643f;
  Floats p;
  if constexpr (kFma) {
    p = ((((c6 * r + c5) * r + c4) * r + c3) * r + c2) * r + 1.0000000400388700f;
    p = p * r + 1.0f;
  } else {  // by pairs (Estrin): a step of two operations makes a chain of dependent ones too long
    const Floats r2 = r * r;
    p = (c6 * r2 + (c5 * r + c4)) * (r2 * r2) + ((c3 * r + c2) * r2 + (r + 1.0f));
  }
  return p * (Floats)((u32)shifted << 23);
}

// 2^n in two factors, so that results below the normal range are right.
SEDD_INLINE Doubles exp_lanes(Doubles x) {
  typedef Pack<Lanes<double>::width>::u64 u64;
  x = smaller(Doubles{} + 760.0, larger(Doubles{} - 760.0, x));
  const double round = 0x1.8p52, magic = round + 1023;
  const Doubles n = x * 1.4426950408889634074 + round - round;
  Doubles r = x - n * 0x1.62e42fee00000p-1;
  r = r - n * 0x1.a39ef35793c76p-33;
  Doubles p = Doubles{} + 2.5111203257471138685e-8;
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
  const Doubles half = n * 0.5 + magic, other = n - (half - magic) + magic;
  return p * (Doubles)((u64)half << 52) * (Doubles)((u64)other << 52);
}

// --- log --------------------------------------------------------------------------------------
// ln x = n ln 2 + ln m, m in [sqrt(1/2), sqrt(2)).

constexpr uint32_t kSqrtHalf = 0x3f3504f3;  // the bits of sqrt(1/2)

// For positive normal numbers (relative error 6e-9 before rounding); NaN for all others. With
// f = m - 1, ln m = f - f^2 / 2 + f^3 P(f); P is a minimax polynomial.
SEDD_INLINE Floats log_lanes(Floats x) {
  typedef Lanes<float>::integers i32;
  typedef Pack<Lanes<float>::width>::u32 u32;  // the bits of a negative number may wrap
  const u32 bits = (u32)x;
  const i32 whole = (i32)(bits - kSqrtHalf) >> 23;
  const Floats f = (Floats)(bits - ((u32)whole << 23)) - 1;
  const Floats n = __builtin_convertvector(whole, Floats);
  const Floats f2 = f * f;
  // By pairs (Estrin), which shortens the chain of dependent operations.
  const Floats f4 = f2 * f2;
  const Floats p01 = f * -0.25000821f + 0.33333332f, p23 = f * -0.16623357f + 0.20001227f;
  const Floats p45 = f * -0.13160187f + 0.14201756f, p67 = f * -0.076345046f + 0.12761593f;
  const Floats p = (p67 * f2 + p45) * f4 + (p23 * f2 + p01);
  const Floats log_m = f + f2 * (f * p - 0.5f);
  const Floats result = n * 0x1.62ep-1f + (n * 0x1.0bfbe8p-15f + log_m);
  const Floats checked = result + x * 0;  // NaN where x is infinite or NaN
  return (Floats)((i32)checked | (i32)(x < 0x1p-126f));
}

// For all numbers: ln 0 = -inf, the log of a negative number is NaN; inf and NaN are kept. With
// s = (m - 1) / (m + 1), ln m = 2 artanh(s), by its series (relative error 1e-18).
SEDD_INLINE Doubles log_lanes(Doubles x) {
  const auto tiny = x < 0x1p-1022;  // subnormal
  // n + 1023, shifted without a sign and converted by way of 2^52: AVX2 has neither a signed shift
  // nor a conversion of 64-bit integers.
  typedef Pack<Lanes<double>::width>::u64 u64;
  const u64 bits = (u64)(tiny ? x * 0x1p64 : x);
  const u64 biased = (bits + (0x3ff0000000000000 - 0x3fe6a09e667f3bcd)) >> 52;
  const Doubles exponent = (Doubles)(biased | 0x4330000000000000) - (0x1p52 + 1023);
  const Doubles m = (Doubles)(bits - (biased << 52) + 0x3ff0000000000000);
  const Doubles n = exponent - (tiny ? Doubles{} + 64 : Doubles{});
  const Doubles s = (m - 1) / (m + 1), q = s * s;
  Doubles p = Doubles{} + 1.0 / 21;
  for (int k = 19; k >= 3; k -= 2) p = p * q + 1.0 / k;
  const Doubles log_m = 2 * s + 2 * s * (q * p);
  const Doubles log_x = n * 0x1.62e42fee00000p-1 + (n * 0x1.a39ef35793c76p-33 + log_m);
  const Doubles infinity = Doubles{} + __builtin_inf(), nan = Doubles{} + __builtin_nan("");
  const Doubles positive = x == 0 ? -infinity : x < 0 ? nan : log_x;
  return x < infinity ? positive : x;
}

// --- sums over a row --------------------------------------------------------------------------

// The sum of all lanes, in double.
SEDD_INLINE double total(Floats v) {
  constexpr int half = Lanes<double>::width;
  Pack<half>::f32 parts[2];
  memcpy(parts, &v, sizeof v);
  const Doubles sums =
      __builtin_convertvector(parts[0], Doubles) + __builtin_convertvector(parts[1], Doubles);
  double sum = sums[0];
  for (int j = 1; j < half; ++j) sum += sums[j];
  return sum;
}
SEDD_INLINE double total(Doubles v) {
  double sum = v[0];
  for (int j = 1; j < Lanes<double>::width; ++j) sum += v[j];
  return sum;
}

// The number of elements of a whole vector, as a type.
template <int N>
struct Whole {
  constexpr operator int() const { return N; }
};

template <class C, class T, int N>
SEDD_INLINE typename Lanes<C>::vec load_some(const T* p, Whole<N>) {
  return load<C>(p);
}
template <class C, class T>
SEDD_INLINE typename Lanes<C>::vec load_some(const T* p, int n) {
  return load_tail<C>(p, n);
}
template <class C, int N>
SEDD_INLINE typename Lanes<C>::vec some_lanes(typename Lanes<C>::vec v, Whole<N>, C = 0) {
  return v;
}
template <class C>
SEDD_INLINE typename Lanes<C>::vec some_lanes(typename Lanes<C>::vec v, int n, C other = 0) {
  return first_lanes<C>(v, n, other);
}

// Vectors of a strip (see sum_states).
constexpr int kStrip = 64;

struct Totals {
  double first, second;
};

// Two sums over states in lanes. After at most kBlock states they are added in double.
template <class C>
struct LaneSums {
  static constexpr int64_t kBlock = 2048;
  typename Lanes<C>::vec first = {}, second = {};

  SEDD_INLINE Totals totals() const { return {total(first), total(second)}; }
};

// The sum of the logarithms of positive normal numbers; NaN if there are others. It is that of
// their exponents, and the logarithm of the product of their mantissas, which are in [sqrt(1/2),
// sqrt(2)): 128 of them are a number in range. One rounding a number, as in a sum of logarithms.
struct LaneLogs {
  static constexpr int64_t kBlock = 128 * Lanes<float>::width;
  Floats product = Floats{} + 1, least = Floats{} + 1, not_finite = {};
  Lanes<float>::integers exponents = {};

  SEDD_INLINE void add_log(Floats x) {
    typedef Lanes<float>::integers i32;
    typedef Pack<Lanes<float>::width>::u32 u32;  // the bits of a negative number may wrap
    const u32 bits = (u32)x;
    const i32 exponent = (i32)(bits - kSqrtHalf) >> 23;
    product *= (Floats)(bits - ((u32)exponent << 23));
    exponents += exponent;
    least = smaller(x, least);
    not_finite += x * 0;  // NaN where x is infinite or NaN
  }
  SEDD_INLINE Totals totals() const {
    const Floats whole = __builtin_convertvector(exponents, Floats);
    const Floats logs = log_lanes(product) + not_finite;
    const double all = total(logs) + total(whole) * 0.69314718055994530942;
    return {total((Floats)(least < 0x1p-126f)) == 0 ? all : __builtin_nan(""), 0};
  }
};

// For all n states, calls v = map(y, count) and visit(y, count, v, sums), both of the states y ..
// y + count - 1, and returns the totals of `sums`, LaneSums or LaneLogs. `count` is Whole<width>,
// or an int below it: for the first `few` states, if any, and for the last vector.
//
// `in_strips`: map is called for all vectors of a strip before visit is. One long chain of
// dependent operations per vector fills the processor's scheduler, and few vectors are under way at
// once; two chains do not. Worth it where visit is long: each strip costs some 90 cycles. The next
// strip of `row`, which map reads, comes into the cache meanwhile.
template <class C, bool in_strips, class S = LaneSums<C>, class T, class Map, class Visit>
SEDD_INLINE Totals sum_states(const T* row, int64_t n, int few, const Map& map,
                              const Visit& visit) {
  typedef typename Lanes<C>::vec vec;
  constexpr int width = Lanes<C>::width;
  const Whole<width> whole;
  Totals totals = {0, 0};
  for (int64_t y = 0; y < n;) {
    const int64_t end = y + few + S::kBlock < n ? y + few + S::kBlock : n;
    S sums;
    if (few > 0) visit(y, few, map(y, few), sums);
    y += few, few = 0;
    if constexpr (in_strips) {
      for (; y + kStrip * width <= end; y += kStrip * width) {
        vec strip[kStrip];
        for (int k = 0; k < kStrip; ++k) strip[k] = map(y + k * width, whole);
        for (int k = 0; k < kStrip; ++k) {
          __builtin_prefetch(row + y + (kStrip + k) * width);
          visit(y + k * width, whole, strip[k], sums);
        }
      }
    }
    for (; y + width <= end; y += width) visit(y, whole, map(y, whole), sums);
    if (const int rest = static_cast<int>(end - y)) visit(y, rest, map(y, rest), sums);
    y = end;
    const Totals some = sums.totals();
    totals.first += some.first;
    totals.second += some.second;
  }
  return totals;
}

// --- a gradient row ---------------------------------------------------------------------------

struct NoGradient {};

// The number of elements before the first one at which a vector can be stored past the caches,
// at most n; 0 where that is not wanted.
template <class C, bool past_caches, class G>
SEDD_INLINE int unaligned(const G* grad, int64_t n) {
  constexpr uintptr_t bytes = Lanes<C>::width * sizeof(G);
  const uintptr_t over = reinterpret_cast<uintptr_t>(grad) % bytes;
  const int gap = past_caches && over ? static_cast<int>((bytes - over) / sizeof(G)) : 0;
  return gap < n ? gap : static_cast<int>(n);
}

// Whether rounding to G takes many operations.
template <class G>
constexpr bool kLongRounding = (same<G, BFloat16> && !kHasBFloat16) || (same<G, Half> && !kHasHalf);

// Stores the first `count` lanes as elements of the gradient.
template <class C, bool past_caches, class G, int N>
SEDD_INLINE void store_some(G* grad, typename Lanes<C>::vec v, Whole<N>) {
  const auto elements = rounded<C>(v, static_cast<const G*>(grad));
  if constexpr (past_caches) {
    store_past_caches(grad, elements);
  } else {
    memcpy(grad, &elements, sizeof elements);
  }
}
template <class C, bool past_caches, class G>
SEDD_INLINE void store_some(G* grad, typename Lanes<C>::vec v, int count) {
  store_tail<C>(grad, v, count);
}

}  // namespace
}  // namespace SEDD_ISA
}  // namespace sedd
