// What the matrix products of float32 (matmul.cpp) and of bfloat16 in hardware (matmul_bf16.h) share.
#pragma once

#include <cmath>

#include "context.h"
#include "tile.h"

MANTOU_NAMESPACE

// Below this many multiply-adds per thread, starting threads costs more than it gains.
constexpr int64_t THREAD_WORK = 1 << 17;

// In and Out: the types of the factors and of the product, which is rounded once, after the whole sum.
template <typename In, typename Out>
struct Product {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  const In* a;
  int64_t lda;
  const In* b;
  int64_t ldb;
  Out* c;
  int64_t ldc;
  bool accumulate;
};

// Whether A had better be read where it lies, which saves packing it: its rows, unless they all fall into the same few
// sets of the first-level cache, as those of some powers of two do; its columns where few of op(B) pass over them.
template <typename In, typename Out>
bool reads_a_in_place(const Product<In, Out>& product) {
  return product.transpose_a ? product.n <= 128 : product.lda * sizeof(In) % 2048 != 0;
}

// How many of the columns before n1 are left to inner products, which need rows of A and of B^T: the last ones of C,
// which would leave most lanes of their vector idle.
template <typename In, typename Out>
int64_t inner_product_columns(const Product<In, Out>& product, int64_t n1) {
  const int64_t rest = product.n % LANES;
  return n1 == product.n && product.transpose_b && !product.transpose_a && rest <= LANES / 2 ? rest : 0;
}

// Asks for a tile of C that is about to be computed: it comes from memory while its sums grow.
template <typename Out>
void prefetch_tile(int64_t rows, int64_t columns, const Out* c, int64_t ldc) {
  constexpr int64_t LINE = 64 / sizeof(Out);
  for (int64_t r = 0; r < rows; r++)
    for (int64_t j = 0; j < columns; j += LINE) __builtin_prefetch(c + r * ldc + j, 1);
}

// Bytes from what inner products multiply to what they fetch from memory meanwhile (past the last row that is harmless).
constexpr int64_t AHEAD = 16384;

// Writes c[i * ldc + j] (+)= the sum of the lanes of sums[i][j], for j < count.
template <int ROWS, typename Out>
void write_inner_products(int64_t count, Vector (&sums)[ROWS][LANES], Out* c, int64_t ldc, bool accumulate) {
  for (int i = 0; i < ROWS; i++, c += ldc) {
    transpose(sums[i]);
    Vector total = sums[i][0];
    MANTOU_UNROLL for (int lane = 1; lane < LANES; lane++) total += sums[i][lane];
    for_vectors(count, [&](int64_t j, auto part) { store(c + j, accumulate ? load(c + j, part) + total : total, part); });
  }
}

// Rows [m0, m1) and columns [n0, n1) of C (+)= A B^T, for few columns, whose rows of B^T take the place of x in
// inner_products(count, k, x, ldx, w, ldw, sums, ldc, accumulate).
template <typename In, typename Out, typename InnerProducts>
void multiply_few_columns(const Product<In, Out>& product, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                          const InnerProducts& inner_products) {
  for (int64_t i = m0; i < m1; i += LANES)
    for (int64_t j = n0; j < n1; j++) {
      const int64_t rows = smaller(LANES, m1 - i);
      float sums[LANES];
      inner_products(rows, product.k, product.b + j * product.ldb, 0, product.a + i * product.lda, product.lda, sums, 0,
                     false);
      Out* to = product.c + i * product.ldc + j;
      for (int64_t r = 0; r < rows; r++, to += product.ldc)
        *to = from_float<Out>(product.accumulate ? to_float(*to) + sums[r] : sums[r]);
    }
}

// Divides C into a grid of rectangles for the context's threads, of whole groups of ROWS rows and of COLUMNS columns,
// and runs body(m0, m1, n0, n1, thread) for each.
template <int ROWS, int COLUMNS, typename In, typename Out, typename Body>
void for_rectangles(const mantou_context* context, const Product<In, Out>& product, const Body& body) {
  const int64_t m = product.m, n = product.n, k = product.k;
  const int64_t strips = (m + ROWS - 1) / ROWS, panels = (n + COLUMNS - 1) / COLUMNS;
  const int64_t worth = m * n / 64 * k / (THREAD_WORK / 64);
  const int64_t threads = larger(1, smaller(context->threads, worth));
  // The grid whose largest rectangle takes least: rows * columns multiply-adds a step, and rows + columns packed
  // elements, each as dear as about 16 of the multiply-adds. Where rectangles side by side share cache lines of C, for
  // which their threads contend, a row costs as much as another SHARED_LINE or so.
  constexpr double SHARED_LINE = 8192;
  const bool shares_lines = product.ldc * sizeof(Out) % 64 != 0;
  double least = INFINITY;
  int64_t down = 1, across = 1;
  for (int64_t d = 1; d <= smaller(threads, strips); d++) {
    const int64_t a = smaller(threads / d, panels);
    const double rows = static_cast<double>((strips + d - 1) / d * ROWS);
    const double columns = static_cast<double>((panels + a - 1) / a * COLUMNS);
    const double step = rows * columns + 16 * (rows + columns);
    const double cost = step * static_cast<double>(k) + (a > 1 && shares_lines ? SHARED_LINE * rows : 0);
    if (cost < least) least = cost, down = d, across = a;
  }
  parallel_for(context, down * across, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t cell = begin; cell < end; cell++) {
      const int64_t i = cell / across, j = cell % across;
      body(strips * i / down * ROWS, smaller(m, strips * (i + 1) / down * ROWS), panels * j / across * COLUMNS,
           smaller(n, panels * (j + 1) / across * COLUMNS), thread);
    }
  });
}

}
}  // namespace mantou
