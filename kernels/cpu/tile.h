// The register tile: the one inner loop under every matrix product of the CPU backend, in matmul.cpp over packed
// blocks and in attention.cpp over tiles of a head.
//
// A tile is C [rows, cols] (+)= A^T B, with A [k, rows] and B [k, cols] both "k-major": step p reads `rows`
// neighbouring floats of A and `cols` of B, and adds their outer product to accumulators that stay in registers for
// all k steps. Since A is read float by float, it may as well be [rows, k] (A_IN_ROWS), where packing would not pay.
//
// The largest tile, MR x NR, is as many registers as the instruction set has, less those that hold the
// row of B and the broadcast element of A: for each step MR broadcasts and NR / LANES loads feed MR * NR / LANES
// fused multiply-adds, so that the loads hide behind the arithmetic. Every element of C is summed over p = 0 .. k - 1
// in that order by one lane, so its bits do not depend on the tile that it fell into.
#pragma once

#include <cstdint>
#include <utility>

#include "vector.h"

MANTOU_NAMESPACE

#if defined(__AVX512F__)
constexpr int MR = 14, NV = 2;  // 28 of 32 registers
#elif defined(__AVX__)
constexpr int MR = 6, NV = 2;  // 12 of 16
#elif defined(__aarch64__)
constexpr int MR = 12, NV = 2;  // 24 of 32
#else
constexpr int MR = 4, NV = 3;  // 12 of 16
#endif
constexpr int NR = NV * LANES;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

#if defined(__clang__)
#define MANTOU_UNROLL _Pragma("clang loop unroll(full)")
#define MANTOU_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define MANTOU_UNROLL _Pragma("GCC unroll 16")
#define MANTOU_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVector{__VA_ARGS__})
#endif

// ---- the tile's kernel ----------------------------------------------------------------------------------------------

// C [R, V * LANES] (+)= sum over p < k of a[p * a_stride + row] * b[p * b_stride + column], or of a[row * a_stride + p].
template <bool A_IN_ROWS, int R, int V>
void tile_kernel(int64_t k, const float* a, int64_t a_stride, const float* b, int64_t b_stride, float* c, int64_t ldc,
                 bool accumulate) {
  Vector sum[R][V] = {};
  for (int64_t p = 0; p < k; p++, a += A_IN_ROWS ? 1 : a_stride, b += b_stride) {
    Vector row[V];
    MANTOU_UNROLL for (int v = 0; v < V; v++) row[v] = load(b + v * LANES);
    MANTOU_UNROLL for (int r = 0; r < R; r++) {
      const Vector element = splat(a[A_IN_ROWS ? r * a_stride : r]);
      MANTOU_UNROLL for (int v = 0; v < V; v++) sum[r][v] += element * row[v];
    }
  }
  if (accumulate) {
    MANTOU_UNROLL for (int r = 0; r < R; r++) {
      MANTOU_UNROLL for (int v = 0; v < V; v++) store(c + r * ldc + v * LANES, load(c + r * ldc + v * LANES) + sum[r][v]);
    }
  } else {
    MANTOU_UNROLL for (int r = 0; r < R; r++) {
      MANTOU_UNROLL for (int v = 0; v < V; v++) store(c + r * ldc + v * LANES, sum[r][v]);
    }
  }
}

using TileKernel = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t, bool);

struct TileKernels {
  TileKernel of[MR * NV];  // of[(rows - 1) * NV + vectors - 1]
};

template <bool A_IN_ROWS, int... I>
constexpr TileKernels tile_kernels(std::integer_sequence<int, I...>) {
  return {{tile_kernel<A_IN_ROWS, I / NV + 1, I % NV + 1>...}};
}

template <bool A_IN_ROWS>
inline constexpr TileKernels TILE_KERNELS = tile_kernels<A_IN_ROWS>(std::make_integer_sequence<int, MR * NV>());

// One tile of rows <= MR, cols <= NR. b must be readable up to the next multiple of LANES columns.
template <bool A_IN_ROWS = false>
void tile(int64_t rows, int64_t cols, int64_t k, const float* a, int64_t a_stride, const float* b,
                 int64_t b_stride, float* c, int64_t ldc, bool accumulate) {
  const int64_t vectors = (cols + LANES - 1) / LANES;
  const TileKernel kernel = TILE_KERNELS<A_IN_ROWS>.of[(rows - 1) * NV + vectors - 1];
  if (cols == vectors * LANES) {
    kernel(k, a, a_stride, b, b_stride, c, ldc, accumulate);
    return;
  }
  // The ragged edge: through a buffer, so that C is touched only where it is.
  alignas(64) float edge[MR * NR];
  kernel(k, a, a_stride, b, b_stride, edge, NR, false);
  for (int64_t r = 0; r < rows; r++, c += ldc)
    for_vectors(cols, [&](int64_t j, auto part) {
      const Vector sum = load(edge + r * NR + j, part);
      store(c + j, accumulate ? load(c + j, part) + sum : sum, part);
    });
}

// ---- transposition --------------------------------------------------------------------------------------------------

// One step of the transposition of LANES rows: swaps the off-diagonal S x S blocks of rows a and b = a + S.
template <int S, int... I>
inline void exchange(Vector& a, Vector& b, std::integer_sequence<int, I...>) {
  const Vector low = MANTOU_SHUFFLE(a, b, (I & S ? LANES + I - S : I)...);
  const Vector high = MANTOU_SHUFFLE(a, b, (I & S ? LANES + I : I + S)...);
  a = low;
  b = high;
}

template <int S>
inline void transpose_step(Vector* rows) {
  MANTOU_UNROLL for (int r = 0; r < LANES; r++) {
    if (!(r & S)) exchange<S>(rows[r], rows[r + S], std::make_integer_sequence<int, LANES>());
  }
}

// Transposes the LANES x LANES block held in `rows`.
inline void transpose(Vector (&rows)[LANES]) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  if constexpr (LANES > 4) transpose_step<4>(rows);
  if constexpr (LANES > 8) transpose_step<8>(rows);
}

}
}  // namespace mantou
