// Tiles of bfloat16 in shared memory and the fragments that tensor cores take from them (PTX ISA, "Matrix Fragments for
// mma.m16n8k16" and "ldmatrix").
//
// A tile is row-major; its rows are cut into chunks of 16 bytes, and row r keeps chunk c at place c ^ swizzle(r). So
// the eight rows that one phase of ldmatrix reads at the same chunk lie in different banks, as do the chunks of a row
// that a copy writes.
//
// Lane 4 g + t of a warp holds, of an accumulator fragment (16 x 8), the columns 2 t and 2 t + 1 of rows g (elements 0,
// 1) and g + 8 (elements 2, 3).
#pragma once

#include "context.h"

namespace mantou {

constexpr int CHUNK = 8;  // elements in 16 bytes

template <int ROWS_, int COLUMNS_>
struct TensorTile {
  static constexpr int ROWS = ROWS_;
  static constexpr int COLUMNS = COLUMNS_;
  static constexpr int CHUNKS = COLUMNS / CHUNK;
  static constexpr int BYTES = ROWS * COLUMNS * 2;
  static_assert(CHUNKS == 2 || CHUNKS == 4 || CHUNKS % 8 == 0, "no swizzle for this width");

  bf16* data;  // at a multiple of a row's bytes
  int lane;    // of the calling thread; from it follow the addresses that it loads fragments from

  // Rows of 32 bytes share a line of banks by four, rows of 64 bytes by two.
  static DEVICE int swizzle(int row) {
    return CHUNKS == 2 ? (row >> 2) & 1 : CHUNKS == 4 ? (row >> 1) & 3 : row & 7;
  }

  // The tile without its first rows, a multiple of 8. Where `row` is not known when this is compiled, one addition here
  // serves all fragments, whose rows are then part of the instruction.
  DEVICE TensorTile from(int row) const { return {data + row * COLUMNS, lane}; }

  DEVICE bf16* chunk(int row, int chunk) const { return data + row * COLUMNS + (chunk ^ swizzle(row)) * CHUNK; }

  // Four 8 x 8 matrices: those at (row, column), (row + 8, column), (row, column + 8), (row + 8, column + 8). A 16 x 16
  // fragment of the left operand that lies by rows; transposed, two 16 x 8 fragments of a right operand that lies by k.
  DEVICE void load_down(uint32_t (&fragment)[4], int row, int column) const {
    ldmatrix_x4(fragment, down(row, column));
  }
  DEVICE void load_down_transposed(uint32_t (&fragment)[4], int row, int column) const {
    ldmatrix_x4_trans(fragment, down(row, column));
  }

  // The same with the second and third matrix exchanged. Two fragments of a right operand that lies by n; transposed, a
  // fragment of a left operand that lies by k.
  DEVICE void load_across(uint32_t (&fragment)[4], int row, int column) const {
    ldmatrix_x4(fragment, across(row, column));
  }
  DEVICE void load_across_transposed(uint32_t (&fragment)[4], int row, int column) const {
    ldmatrix_x4_trans(fragment, across(row, column));
  }

 private:
  DEVICE SharedAddress down(int row, int column) const { return at(row, column, lane & 15, lane >> 4); }
  DEVICE SharedAddress across(int row, int column) const {
    return at(row, column, (lane & 7) + (lane >> 4) * 8, (lane >> 3) & 1);
  }

  // The chunk `lane_chunk` beyond `column`, a multiple of 16, in the row `lane_row` below `row`, a multiple of 8. The lane's
  // row alone decides the swizzle and its chunk fills the lowest bit, so the column comes in by an exclusive or with what
  // is the lane's own: one instruction an address.
  DEVICE SharedAddress at(int row, int column, int lane_row, int lane_chunk) const {
    constexpr int BYTES_OF = sizeof(bf16);
    const int own = lane_row * COLUMNS + (lane_chunk ^ swizzle(lane_row)) * CHUNK;
    return ((shared_address(data) + own * BYTES_OF) ^ (column * BYTES_OF)) + row * COLUMNS * BYTES_OF;
  }
};

}  // namespace mantou
