// Vectors of floats as wide as the target's registers, and what the row kernels need of them: loads and stores of
// whole and partial vectors of float32 or bfloat16, exp, and horizontal sums in a fixed order. Arithmetic is float32
// whatever the elements are in memory: a kernel is a template over the element type and converts as it loads and stores.
//
// These are GCC vector extensions, which Clang has too: the operators work lane by lane, comparisons give masks, and
// `mask ? a : b` selects. A target without wide registers gets the same results from narrower instructions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "dispatch.h"

MANTOU_NAMESPACE

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;  // SSE2, NEON
#endif

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVector __attribute__((vector_size(LANES * 4)));
typedef float UnalignedVector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const UnalignedVector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<UnalignedVector*>(to) = value; }
inline Vector splat(float value) { return value - Vector{}; }

// ---- bfloat16 -------------------------------------------------------------------------------------------------------

// The upper half of a float32. AVX512-BF16 has an instruction for the conversion, but it flushes subnormal numbers; the
// integer operations here hide behind memory just as well, and give every machine the same bits.
struct bfloat16 {
  uint16_t bits;
};

typedef uint32_t BitsVector __attribute__((vector_size(LANES * 4)));
typedef uint16_t HalfVector __attribute__((vector_size(LANES * 2)));

// Rounds to nearest, ties to even, in the upper half of the result. A NaN stays one.
inline BitsVector round_to_bfloat16(Vector value) {
  const BitsVector bits = (BitsVector)value;
  return value == value ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
}

inline bfloat16 to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);
  return {static_cast<uint16_t>((is_nan ? bits | 0x400000 : rounded) >> 16)};
}

inline float to_float(float value) { return value; }
inline float to_float(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// `value` as an element of type T.
template <typename T>
inline T from_float(float value) {
  if constexpr (std::is_same_v<T, bfloat16>) return to_bfloat16(value);
  else return value;
}

// The conversions between 16 and 32 bits are intrinsics where there are instructions for them: the compilers' own take
// several, and the arithmetic would no longer hide behind the memory. (With a mask of all lanes, since GCC 12 warns of
// an uninitialised register in the others.)
#if defined(__AVX512F__)
constexpr __mmask16 ALL = 0xffff;
#endif

inline Vector load(const bfloat16* from) {
#if defined(__AVX512F__)
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return (Vector)((BitsVector)_mm512_maskz_cvtepu16_epi32(ALL, bits) << 16);
#elif defined(__AVX2__)
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (Vector)((BitsVector)_mm256_cvtepu16_epi32(bits) << 16);
#else
  HalfVector bits;
  std::memcpy(&bits, from, sizeof bits);
  return (Vector)(__builtin_convertvector(bits, BitsVector) << 16);
#endif
}

inline void store(bfloat16* to, Vector value) {
  const BitsVector bits = round_to_bfloat16(value) >> 16;
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_maskz_cvtepi32_epi16(ALL, (__m512i)bits));
#elif defined(__AVX2__)
  const __m256i halves = _mm256_packus_epi32((__m256i)bits, (__m256i)bits);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(_mm256_permute4x64_epi64(halves, 0x08)));
#else
  const HalfVector halves = __builtin_convertvector(bits, HalfVector);
  std::memcpy(to, &halves, sizeof halves);
#endif
}

#if defined(__AVX512F__)
// bfloat16 that only products in hardware will read, which take subnormal numbers for zero: AVX512-BF16's instruction
// may convert to it. (As assembly, since functions for that extension cannot be inlined into others.)
struct HardwareFactor : bfloat16 {};

