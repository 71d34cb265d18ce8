// Products of bfloat16 matrices with instructions that multiply pairs: vdpbf16ps of AVX512-BF16 and the tiles of AMX.
// Both add a0 b0 + a1 b1 to a float32 sum, so op(A) and op(B) are packed in words of two elements that follow each other
// in k. Otherwise this is the blocking of matmul.cpp, with a unit (Dots or Tiles) for the strips, panels and tiles:
//
//   ROWS x COLUMNS   the tile of C that one call of `multiply` computes
//   LEAST_ROWS       threads get multiples of it; tiles of fewer rows than ROWS take less time where it is 1
//   LEAST_COLUMNS    a tile may begin at any multiple of it within a panel, and have as many columns
//   STEP             pairs of k that it takes at once; shorter blocks are packed with zeros behind them
//   Factor           how a factor lies in memory that was computed for a product alone
//   pack_rows        a strip of ROWS rows of op(A)
//   pack_columns     TOGETHER strips, one behind the other, where these rows are columns of A
//   multiply         whole tile of float32 (+)= strip * panel, where a panel is [pairs, COLUMNS] words for both units
//   finish           C [rows, columns] (+)= strip * panel + sums, of any type and where only a part of the tile exists;
//                    `sums` [ROWS, COLUMNS], which may be null, are of earlier blocks of k and may be overwritten
//   READS_ROWS       whether it can do without packing A: rows with an even k by `finish_rows`, and rows of A and of
//                    B^T by `inner_products`
//
// C in bfloat16 is rounded from float32 sums over all of k, which lie in scratch memory until the last block.
#pragma once

#if defined(__AVX512F__)

#include "amx.h"
#include "matmul.h"
#include "pairs.h"

MANTOU_NAMESPACE

// ---- AVX512-BF16 ----------------------------------------------------------------------------------------------------

struct Dots {
  using Factor = HardwareFactor;
  static constexpr int ROWS = 14, LEAST_ROWS = 1, COLUMNS = 32, LEAST_COLUMNS = 16, STEP = 1, TOGETHER = 8;
  static constexpr bool READS_ROWS = true;

  // The strip is [pairs, ROWS].
  static void pack_rows(bool transposed, int64_t rows, int64_t k, const bfloat16* a, int64_t lda, float* strip) {
    if (transposed) pack_interleaved<ROWS>(rows, k, a, lda, strip);
    else pack_transposed<ROWS>(rows, k, a, lda, strip);
  }

  static void pack_columns(int64_t rows, int64_t k, const bfloat16* a, int64_t lda, float* strips, int64_t pairs) {
    pack_interleaved<ROWS>(rows, k, a, lda, strips, pairs);
  }

  void multiply(int64_t pairs, const float* strip, const float* panel, float* c, int64_t ldc, bool accumulate) const {
    kernel<false, ROWS, 2>(pairs, strip, 0, panel, nullptr, COLUMNS, c, ldc, accumulate);
  }

  template <typename Out>
  void finish(int64_t rows, int64_t columns, int64_t pairs, const float* strip, const float* panel, float* sums, Out* c,
              int64_t ldc, bool accumulate) const {
    kernel_of<false, Out>(rows, columns)(pairs, strip, 0, panel, sums, columns, c, ldc, accumulate);
  }

  // The same with rows of A, `lda` apart, as they are instead of a strip.
  template <typename Out>
  static void finish_rows(int64_t rows, int64_t columns, int64_t pairs, const bfloat16* a, int64_t lda,
                          const float* panel, const float* sums, Out* c, int64_t ldc, bool accumulate) {
    kernel_of<true, Out>(rows, columns)(pairs, a, lda, panel, sums, columns, c, ldc, accumulate);
  }

