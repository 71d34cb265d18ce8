// Products of bfloat16 matrices with instructions that multiply pairs: vdpbf16ps of AVX512-BF16 and the tiles of AMX.
// Both add a0 b0 + a1 b1 to a float32 sum, so op(A) and op(B) are packed in words of two elements that follow each other
// in k. Otherwise this is the blocking of matmul.cpp, with a unit (Dots or Tiles) for the strips, panels and tiles:
//
//   ROWS x COLUMNS   the tile of C that one call of `multiply` computes
//   STEP             pairs of k that it takes at once; shorter blocks are packed with zeros behind them
//   pack_rows        a strip of ROWS rows of op(A)
//   multiply         C tile (+)= strip * panel, where a panel is [pairs, COLUMNS] words for both units
//
// C in bfloat16 is rounded from float32 sums over all of k, which lie in scratch memory until the last block.
#pragma once

#if defined(__AVX512F__)

#include <immintrin.h>

#include "amx.h"
#include "matmul.h"

MANTOU_NAMESPACE

// ---- packing --------------------------------------------------------------------------------------------------------

// The first `count` <= 32 elements at `from`, zeros after them.
inline __m512i load_elements(const bfloat16* from, int64_t count) {
  if (count >= 32) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi16((1u << count) - 1, from);
}

// 16 rows, of which `rows` exist, by 16 pairs of k, of which `k` elements exist, transposed: block[pair] holds the rows.
inline void load_transposed(int64_t rows, int64_t k, const bfloat16* from, int64_t stride, Vector (&block)[LANES]) {
  if (rows == LANES && k == 32) {
    MANTOU_UNROLL for (int i = 0; i < LANES; i++) block[i] = (Vector)_mm512_loadu_si512(from + i * stride);
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
  for (int64_t r = 0; r < rows; r += LANES)
    for (int64_t p = 0; p < k; p += 32) {
      const int64_t elements = smaller(32, k - p);
      Vector block[LANES];
      load_transposed(smaller(LANES, rows - r), elements, from + r * stride + p, stride, block);
      float* const to = packed + p / 2 * WIDTH + r;
      for (int64_t pair = 0; pair < (elements + 1) / 2; pair++) store(to + pair * WIDTH, block[pair]);
    }
}

// The same where the rows' elements of one k lie in one piece, `stride` from those of the next k.
template <int WIDTH>
void pack_interleaved(int64_t rows, int64_t k, const bfloat16* from, int64_t stride, float* packed) {
  static_assert(WIDTH <= 32, "one register");
  for (int64_t p = 0; p < k; p += 2, from += 2 * stride, packed += WIDTH) {
    Vector low, high;
    load_interleaved(rows, from, p + 1 < k ? from + stride : nullptr, low, high);
    store(packed, low);
    if (WIDTH > LANES) store(packed + LANES, high);
  }
}

// ---- AVX512-BF16 ----------------------------------------------------------------------------------------------------

struct Dots {
  static constexpr int ROWS = 14, COLUMNS = 32, STEP = 1;

  // The strip is [pairs, ROWS].
  static void pack_rows(bool transposed, int64_t rows, int64_t k, const bfloat16* a, int64_t lda, float* strip) {
    if (transposed) pack_interleaved<ROWS>(rows, k, a, lda, strip);
    else pack_transposed<ROWS>(rows, k, a, lda, strip);
  }

  __attribute__((target("avx512bf16"))) void multiply(int64_t pairs, const float* strip, const float* panel, float* c,
                                                      int64_t ldc, bool accumulate) const {
    __m512 sum[ROWS][2];
    MANTOU_UNROLL for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int64_t p = 0; p < pairs; p++, strip += ROWS, panel += COLUMNS) {
      const __m512bh b0 = (__m512bh)_mm512_loadu_ps(panel), b1 = (__m512bh)_mm512_loadu_ps(panel + 16);
      MANTOU_UNROLL for (int r = 0; r < ROWS; r++) {
        const __m512bh a = (__m512bh)_mm512_set1_ps(strip[r]);
        sum[r][0] = _mm512_dpbf16_ps(sum[r][0], a, b0);
        sum[r][1] = _mm512_dpbf16_ps(sum[r][1], a, b1);
      }
    }
    MANTOU_UNROLL for (int r = 0; r < ROWS; r++, c += ldc) {
      if (accumulate) {
        sum[r][0] = _mm512_add_ps(sum[r][0], _mm512_loadu_ps(c));
        sum[r][1] = _mm512_add_ps(sum[r][1], _mm512_loadu_ps(c + 16));
      }
      _mm512_storeu_ps(c, sum[r][0]);
      _mm512_storeu_ps(c + 16, sum[r][1]);
    }
  }
};