inline void store(HardwareFactor* to, Vector value) {
  __m256i bits;
  __asm__("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(value));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bits);
}
#endif

// What memory of type T keeps of a value.
template <typename T>
inline Vector rounded_to(Vector value) {
  if constexpr (std::is_same_v<T, bfloat16>) return (Vector)(round_to_bfloat16(value) & 0xffff0000u);
  else return value;
}

// ---- parts ----------------------------------------------------------------------------------------------------------

// How much of a vector is meant: all of it, known when compiling, or the first `count` lanes (1 .. LANES - 1).
struct Whole {};
struct Part {
  int64_t count;
};

#if defined(__AVX512F__)
inline __mmask16 first_lanes(Part part) { return static_cast<__mmask16>((1u << part.count) - 1); }
#endif

// `rest` fills the lanes past a part.
inline Vector load(const float* from, Whole, float = 0.0f) { return load(from); }
inline Vector load(const float* from, Part part, float rest = 0.0f) {
#if defined(__AVX512F__)
  return (Vector)_mm512_mask_loadu_ps((__m512)splat(rest), first_lanes(part), from);
#else
  Vector value = splat(rest);
  std::memcpy(&value, from, static_cast<size_t>(part.count) * sizeof(float));
  return value;
#endif
}

inline Vector load(const bfloat16* from, Whole, float = 0.0f) { return load(from); }
inline Vector load(const bfloat16* from, Part part, float rest = 0.0f) {
#if defined(__AVX512F__)
  const __m256i others = _mm256_set1_epi16(static_cast<short>(to_bfloat16(rest).bits));
  const __m256i bits = _mm256_mask_loadu_epi16(others, first_lanes(part), from);
  return (Vector)((BitsVector)_mm512_maskz_cvtepu16_epi32(ALL, bits) << 16);
#else
  bfloat16 elements[LANES];
  for (bfloat16& element : elements) element = to_bfloat16(rest);
  std::memcpy(elements, from, static_cast<size_t>(part.count) * sizeof(bfloat16));
  return load(elements);
#endif
}

template <typename T>
inline void store(T* to, Vector value, Whole) {
  store(to, value);
}
template <typename T>
inline void store(T* to, Vector value, Part part) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(to, first_lanes(part), (__m512)value);
  } else {
    const __m256i bits = _mm512_maskz_cvtepi32_epi16(ALL, (__m512i)(round_to_bfloat16(value) >> 16));
    _mm256_mask_storeu_epi16(to, first_lanes(part), bits);
  }
#else
  T elements[LANES];
  store(elements, value);
  std::memcpy(to, elements, static_cast<size_t>(part.count) * sizeof(T));
#endif
}

// Two vectors at once, for loops that do not care which elements share a vector: of bfloat16 one takes those at even
// places and the other those at odd ones (the halves of words, little-endian), so that nothing has to be moved.
struct Two {
  Vector even, odd;
};
struct Twice {};

inline Two operator*(Two x, Two y) { return {x.even * y.even, x.odd * y.odd}; }
inline Two operator*(Two x, float y) { return {x.even * y, x.odd * y}; }
inline Two operator-(Two x, float y) { return {x.even - y, x.odd - y}; }

// (There is no rest to fill, but a loop's body says with what.)
inline Two load(const float* from, Twice, float = 0.0f) { return {load(from), load(from + LANES)}; }
inline Two load(const bfloat16* from, Twice, float = 0.0f) {
  BitsVector words;
  std::memcpy(&words, from, sizeof words);
  return {(Vector)(words << 16), (Vector)(words & 0xffff0000u)};
}
inline void store(float* to, Two value, Twice) {
  store(to, value.even);
  store(to + LANES, value.odd);
}
inline void store(bfloat16* to, Two value, Twice) {
  const BitsVector words = round_to_bfloat16(value.even) >> 16 | (round_to_bfloat16(value.odd) & 0xffff0000u);
  std::memcpy(to, &words, sizeof words);
}

// Calls body(element) with an element of the type that `dtype` stands for, so that the body is compiled for each type.
template <typename Body>
inline void for_dtype(int32_t dtype, const Body& body) {
  if (dtype == MANTOU_BFLOAT16) body(bfloat16{});
  else body(float{});
}

// Calls body(i, Whole or Part) for the vectors that start at i = 0, LANES, ... and cover [0, count).
template <typename Body>
inline void for_vectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + LANES <= count; i += LANES) body(i, Whole{});
  if (i < count) body(i, Part{count - i});
}

// The same, two vectors at a time as long as there are so many: body(i, Twice, Whole or Part).
template <typename Body>
inline void for_two_vectors(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + 2 * LANES <= count; i += 2 * LANES) body(i, Twice{});
  for_vectors(count - i, [&](int64_t rest, auto part) { body(i + rest, part); });
}

// The sum of an array, or of its squares, in float64, in a fixed order. Fetching 4 KiB ahead makes it a third faster:
// the hardware's own prefetching stops at the end of each page.
template <bool squares>
inline double sum_double(int64_t count, const float* values) {
  typedef float FloatHalf __attribute__((vector_size(LANES * 2)));
  typedef double DoubleVector __attribute__((vector_size(LANES * 4)));
  DoubleVector low{}, high{};
  for_vectors(count, [&](int64_t i, auto lanes) {
    const Vector value = load(values + i, lanes);
    __builtin_prefetch(values + i + 1024);
    FloatHalf halves[2];
    std::memcpy(halves, &value, sizeof halves);
    const DoubleVector a = __builtin_convertvector(halves[0], DoubleVector);
    const DoubleVector b = __builtin_convertvector(halves[1], DoubleVector);
    low += squares ? a * a : a;
    high += squares ? b * b : b;
  });
  low += high;
  double total = 0.0;
  for (int i = 0; i < LANES / 2; i++) total += low[i];
  return total;
}