  // As in matmul.cpp: c[i * ldc + j] (+)= x[i] . w[j] for ROWS rows of x and `count` <= LANES of w.
  template <int ROWS, typename Out>
  __attribute__((target("avx512bf16"))) static void inner_products(int64_t count, int64_t k, const bfloat16* x,
                                                                   int64_t ldx, const bfloat16* w, int64_t ldw, Out* c,
                                                                   int64_t ldc, bool accumulate) {
    constexpr int CHAINS = 4, ELEMENTS = 2 * LANES;
    Vector sums[ROWS][LANES] = {};
    for (int64_t j = 0; j < count; j++, w += ldw) {
      __m512 sum[ROWS][CHAINS] = {};
      int64_t p = 0;
      for (; p + CHAINS * ELEMENTS <= k; p += CHAINS * ELEMENTS)
        MANTOU_UNROLL for (int v = 0; v < CHAINS; v++) {
          const int64_t at = p + v * ELEMENTS;
          __builtin_prefetch(reinterpret_cast<const char*>(w + at) + AHEAD);
          const __m512bh weight = (__m512bh)_mm512_loadu_si512(w + at);
          MANTOU_UNROLL for (int i = 0; i < ROWS; i++)
            sum[i][v] = _mm512_dpbf16_ps(sum[i][v], (__m512bh)_mm512_loadu_si512(x + i * ldx + at), weight);
        }
      for (; p < k; p += ELEMENTS) {
        const __m512bh weight = (__m512bh)load_elements(w + p, k - p);
        MANTOU_UNROLL for (int i = 0; i < ROWS; i++)
          sum[i][0] = _mm512_dpbf16_ps(sum[i][0], (__m512bh)load_elements(x + i * ldx + p, k - p), weight);
      }
      MANTOU_UNROLL for (int i = 0; i < ROWS; i++)
        sums[i][j] = ((Vector)sum[i][0] + (Vector)sum[i][1]) + ((Vector)sum[i][2] + (Vector)sum[i][3]);
    }
    write_inner_products(count, sums, c, ldc, accumulate);
  }

 private:
  // A tile of R rows and V vectors, of which the last may lack columns; `sums` as for finish. The strip is packed, or
  // rows of A (A_IN_ROWS), `lda` elements apart.
  template <bool A_IN_ROWS, int R, int V, typename Out>
  __attribute__((target("avx512bf16"))) static void kernel(int64_t pairs, const void* strip, int64_t lda,
                                                           const float* panel, const float* sums, int64_t columns,
                                                           Out* c, int64_t ldc, bool accumulate) {
    const char* words = static_cast<const char*>(strip);
    const int64_t row = A_IN_ROWS ? 2 * lda : 4;
    __m512 sum[R][V];
    MANTOU_UNROLL for (int r = 0; r < R; r++) {
      MANTOU_UNROLL for (int v = 0; v < V; v++) sum[r][v] = _mm512_setzero_ps();
    }
    for (int64_t p = 0; p < pairs; p++, words += A_IN_ROWS ? 4 : 4 * ROWS, panel += COLUMNS) {
      __m512bh b[V];
      MANTOU_UNROLL for (int v = 0; v < V; v++) b[v] = (__m512bh)_mm512_loadu_ps(panel + v * LANES);
      MANTOU_UNROLL for (int r = 0; r < R; r++) {
        int32_t pair;
        std::memcpy(&pair, words + r * row, sizeof pair);
        const __m512bh a = (__m512bh)_mm512_set1_epi32(pair);
        MANTOU_UNROLL for (int v = 0; v < V; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], a, b[v]);
      }
    }
    if (sums) {
      MANTOU_UNROLL for (int r = 0; r < R; r++) {
        MANTOU_UNROLL for (int v = 0; v < V; v++)
          sum[r][v] = _mm512_add_ps(_mm512_loadu_ps(sums + r * COLUMNS + v * LANES), sum[r][v]);
      }
    }
    const auto write = [=](Out* to, __m512 value, auto part) {
      store(to, accumulate ? load(to, part) + (Vector)value : (Vector)value, part);
    };
    if (columns < V * LANES) {
      const Part rest{columns - (V - 1) * LANES};
      MANTOU_UNROLL for (int r = 0; r < R; r++) {
        MANTOU_UNROLL for (int v = 0; v < V - 1; v++) write(c + r * ldc + v * LANES, sum[r][v], Whole{});
        write(c + r * ldc + (V - 1) * LANES, sum[r][V - 1], rest);
      }
      return;
    }
    if constexpr (V == 2 && std::is_same_v<Out, bfloat16>) {
      // vdpbf16ps has flushed subnormal sums, so that it does not matter that this conversion would.
      if (!accumulate) {
        MANTOU_UNROLL for (int r = 0; r < R; r++)
          _mm512_storeu_si512(c + r * ldc, (__m512i)_mm512_cvtne2ps_pbh(sum[r][1], sum[r][0]));
        return;
      }
    }
    MANTOU_UNROLL for (int r = 0; r < R; r++) {
      MANTOU_UNROLL for (int v = 0; v < V; v++) write(c + r * ldc + v * LANES, sum[r][v], Whole{});
    }
  }

  template <typename Out>
  using Kernel = void (*)(int64_t, const void*, int64_t, const float*, const float*, int64_t, Out*, int64_t, bool);
  template <typename Out>
  struct Kernels {
    Kernel<Out> of[2 * ROWS];  // of[2 * (rows - 1) + vectors - 1]
  };
  template <bool A_IN_ROWS, typename Out, int... I>
  static constexpr Kernels<Out> kernels(std::integer_sequence<int, I...>) {
    return {{kernel<A_IN_ROWS, I / 2 + 1, I % 2 + 1, Out>...}};
  }
  template <bool A_IN_ROWS, typename Out>
  static Kernel<Out> kernel_of(int64_t rows, int64_t columns) {
    static constexpr Kernels<Out> KERNELS = kernels<A_IN_ROWS, Out>(std::make_integer_sequence<int, 2 * ROWS>());
    return KERNELS.of[2 * (rows - 1) + (columns > LANES)];
  }
};

