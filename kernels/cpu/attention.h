// What the files of attention share: tiles of BLOCK queries or keys of one head, loaded into a thread's scratch.
//
// A tile lies either by rows, [BLOCK, width] with width = head_dim rounded up to whole vectors, or transposed,
// [width, BLOCK]. The register tile of tile.h wants both of its operands with the summed index first, so scores are
// taken from transposed tiles (summed over head_dim) and weighted sums from tiles by rows (summed over rows).
#pragma once

#include "rope.h"

MANTOU_NAMESPACE

// Queries and keys per tile: a tile of scores (16 KiB) and the tiles that it comes from stay in the first-level cache.
constexpr int64_t BLOCK = 64;

// Where rows stand: row r at positions[r], or at first + r where positions is null. No rotation where table is null.
struct Rotation {
  const float* table;
  const int32_t* positions;
  int64_t first;

  const float* row(int64_t r, int64_t dim) const { return table + (positions ? positions[r] : first + r) * dim; }

  // The same for rows that begin `rows` later.
  Rotation from(int64_t rows) const { return {table, positions ? positions + rows : nullptr, first + rows}; }
};

// Loads `rows` rows of dim elements, rotated and times `factor`, into tile [rows rounded up to LANES, width], zeros in
// the padding.
template <typename T>
inline void load_tile(int64_t rows, int64_t dim, int64_t width, const T* from, int64_t stride, Rotation rotation,
                      float factor, float* tile) {
  for (int64_t r = 0; r < rows; r++, from += stride, tile += width) {
    if (dim < width) store(tile + width - LANES, Vector{});
    if (rotation.table) {
      rotate_row(dim, rotation.row(r, dim), false, from, tile);
      if (factor != 1.0f)
        for (int64_t c = 0; c < width; c += LANES) store(tile + c, load(tile + c) * factor);
    } else {
      for_vectors(dim, [&](int64_t c, auto part) { store(tile + c, load(from + c, part) * factor, part); });
    }
  }
  for (int64_t i = 0; i < (round_up(rows, LANES) - rows) * width; i += LANES) store(tile + i, Vector{});
}

// to [columns, BLOCK] = the transpose of from [rows, columns] with row stride `stride`, where rows and columns are
// multiples of LANES.
inline void transpose_tile(int64_t rows, int64_t columns, const float* from, int64_t stride, float* to) {
  for (int64_t c = 0; c < columns; c += LANES)
    for (int64_t r = 0; r < rows; r += LANES) {
      Vector block[LANES];
      MANTOU_UNROLL for (int i = 0; i < LANES; i++) block[i] = load(from + (r + i) * stride + c);
      transpose(block);
      MANTOU_UNROLL for (int i = 0; i < LANES; i++) store(to + (c + i) * BLOCK + r, block[i]);
    }
}

// c [rows, columns] (+)= A^T B for operands of any size, tile by tile.
inline void multiply_tiles(int64_t rows, int64_t columns, int64_t k, const float* a, int64_t a_stride, const float* b,
                           int64_t b_stride, float* c, int64_t ldc, bool accumulate) {
  for (int64_t r = 0; r < rows; r += MR)
    for (int64_t j = 0; j < columns; j += NR)
      tile(smaller(MR, rows - r), smaller(NR, columns - j), k, a + r, a_stride, b + j, b_stride, c + r * ldc + j, ldc,
           accumulate);
}

}
}  // namespace mantou
