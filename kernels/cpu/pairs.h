// For products of pairs (matmul_bf16.h): packs bfloat16 matrices in words of two elements that follow each other in k, and
// writes tiles of sums as either type.
#pragma once

#if defined(__AVX512F__)

#include <immintrin.h>

#include "tile.h"

MANTOU_NAMESPACE

// ---- packing --------------------------------------------------------------------------------------------------------

// The first `count` <= 32 elements at `from`, zeros after them.
inline __m512i load_elements(const bfloat16* from, int64_t count) {
  if (count >= 32) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi16((1u << count) - 1, from);
}

// GROUP rows, of which `rows` exist, by 16 pairs of k, of which `k` elements exist, transposed: block[pair] holds the
// rows.
template <int GROUP>
void load_transposed(int64_t rows, int64_t k, const bfloat16* from, int64_t stride, Vector (&block)[LANES]) {
  if (rows == GROUP && k == 32) {
    MANTOU_UNROLL for (int i = 0; i < LANES; i++)
      block[i] = i < GROUP ? (Vector)_mm512_loadu_si512(from + i * stride) : Vector{};
  } else {
    for (int64_t i = 0; i < LANES; i++) block[i] = i < rows ? (Vector)load_elements(from + i * stride, k) : Vector{};
  }
  transpose(block);
}

// Two rows of `columns` <= 32 elements, of which the second may be null, in pairs: columns 0 .. 15 and 16 .. 31.
inline void load_interleaved(int64_t columns, const bfloat16* first, const bfloat16* second, Vector& low, Vector& high) {
  const __m512i a = load_elements(first, columns), b = second ? load_elements(second, columns) : _mm512_setzero_si512();
  alignas(64) static constexpr uint16_t ORDER[64] = {
      0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39, 8,  40, 9,  41, 10, 42,
      11, 43, 12, 44, 13, 45, 14, 46, 15, 47, 16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53,
      22, 54, 23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
  low = (Vector)_mm512_permutex2var_epi16(a, _mm512_load_si512(ORDER), b);
  high = (Vector)_mm512_permutex2var_epi16(a, _mm512_load_si512(ORDER + 32), b);
}

// [pairs, WIDTH] words of `rows` <= WIDTH rows with k elements each; k lies in one piece. Where WIDTH is not a multiple
// of LANES, a pair spills into the next one, which is written after it.
template <int WIDTH>
void pack_transposed(int64_t rows, int64_t k, const bfloat16* from, int64_t stride, float* packed) {
  constexpr int GROUP = WIDTH < LANES ? WIDTH : LANES;
  for (int64_t r = 0; r < rows; r += GROUP)
    for (int64_t p = 0; p < k; p += 32) {
      const int64_t elements = smaller(32, k - p);
      Vector block[LANES];
      load_transposed<GROUP>(smaller(GROUP, rows - r), elements, from + r * stride + p, stride, block);
      float* const to = packed + p / 2 * WIDTH + r;
      if (elements == 32) {
        MANTOU_UNROLL for (int pair = 0; pair < LANES; pair++) store(to + pair * WIDTH, block[pair]);
      } else {
        for (int64_t pair = 0; pair < (elements + 1) / 2; pair++) store(to + pair * WIDTH, block[pair]);
      }
    }
}

// The same where the rows' elements of one k lie in one piece, `stride` from those of the next k. More than WIDTH rows
// become several groups, `pairs` long, one behind the other: side by side they use whole cache lines of what they read,
// which the hardware does not foresee, as these lines are `stride` apart.
template <int WIDTH>
void pack_interleaved(int64_t rows, int64_t k, const bfloat16* from, int64_t stride, float* packed, int64_t pairs = 0) {
  static_assert(WIDTH <= 32, "one register");
  constexpr int64_t ROWS_AHEAD = 24, LINE = 32;
  for (int64_t p = 0; p < k; p += 2, from += 2 * stride, packed += WIDTH) {
    for (int64_t r = 0; rows > WIDTH && r < rows + LINE - 1; r += LINE) {
      __builtin_prefetch(from + ROWS_AHEAD * stride + r);
      __builtin_prefetch(from + (ROWS_AHEAD + 1) * stride + r);
    }
    for (int64_t r = 0; r < rows; r += WIDTH) {
      Vector low, high;
      load_interleaved(smaller(WIDTH, rows - r), from + r, p + 1 < k ? from + stride + r : nullptr, low, high);
      float* const to = packed + r * pairs;
      if constexpr (WIDTH < LANES) store(to, low, Part{WIDTH});
      else store(to, low);
      if constexpr (WIDTH > LANES) store(to + LANES, high);
    }
  }
}

// LANES words of the elements of two rows, which products alone will read.
template <typename Factor>
inline void store_pairs(float* to, Vector first, Vector second) {
  if constexpr (std::is_same_v<Factor, HardwareFactor>) {
    alignas(64) static constexpr uint16_t ORDER[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    __m512i bits;  // first's, then second's
    __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(bits) : "v"(first), "v"(second));
    _mm512_storeu_si512(to, _mm512_maskz_permutexvar_epi16(~0u, _mm512_load_si512(ORDER), bits));
  } else {
    store(to, (Vector)(round_to_bfloat16(first) >> 16 | (round_to_bfloat16(second) & 0xffff0000u)));
  }
}

// ---- tiles ----------------------------------------------------------------------------------------------------------

// C [rows, columns] (+)= the tile of sums.
template <typename Out>
void write_tile(int64_t rows, int64_t columns, const float* sums, int64_t ld, bool accumulate, Out* c, int64_t ldc) {
  for (int64_t r = 0; r < rows; r++, sums += ld, c += ldc)
    for_vectors(columns, [&](int64_t j, auto part) {
      const Vector sum = load(sums + j, part);
      store(c + j, accumulate ? load(c + j, part) + sum : sum, part);
    });
}

}
}  // namespace mantou

#endif