// ---- AMX ------------------------------------------------------------------------------------------------------------

// Registers 0 to 3 hold a tile of 32 x 32 of C, 4 and 5 the two halves of a step of the strip, 6 and 7 of the panel.
template <typename Registers>
struct Tiles {
  static constexpr int ROWS = 32, COLUMNS = 32, STEP = 16;
  Registers registers;

  // The strip is [pairs / 16, ROWS, 16]: one step after the other, rows within it.
  static void pack_rows(bool transposed, int64_t rows, int64_t k, const bfloat16* a, int64_t lda, float* strip) {
    for (int64_t p = 0; p < k; p += 32, strip += 16 * ROWS) {
      const int64_t elements = smaller(32, k - p);
      if (!transposed) {
        for (int64_t r = 0; r < rows; r++) _mm512_storeu_si512(strip + r * 16, load_elements(a + r * lda + p, elements));
        continue;
      }
      Vector low[LANES] = {}, high[LANES] = {};
      for (int64_t e = 0; e < elements; e += 2) {
        const bfloat16* const first = a + (p + e) * lda;
        load_interleaved(rows, first, e + 1 < elements ? first + lda : nullptr, low[e / 2], high[e / 2]);
      }
      transpose(low);
      transpose(high);
      for (int64_t r = 0; r < LANES; r++) {
        store(strip + r * 16, low[r]);
        store(strip + (r + 16) * 16, high[r]);
      }
    }
  }

  void multiply(int64_t pairs, const float* strip, const float* panel, float* c, int64_t ldc, bool accumulate) {
    const int64_t stride = ldc * 4;
    if (accumulate) {
      registers.template load<0>(c, stride);
      registers.template load<1>(c + 16, stride);
      registers.template load<2>(c + 16 * ldc, stride);
      registers.template load<3>(c + 16 * ldc + 16, stride);
    } else {
      registers.template zero<0>();
      registers.template zero<1>();
      registers.template zero<2>();
      registers.template zero<3>();
    }
    for (int64_t p = 0; p < pairs; p += STEP, strip += STEP * ROWS, panel += STEP * COLUMNS) {
      registers.template load<4>(strip, 64);
      registers.template load<6>(panel, COLUMNS * 4);
      registers.template load<7>(panel + 16, COLUMNS * 4);
      registers.template load<5>(strip + 16 * 16, 64);
      registers.template multiply<0, 4, 6>();
      registers.template multiply<1, 4, 7>();
      registers.template multiply<2, 5, 6>();
      registers.template multiply<3, 5, 7>();
    }
    registers.template store<0>(c, stride);
    registers.template store<1>(c + 16, stride);
    registers.template store<2>(c + 16 * ldc, stride);
    registers.template store<3>(c + 16 * ldc + 16, stride);
  }
};

// Pairs that a depth of k elements is packed in.
template <typename Unit>
constexpr int64_t pairs_of(int64_t k) {
  return round_up((k + 1) / 2, Unit::STEP);
}

// A panel of `columns` <= COLUMNS columns of op(B), [pairs_of(k), COLUMNS], with zeros behind the last k.
template <typename Unit>
void pack_panel(bool transposed, int64_t columns, int64_t k, const bfloat16* b, int64_t ldb, float* panel) {
  if (transposed) pack_transposed<Unit::COLUMNS>(columns, k, b, ldb, panel);
  else pack_interleaved<Unit::COLUMNS>(columns, k, b, ldb, panel);
  const int64_t packed = (k + 1) / 2 * Unit::COLUMNS;
  std::memset(panel + packed, 0, static_cast<size_t>(pairs_of<Unit>(k) * Unit::COLUMNS - packed) * sizeof(float));
}

// ---- one thread's rectangle -----------------------------------------------------------------------------------------

// Blocks of at most DEPTH pairs of k, MOST_ROWS rows and MOST_COLUMNS columns.
constexpr int64_t DEPTH = 384, MOST_ROWS = 896, MOST_COLUMNS = 512;

// C [rows, columns] (+)= the tile of sums.
template <typename Out>
void write_tile(int64_t rows, int64_t columns, const float* sums, int64_t ld, bool accumulate, Out* c, int64_t ldc) {
  for (int64_t r = 0; r < rows; r++, sums += ld, c += ldc)
    for_vectors(columns, [&](int64_t j, auto part) {
      const Vector sum = load(sums + j, part);
      store(c + j, accumulate ? load(c + j, part) + sum : sum, part);
    });
}