// The lanes' sum: halves are folded onto each other, always in this order.
inline float horizontal_sum(Vector value) {
  float lanes[LANES];
  std::memcpy(lanes, &value, sizeof lanes);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
}

inline float horizontal_max(Vector value) {
  float lanes[LANES];
  std::memcpy(lanes, &value, sizeof lanes);
  for (int half = LANES / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

// a where a > b, else b: a NaN in b stays, a NaN in a is dropped.
inline Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
inline Vector maximum(Two a, Vector b) { return maximum(maximum(a.even, a.odd), b); }

// e^x within 1 ulp: 0 for -inf and what underflows, subnormal results included, inf above 88.72, NaN for NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, so that e^x = 2^n e^r. e^r = 1 + r + r^2 q(r), where q minimises the largest
// relative error: 3e-9, a twentieth of an ulp (Remez exchange). Beyond -104 and 89 the result no longer changes.
inline Vector exp(Vector x) {
#if defined(__AVX512F__)
  // One instruction each, which keeps a NaN that is its second operand.
  x = (Vector)_mm512_maskz_max_ps(ALL, (__m512)splat(-104.0f), (__m512)x);
  x = (Vector)_mm512_maskz_min_ps(ALL, (__m512)splat(89.0f), (__m512)x);
#else
  x = x < -104.0f ? splat(-104.0f) : x;
  x = x > 89.0f ? splat(89.0f) : x;
#endif
  // Adding 1.5 * 2^23 rounds to a whole number and leaves that number in the low bits.
  constexpr float ROUND = 12582912.0f;
  const Vector rounded = x * 1.44269504f + ROUND;
  const Vector n = rounded - ROUND;
  // ln 2 in two parts; n times the first (9 bits) is exact.
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector q = splat(1.38145986e-3f);
  q = q * r + 8.36871688e-3f;
  q = q * r + 4.16683880e-2f;
  q = q * r + 1.66665206e-1f;
  q = q * r + 4.99999934e-1f;
  const Vector e = q * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
  return (Vector)_mm512_maskz_scalef_ps(ALL, (__m512)e, (__m512)n);
#else
  // 2^n as two factors: n may lie beyond the exponents of normal numbers, half of it does not.
  const IntVector exponent = (IntVector)rounded - 0x4b400000;
  const IntVector half = exponent >> 1;
  return e * (Vector)((half + 127) << 23) * (Vector)((exponent - half + 127) << 23);
#endif
}

inline Two exp(Two x) { return {exp(x.even), exp(x.odd)}; }

#if defined(__AVX512F__)
// e^(x - y) at half the cost, for what is rounded to bfloat16 then: within 3e-6 of it, beside what an ulp of y makes of it.
// It is 2^floor(z) 2^f with 0 <= f < 1, where the polynomial minimises the largest relative error of 2^f (Remez exchange).
inline Vector coarse_exp(Vector x, Vector y) {
  constexpr float LOG2_E = 1.44269504f;
  const Vector z = x * LOG2_E - y * LOG2_E;
  const Vector f = (Vector)_mm512_reduce_ps((__m512)z, 0x09);
  Vector q = splat(1.35341678e-2f);
  q = q * f + 5.20114601e-2f;
  q = q * f + 2.41442755e-1f;
  q = q * f + 6.93003833e-1f;
  q = q * f + 1.00000262f;
  return (Vector)_mm512_maskz_scalef_ps(ALL, (__m512)q, (__m512)z);
}
#endif

// 1 / (1 + e^-x)
inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exp(-x)); }
inline Two sigmoid(Two x) { return {sigmoid(x.even), sigmoid(x.odd)}; }

// tanh x within 3 ulp: by e^2x where that loses no digits, and near 0 by x + x^3 q(x^2) (Cephes, tanhf.c).
inline Vector tanh(Vector x) {
  const Vector square = x * x;
  Vector q = splat(-5.70498872745e-3f);
  q = q * square + 2.06390887954e-2f;
  q = q * square - 5.37397155531e-2f;
  q = q * square + 1.33314422036e-1f;
  q = q * square - 3.33332819422e-1f;
  const Vector near = x + x * square * q;
  const Vector far = 1.0f - 2.0f / (1.0f + exp(2.0f * x));
  return square < 0.625f * 0.625f ? near : far;
}

}
}  // namespace mantou