// ---- AMX ------------------------------------------------------------------------------------------------------------

// Registers 0 to 3 hold a tile of 32 x 32 of C, 4 and 5 the two halves of a step of the strip, 6 and 7 of the panel.
template <typename Registers>
struct Tiles {
  static constexpr int ROWS = 32, LEAST_ROWS = 32, COLUMNS = 32, LEAST_COLUMNS = 32, STEP = 16, TOGETHER = 1;
  static constexpr bool READS_ROWS = false;
  using Factor = typename Registers::Factor;
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

  static void pack_columns(int64_t rows, int64_t k, const bfloat16* a, int64_t lda, float* strip, int64_t) {
    pack_rows(true, rows, k, a, lda, strip);
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

  template <typename Out>
  void finish(int64_t rows, int64_t columns, int64_t pairs, const float* strip, const float* panel, float* sums, Out* c,
              int64_t ldc, bool accumulate) {
    if constexpr (std::is_same_v<Out, float>) {
      if (!sums && rows == ROWS && columns == COLUMNS) return multiply(pairs, strip, panel, c, ldc, accumulate);
    }
    alignas(64) float own[ROWS * COLUMNS];
    float* const sum = sums ? sums : own;
    multiply(pairs, strip, panel, sum, COLUMNS, sums != nullptr);
    write_tile(rows, columns, sum, COLUMNS, accumulate, c, ldc);
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

// Blocks of at most DEPTH pairs of k and MOST_COLUMNS columns: panels that stay in the second-level cache.
constexpr int64_t DEPTH = 384, MOST_COLUMNS = 512;

// Rows [m0, m1) and columns [n0, n1) of C. Packed strips stay for all blocks of columns, unless sums have to wait for
// more blocks of k and C, being bfloat16, cannot hold them: then these, tile after tile, take the strips' place.
template <typename Unit, typename Out>
void multiply_rectangle(const Product<bfloat16, Out>& product, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                        float* scratch) {
  constexpr int64_t ROWS = Unit::ROWS, COLUMNS = Unit::COLUMNS, TOGETHER = Unit::TOGETHER;
  static_assert(MOST_COLUMNS % COLUMNS == 0 && DEPTH % Unit::STEP == 0, "whole tiles");
  // Blocks of k of nearly equal depth, in units of 32 elements, which are whole pairs and whole steps.
  const int64_t units = (product.k + 31) / 32, blocks = (units * 16 + DEPTH - 1) / DEPTH;
  const int64_t most_pairs = (units + blocks - 1) / blocks * 16;
  const bool wait = blocks > 1 && !std::is_same_v<Out, float>;
  bool in_place = false;
  if constexpr (Unit::READS_ROWS) {
    const int64_t rest = inner_product_columns(product, n1);
    multiply_few_columns(product, m0, m1, n1 - rest, n1, Unit::template inner_products<1, float>);
    n1 -= rest;
    in_place = reads_a_in_place(product) && !product.transpose_a && product.k % 2 == 0;
  }
  float* const panels = scratch;
  float* const strips = panels + MOST_COLUMNS * DEPTH;
  float* const sums = strips + TOGETHER * ROWS * DEPTH + LANES;  // a strip may spill one vector past its end
  const int64_t most_rows = (scratch + SCRATCH_BYTES / 4 - sums) / (wait ? MOST_COLUMNS : most_pairs) / ROWS * ROWS;

  Unit unit;
  const auto multiply_block = [&](int64_t i0, int64_t j0, int64_t block) {
    const int64_t i1 = smaller(i0 + most_rows, m1), j1 = smaller(j0 + MOST_COLUMNS, n1);
    const int64_t p = units * block / blocks * 32;
    const int64_t depth = smaller(units * (block + 1) / blocks * 32, product.k) - p;
    const int64_t pairs = pairs_of<Unit>(depth);
    const bool last = block == blocks - 1;
    for (int64_t j = j0; j < j1; j += COLUMNS)
      pack_panel<Unit>(product.transpose_b, smaller(COLUMNS, j1 - j), depth,
                       product.b + (product.transpose_b ? j * product.ldb + p : p * product.ldb + j), product.ldb,
                       panels + (j - j0) * pairs);
    for (int64_t i = i0; i < i1; i += ROWS) {
      const int64_t rows = smaller(ROWS, i1 - i);
      float* const strip = strips + (wait ? (i - i0) % (TOGETHER * ROWS) : i - i0) * pairs;
      if (!in_place && (wait || j0 == n0)) {
        if (!product.transpose_a)
          Unit::pack_rows(false, rows, depth, product.a + i * product.lda + p, product.lda, strip);
        else if ((i - i0) % (TOGETHER * ROWS) == 0)
          Unit::pack_columns(smaller(TOGETHER * ROWS, i1 - i), depth, product.a + p * product.lda + i, product.lda,
                             strip, pairs);
      }
      for (int64_t j = j0; j < j1; j += COLUMNS) {
        const float* const panel = panels + (j - j0) * pairs;
        const int64_t columns = smaller(COLUMNS, j1 - j);
        float* const sum = wait ? sums + (i - i0) * MOST_COLUMNS + (j - j0) * ROWS : nullptr;
        if (wait && block > 0) prefetch_tile(ROWS, COLUMNS, sum, COLUMNS);
        const bool waits = wait && !last;
        Out* const c = product.c + i * product.ldc + j;
        const bool accumulate = product.accumulate || (!wait && block > 0);
        if (!waits) prefetch_tile(rows, columns, c, product.ldc);
        if constexpr (Unit::READS_ROWS) {
          if (in_place) {
            const bfloat16* const a = product.a + i * product.lda + p;
            if (waits) Unit::finish_rows(rows, COLUMNS, pairs, a, product.lda, panel, nullptr, sum, COLUMNS, block > 0);
            else Unit::finish_rows(rows, columns, pairs, a, product.lda, panel, sum, c, product.ldc, accumulate);
            continue;
          }
        }
        if (waits) unit.multiply(pairs, strip, panel, sum, COLUMNS, block > 0);
        else unit.finish(rows, columns, pairs, strip, panel, sum, c, product.ldc, accumulate);
      }
    }
  };
  for (int64_t i0 = m0; i0 < m1; i0 += most_rows) {
    if (wait) {
      for (int64_t j0 = n0; j0 < n1; j0 += MOST_COLUMNS)
        for (int64_t block = 0; block < blocks; block++) multiply_block(i0, j0, block);
    } else {
      for (int64_t block = 0; block < blocks; block++)
        for (int64_t j0 = n0; j0 < n1; j0 += MOST_COLUMNS) multiply_block(i0, j0, block);
    }
  }
}

template <typename Unit, typename Out>
void multiply_in_pairs(const mantou_context* context, const Product<bfloat16, Out>& product) {
  for_rectangles<Unit::LEAST_ROWS, Unit::COLUMNS>(
      context, product, [&](int64_t m0, int64_t m1, int64_t n0, int64_t n1, int thread) {
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