template <typename Unit, typename Out>
void multiply_rectangle(const Product<bfloat16, Out>& product, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                        float* scratch) {
  constexpr int64_t ROWS = Unit::ROWS, COLUMNS = Unit::COLUMNS;
  static_assert(MOST_ROWS % ROWS == 0 && MOST_COLUMNS % COLUMNS == 0 && DEPTH % Unit::STEP == 0, "whole tiles");
  static_assert((MOST_ROWS + MOST_COLUMNS) * DEPTH + LANES + MOST_ROWS * MOST_COLUMNS <= SCRATCH_BYTES / 4, "it fits");
  float* const panels = scratch;
  float* const strips = panels + MOST_COLUMNS * DEPTH;
  float* const sums = strips + MOST_ROWS * DEPTH + LANES;  // a strip may spill one vector past its end

  Unit unit;
  // Blocks of k of nearly equal depth, in units of 32 elements, which are whole pairs and whole steps.
  const int64_t units = (product.k + 31) / 32, blocks = (units * 16 + DEPTH - 1) / DEPTH;
  for (int64_t j0 = n0; j0 < n1; j0 += MOST_COLUMNS)
    for (int64_t i0 = m0; i0 < m1; i0 += MOST_ROWS)
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t i1 = smaller(i0 + MOST_ROWS, m1), j1 = smaller(j0 + MOST_COLUMNS, n1);
        const int64_t p = units * block / blocks * 32;
        const int64_t depth = smaller(units * (block + 1) / blocks * 32, product.k) - p;
        const int64_t pairs = pairs_of<Unit>(depth);
        const bool last = block == blocks - 1;
        // With one block of k, one block of rows follows the other on the same panels.
        if (blocks > 1 || i0 == m0)
          for (int64_t j = j0; j < j1; j += COLUMNS)
            pack_panel<Unit>(product.transpose_b, smaller(COLUMNS, j1 - j), depth,
                             product.b + (product.transpose_b ? j * product.ldb + p : p * product.ldb + j), product.ldb,
                             panels + (j - j0) * pairs);
        for (int64_t i = i0; i < i1; i += ROWS) {
          const int64_t rows = smaller(ROWS, i1 - i);
          float* const strip = strips + (i - i0) * pairs;
          Unit::pack_rows(product.transpose_a, rows, depth,
                          product.a + (product.transpose_a ? p * product.lda + i : i * product.lda + p), product.lda,
                          strip);
          for (int64_t j = j0; j < j1; j += COLUMNS) {
            const float* const panel = panels + (j - j0) * pairs;
            const int64_t columns = smaller(COLUMNS, j1 - j);
            Out* const c = product.c + i * product.ldc + j;
            if (last || std::is_same_v<Out, float>) prefetch_tile(rows, columns, c, product.ldc);
            if constexpr (std::is_same_v<Out, float>) {
              if (rows == ROWS && columns == COLUMNS) {
                unit.multiply(pairs, strip, panel, c, product.ldc, product.accumulate || block > 0);
                continue;
              }
            }
            // Sums that are not finished have a place of their own.
            float* const sum = blocks == 1 ? sums : sums + (i - i0) * MOST_COLUMNS + (j - j0) * ROWS;
            unit.multiply(pairs, strip, panel, sum, COLUMNS, block > 0);
            if (last) write_tile(rows, columns, sum, COLUMNS, product.accumulate, c, product.ldc);
          }
        }
      }
}

template <typename Unit, typename Out>
void multiply_in_pairs(const mantou_context* context, const Product<bfloat16, Out>& product) {
  for_rectangles<Unit::ROWS, Unit::COLUMNS>(
      context, product.m, product.n, product.k, [&](int64_t m0, int64_t m1, int64_t n0, int64_t n1, int thread) {
        multiply_rectangle<Unit>(product, m0, m1, n0, n1, context->thread_scratch<float>(thread));
      });
}

// ---- which unit -----------------------------------------------------------------------------------------------------

template <typename T>
struct TypeOf {
  using type = T;
};

// Calls body(TypeOf<Unit>) with the context's unit; false where it has none.
template <typename Body>
bool with_pairs(const mantou_context* context, const Body& body) {
  switch (context->instructions->unit) {
    case ProductUnit::DOTS: body(TypeOf<Dots>{}); return true;
    case ProductUnit::TILES: body(TypeOf<Tiles<HardwareTiles>>{}); return true;
    case ProductUnit::TILE_MODEL: body(TypeOf<Tiles<ModelTiles>>{}); return true;
    case ProductUnit::VECTORS: break;
  }
  return false;
}

}
}  // namespace mantou

#endif
