// The vectors of the instruction set for which this file is compiled, and the operations on them
// that the vector extensions of GCC and clang do not have, or that GCC does not compile to the one
// instruction that there is. The first section has the forms for any instruction set; each of the
// others has the instructions of one.
//
// kVectorBytes is the size of a vector register. A vector wider than that is legal, but GCC
// compiles its comparisons and selections to scalar code.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#define SEDD_INLINE inline __attribute__((always_inline))
#define SEDD_INLINE_LAMBDA __attribute__((always_inline))

namespace sedd {
namespace SEDD_ISA {
namespace {

template <int N>
struct Pack {  // N lanes of each width
  typedef float f32 __attribute__((vector_size(4 * N)));
  typedef int32_t i32 __attribute__((vector_size(4 * N)));
  typedef uint32_t u32 __attribute__((vector_size(4 * N)));
  typedef uint16_t u16 __attribute__((vector_size(2 * N)));
  typedef double f64 __attribute__((vector_size(8 * N)));
  typedef int64_t i64 __attribute__((vector_size(8 * N)));
  typedef uint64_t u64 __attribute__((vector_size(8 * N)));
};

// Whether a multiplication and an addition are one instruction.
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool kFma = true;
#else
constexpr bool kFma = false;
#endif

// Whether there are instructions that convert to float16 and bfloat16.
#if defined(__F16C__)
constexpr bool kHasHalf = true;
#else
constexpr bool kHasHalf = false;
#endif
#if defined(__AVX512BF16__)
constexpr bool kHasBFloat16 = true;
#else
constexpr bool kHasBFloat16 = false;
#endif

// --- any instruction set ------------------------------------------------------------------------

// The larger and the smaller lanes of a and b; b where a or b is NaN.
template <class V>
SEDD_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}
template <class V>
SEDD_INLINE V smaller(V a, V b) {
  return a < b ? a : b;
}

// The 64-bit products of the lower halves of 64-bit integers.
template <class V>
SEDD_INLINE V lower_product(V a, V b) {
  return (a & 0xffffffff) * (b & 0xffffffff);
}

// 16-bit integers to 32 bits, and the upper 16 of 32 bits.
template <int N>
SEDD_INLINE typename Pack<N>::u32 widen(typename Pack<N>::u16 v) {
  return __builtin_convertvector(v, typename Pack<N>::u32);
}
template <int N>
SEDD_INLINE typename Pack<N>::u16 upper_half(typename Pack<N>::u32 v) {
  return __builtin_convertvector(v >> 16, typename Pack<N>::u16);
}

// float32 to bfloat16, rounded to nearest even. NaN must be quiet, as the result of every operation
// is: it is cut off, because rounding could carry into its sign.
template <int N>
SEDD_INLINE typename Pack<N>::u16 float_to_bfloat16(typename Pack<N>::f32 v) {
  typedef typename Pack<N>::u32 u32;
  const u32 bits = (u32)v, half = 0x7fff + ((bits >> 16) & 1);
  return upper_half<N>(bits + (half & (u32)(v == v)));
}

// float16 to float32: exponent and mantissa read as a float, then rebiased by 2^112. Exact,
// subnormal numbers included.
template <int N>
SEDD_INLINE typename Pack<N>::f32 half_to_float(typename Pack<N>::u16 v) {
  typedef typename Pack<N>::f32 f32;
  typedef typename Pack<N>::u32 u32;
  const u32 bits = widen<N>(v);
  const f32 magnitude = (f32)((bits & 0x7fff) << 13) * 0x1p112f;
  const u32 special = (u32)((bits & 0x7c00) == 0x7c00) & 0x7f800000u;
  return (f32)((u32)magnitude | special | ((bits & 0x8000) << 16));
}

// float32 to float16, rounded to nearest even.
template <int N>
SEDD_INLINE typename Pack<N>::u16 float_to_half(typename Pack<N>::f32 v) {
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
  return __builtin_convertvector(out | sign, typename Pack<N>::u16);
}

// Elements that are rounded to float32 one by one: only weights are read so.
template <int N>
SEDD_INLINE typename Pack<N>::f32 load_floats(const double* p) {
  typename Pack<N>::f32 v;
  for (int j = 0; j < N; ++j) v[j] = static_cast<float>(p[j]);
  return v;
}

// --- AVX-512 ------------------------------------------------------------------------------------

#if defined(__AVX512F__)

constexpr int kVectorBytes = 64;

SEDD_INLINE Pack<16>::f32 larger(Pack<16>::f32 a, Pack<16>::f32 b) {
  return (Pack<16>::f32)_mm512_max_ps((__m512)a, (__m512)b);
}
SEDD_INLINE Pack<16>::f32 smaller(Pack<16>::f32 a, Pack<16>::f32 b) {
  return (Pack<16>::f32)_mm512_min_ps((__m512)a, (__m512)b);
}
SEDD_INLINE Pack<8>::f64 larger(Pack<8>::f64 a, Pack<8>::f64 b) {
  return (Pack<8>::f64)_mm512_max_pd((__m512d)a, (__m512d)b);
}
SEDD_INLINE Pack<8>::f64 smaller(Pack<8>::f64 a, Pack<8>::f64 b) {
  return (Pack<8>::f64)_mm512_min_pd((__m512d)a, (__m512d)b);
}
SEDD_INLINE Pack<8>::u64 lower_product(Pack<8>::u64 a, Pack<8>::u64 b) {
  return (Pack<8>::u64)_mm512_mul_epu32((__m512i)a, (__m512i)b);
}
template <>
SEDD_INLINE Pack<16>::u32 widen<16>(Pack<16>::u16 v) {
  return (Pack<16>::u32)_mm512_cvtepu16_epi32((__m256i)v);
}
template <>
SEDD_INLINE Pack<16>::u16 upper_half<16>(Pack<16>::u32 v) {
  return (Pack<16>::u16)_mm512_cvtepi32_epi16((__m512i)(v >> 16));
}
#if defined(__AVX512BF16__)
template <>  // stores 0 for numbers below 2^-126
SEDD_INLINE Pack<16>::u16 float_to_bfloat16<16>(Pack<16>::f32 v) {
  return (Pack<16>::u16)_mm512_cvtneps_pbh((__m512)v);
}
#endif
template <>
SEDD_INLINE Pack<16>::f32 half_to_float<16>(Pack<16>::u16 v) {
  return (Pack<16>::f32)_mm512_cvtph_ps((__m256i)v);
}
template <>
SEDD_INLINE Pack<16>::u16 float_to_half<16>(Pack<16>::f32 v) {
  return (Pack<16>::u16)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
}

// --- AVX2 with FMA and F16C ---------------------------------------------------------------------

#elif defined(__AVX2__)

constexpr int kVectorBytes = 32;

SEDD_INLINE Pack<8>::f32 larger(Pack<8>::f32 a, Pack<8>::f32 b) {
  return (Pack<8>::f32)_mm256_max_ps((__m256)a, (__m256)b);
}
SEDD_INLINE Pack<8>::f32 smaller(Pack<8>::f32 a, Pack<8>::f32 b) {
  return (Pack<8>::f32)_mm256_min_ps((__m256)a, (__m256)b);
}
SEDD_INLINE Pack<4>::f64 larger(Pack<4>::f64 a, Pack<4>::f64 b) {
  return (Pack<4>::f64)_mm256_max_pd((__m256d)a, (__m256d)b);
}
SEDD_INLINE Pack<4>::f64 smaller(Pack<4>::f64 a, Pack<4>::f64 b) {
  return (Pack<4>::f64)_mm256_min_pd((__m256d)a, (__m256d)b);
}
SEDD_INLINE Pack<4>::u64 lower_product(Pack<4>::u64 a, Pack<4>::u64 b) {
  return (Pack<4>::u64)_mm256_mul_epu32((__m256i)a, (__m256i)b);
}
template <>
SEDD_INLINE Pack<8>::u32 widen<8>(Pack<8>::u16 v) {
  return (Pack<8>::u32)_mm256_cvtepu16_epi32((__m128i)v);
}
template <>
SEDD_INLINE Pack<8>::u16 upper_half<8>(Pack<8>::u32 v) {
  const __m256i bits = (__m256i)(v >> 16);
  return (Pack<8>::u16)_mm_packus_epi32(_mm256_castsi256_si128(bits),
                                        _mm256_extracti128_si256(bits, 1));
}
template <>
SEDD_INLINE Pack<8>::f32 half_to_float<8>(Pack<8>::u16 v) {
  return (Pack<8>::f32)_mm256_cvtph_ps((__m128i)v);
}
template <>
SEDD_INLINE Pack<8>::u16 float_to_half<8>(Pack<8>::f32 v) {
  return (Pack<8>::u16)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
}

// --- SSE2 ---------------------------------------------------------------------------------------

#else

constexpr int kVectorBytes = 16;  // of NEON, too

#if defined(__SSE2__)
SEDD_INLINE Pack<4>::f32 larger(Pack<4>::f32 a, Pack<4>::f32 b) {
  return (Pack<4>::f32)_mm_max_ps((__m128)a, (__m128)b);
}
SEDD_INLINE Pack<4>::f32 smaller(Pack<4>::f32 a, Pack<4>::f32 b) {
  return (Pack<4>::f32)_mm_min_ps((__m128)a, (__m128)b);
}
SEDD_INLINE Pack<2>::f64 larger(Pack<2>::f64 a, Pack<2>::f64 b) {
  return (Pack<2>::f64)_mm_max_pd((__m128d)a, (__m128d)b);
}
SEDD_INLINE Pack<2>::f64 smaller(Pack<2>::f64 a, Pack<2>::f64 b) {
  return (Pack<2>::f64)_mm_min_pd((__m128d)a, (__m128d)b);
}
SEDD_INLINE Pack<2>::u64 lower_product(Pack<2>::u64 a, Pack<2>::u64 b) {
  return (Pack<2>::u64)_mm_mul_epu32((__m128i)a, (__m128i)b);
}
template <>
SEDD_INLINE Pack<4>::u32 widen<4>(Pack<4>::u16 v) {
  __m128i bits = _mm_setzero_si128();
  memcpy(&bits, &v, sizeof v);
  return (Pack<4>::u32)_mm_unpacklo_epi16(bits, _mm_setzero_si128());
}
template <>
SEDD_INLINE Pack<4>::u16 upper_half<4>(Pack<4>::u32 v) {
  const __m128i bits = _mm_srai_epi32((__m128i)v, 16);  // signed, as the next instruction wants it
  const __m128i packed = _mm_packs_epi32(bits, bits);
  Pack<4>::u16 out;
  memcpy(&out, &packed, sizeof out);
  return out;
}
#endif

#endif

// --- streaming ----------------------------------------------------------------------------------

// Stores past the caches: memory is written without being read first. For results larger than the
// caches; `p` must be aligned to the size of the vector.
template <class V>
SEDD_INLINE void store_past_caches(void* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof v == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
#if defined(__AVX__)
  if constexpr (sizeof v == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)v);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof v == 16) return _mm_stream_si128((__m128i*)p, (__m128i)v);
#endif
#if defined(__x86_64__)
  if constexpr (sizeof v == 8) {
    long long bits;
    memcpy(&bits, &v, sizeof bits);
    return _mm_stream_si64((long long*)p, bits);
  }
#endif
  memcpy(p, &v, sizeof v);
}

SEDD_INLINE void end_of_stream() {  // before another thread reads
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace
}  // namespace SEDD_ISA
}  // namespace sedd
