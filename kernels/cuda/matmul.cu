// Matrix product. cuBLASLt does it where the process finds that library (cublaslt.cu); the kernels here are for where it
// does not, and for operands that it does not take.
//
// bfloat16: a block computes a tile of C, its four warps a quarter each, on tensor cores. Blocks of op(A) and op(B),
// DEPTH steps of k deep, pass through a ring of STAGES buffers in shared memory, filled by asynchronous copies that run
// STAGES - 1 blocks ahead. An operand lies in shared memory as it lies in device memory; ldmatrix transposes where
// needed, so the four orientations differ in a few lines. Copies move 16 bytes; an operand whose rows do not start at
// multiples of 16 bytes is loaded element by element instead.
//
// A product with few tiles and a long sum (the gradient of a weight: k is all tokens of the batch) is also cut along k;
// the parts go to scratch memory as float32 and are added in order, so the bits of the result do not depend on timing.
//
// float32: fused multiply-adds, as tf32 tensor cores would keep 10 bits of the mantissa.
#include "cublaslt.h"
#include "tensor_tile.h"

namespace mantou {
namespace {

struct Product {
  int m, n, k;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  void* c;
  int64_t ldc;
  bool bf16_output, accumulate;
  bool aligned_a, aligned_b;  // every row starts at a multiple of 16 bytes
  bool aligned_c;             // every row starts at an address that two elements can be written to at once
};

constexpr const char* NAME = "mantou_matmul";

constexpr int THREADS = 128;
constexpr int DEPTH = 32;
constexpr int STAGES = 4;

// Tiles are visited in bands of this many rows of tiles, so that those in flight share operands in the second-level
// cache.
constexpr int BAND = 8;

struct Place {
  int row, column;
};

// The corner of tile `tile` of C.
DEVICE Place corner_of(int tile, int side, int m, int n) {
  const int rows = (m - 1) / side + 1, columns = (n - 1) / side + 1;
  const int first = tile / (BAND * columns) * BAND;
  const int height = rows - first < BAND ? rows - first : BAND;
  const int within = tile - first * columns;
  return {(first + within % height) * side, within / height * side};
}

// A thread's share of the copies of one operand's blocks: one chunk of every PASS-th row of each block.
template <typename Tile, bool K_BY_ROWS>
struct Loader {
  static constexpr int PASS = THREADS / Tile::CHUNKS;
  static_assert(PASS % 8 == 0, "rows of a thread must share their swizzle");

  const bf16* matrix;
  const bf16* from;
  int64_t stride;
  int rows, columns;  // how many are left from this thread's element on; not positive beyond the edge
  bool aligned;

  // The matrix [rows, columns] from (row, column) on.
  DEVICE Loader(const void* matrix_, int64_t stride_, int rows_, int columns_, int row, int column, bool aligned_)
      : matrix(static_cast<const bf16*>(matrix_)), stride(stride_), aligned(aligned_) {
    row += thread() / Tile::CHUNKS;
    column += thread() % Tile::CHUNKS * CHUNK;
    from = matrix + row * stride + column;
    rows = rows_ - row;
    columns = columns_ - column;
  }

  // Starts the copy of a block, zeros beyond the edge, and moves on along k.
  DEVICE void fetch(Tile tile) {
    bf16* const to = tile.chunk(thread() / Tile::CHUNKS, thread() % Tile::CHUNKS);
#pragma unroll
    for (int i = 0; i < Tile::ROWS / PASS; i++) {
      const int count = i * PASS < rows ? (columns < 0 ? 0 : columns < CHUNK ? columns : CHUNK) : 0;
      const bf16* const source = count > 0 ? from + i * PASS * stride : matrix;
      bf16* const destination = to + i * PASS * Tile::COLUMNS;
      if (aligned) {
        cp_async16(destination, source, count * 2);
      } else {
        for (int e = 0; e < CHUNK; e++) destination[e] = e < count ? source[e] : to_bf16(0.0f);
      }
    }
    if (K_BY_ROWS) from += DEPTH * stride, rows -= DEPTH;
    else from += DEPTH, columns -= DEPTH;
  }

  static DEVICE int thread() { return static_cast<int>(threadIdx.x); }
};

template <bool TRANSPOSE_A, bool TRANSPOSE_B, int SIDE>
struct Tiling {
  using A = TensorTile<TRANSPOSE_A ? DEPTH : SIDE, TRANSPOSE_A ? SIDE : DEPTH>;
  using B = TensorTile<TRANSPOSE_B ? SIDE : DEPTH, TRANSPOSE_B ? DEPTH : SIDE>;
  static constexpr int SHARED_BYTES = STAGES * (A::BYTES + B::BYTES);
};

DEVICE void write_pair(const Product& p, int row, int column, float x, float y) {
  const bool both = column + 1 < p.n;
  if (p.bf16_output) {
    auto* const to = static_cast<bf16*>(p.c) + row * p.ldc + column;
    if (p.accumulate) {
      x += to_float(to[0]);
      if (both) y += to_float(to[1]);
    }
    if (both && p.aligned_c) {
      *reinterpret_cast<uint32_t*>(to) = pack_bf16(x, y);
    } else {
      to[0] = to_bf16(x);
      if (both) to[1] = to_bf16(y);
    }
  } else {
    auto* const to = static_cast<float*>(p.c) + row * p.ldc + column;
    if (both && p.aligned_c) {
      const float2 before = p.accumulate ? *reinterpret_cast<float2*>(to) : make_float2(0, 0);
      *reinterpret_cast<float2*>(to) = make_float2(before.x + x, before.y + y);
    } else {
      to[0] = p.accumulate ? to[0] + x : x;
      if (both) to[1] = p.accumulate ? to[1] + y : y;
    }
  }
}

// Block (tile, part): the part-th of gridDim.y parts of k of one tile of SIDE x SIDE. With more than one part, c is
// float32 [parts, m, n].
template <bool TRANSPOSE_A, bool TRANSPOSE_B, int SIDE>
GLOBAL void LAUNCH_BOUNDS(THREADS, 2) multiply_bf16(Product p) {
  using TileA = typename Tiling<TRANSPOSE_A, TRANSPOSE_B, SIDE>::A;
  using TileB = typename Tiling<TRANSPOSE_A, TRANSPOSE_B, SIDE>::B;
  constexpr int DOWN = SIDE / 2 / 16;   // fragments of 16 rows in a warp's quarter
  constexpr int ACROSS = SIDE / 2 / 8;  // fragments of 8 columns
  SHARED_DYNAMIC(memory);
  const int lane = lane_of_thread();
  const auto tile_a = [&](int stage) { return TileA{reinterpret_cast<bf16*>(memory + stage * TileA::BYTES), lane}; };
  const auto tile_b = [&](int stage) {
    return TileB{reinterpret_cast<bf16*>(memory + STAGES * TileA::BYTES + stage * TileB::BYTES), lane};
  };

  const Place corner = corner_of(static_cast<int>(blockIdx.x), SIDE, p.m, p.n);
  const int part = static_cast<int>(blockIdx.y), parts = static_cast<int>(gridDim.y);
  const int all_steps = (p.k - 1) / DEPTH + 1;
  const int begin = static_cast<int>(static_cast<int64_t>(all_steps) * part / parts);
  const int steps = static_cast<int>(static_cast<int64_t>(all_steps) * (part + 1) / parts) - begin;
  const int first_k = begin * DEPTH;
  if (parts > 1) p.c = static_cast<float*>(p.c) + static_cast<int64_t>(part) * p.m * p.n;

  Loader<TileA, TRANSPOSE_A> load_a(p.a, p.lda, TRANSPOSE_A ? p.k : p.m, TRANSPOSE_A ? p.m : p.k,
                                    TRANSPOSE_A ? first_k : corner.row, TRANSPOSE_A ? corner.row : first_k,
                                    p.aligned_a);
  Loader<TileB, !TRANSPOSE_B> load_b(p.b, p.ldb, TRANSPOSE_B ? p.n : p.k, TRANSPOSE_B ? p.k : p.n,
                                     TRANSPOSE_B ? corner.column : first_k, TRANSPOSE_B ? first_k : corner.column,
                                     p.aligned_b);
  const auto fetch = [&](int step) {
    if (step < steps) {
      load_a.fetch(tile_a(step % STAGES));
      load_b.fetch(tile_b(step % STAGES));
    }
    cp_async_commit();  // an empty group where there is nothing left, so that groups count steps
  };

  const int warp = warp_of_thread();
  const int warp_row = warp / 2 * (SIDE / 2), warp_column = warp % 2 * (SIDE / 2);
  float sum[DOWN][ACROSS][4] = {};

#pragma unroll
  for (int step = 0; step < STAGES - 1; step++) fetch(step);
  for (int step = 0; step < steps; step++) {
    cp_async_wait<STAGES - 2>();
    // Now this step's blocks are complete for everyone, and everyone has left the buffers of the step before.
    __syncthreads();
    fetch(step + STAGES - 1);
    const TileA left = tile_a(step % STAGES);
    const TileB right = tile_b(step % STAGES);
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
      uint32_t a[DOWN][4];
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
        if constexpr (TRANSPOSE_A) left.load_across_transposed(a[i], k, warp_row + i * 16);
        else left.load_down(a[i], warp_row + i * 16, k);
      }
#pragma unroll
      for (int j = 0; j < ACROSS; j += 2) {
        uint32_t b[4];
        if constexpr (TRANSPOSE_B) right.load_across(b, warp_column + j * 8, k);
        else right.load_down_transposed(b, k, warp_column + j * 8);
#pragma unroll
        for (int i = 0; i < DOWN; i++) {
          mma_bf16_16816(sum[i][j], a[i], b[0], b[1]);
          mma_bf16_16816(sum[i][j + 1], a[i], b[2], b[3]);
        }
      }
    }
  }
  // Whatever groups are left are empty.

#pragma unroll
  for (int i = 0; i < DOWN; i++) {
#pragma unroll
    for (int j = 0; j < ACROSS; j++) {
      const int row = corner.row + warp_row + i * 16 + lane / 4;
      const int column = corner.column + warp_column + j * 8 + lane % 4 * 2;
      if (column >= p.n) continue;
      if (row < p.m) write_pair(p, row, column, sum[i][j][0], sum[i][j][1]);
      if (row + 8 < p.m) write_pair(p, row + 8, column, sum[i][j][2], sum[i][j][3]);
    }
  }
}

// c (+)= the sum of `parts` matrices [m, n]: two neighbouring columns per thread.
GLOBAL void add_parts(Product p, const float* partial, int parts) {
  const int64_t size = static_cast<int64_t>(p.m) * p.n;
  const int64_t index = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 2;
  // Parts have an even number of columns (see parts_for), so a pair never crosses a row.
  if (index >= size) return;
  float2 total = make_float2(0, 0);
  for (int part = 0; part < parts; part++) {
    const float2 value = *reinterpret_cast<const float2*>(partial + part * size + index);
    total.x += value.x;
    total.y += value.y;
  }
  write_pair(p, static_cast<int>(index / p.n), static_cast<int>(index % p.n), total.x, total.y);
}

// ---- float32 --------------------------------------------------------------------------------------------------------

constexpr int SIDE32 = 64;
constexpr int DEPTH32 = 16;

// A block of [SIDE32 or DEPTH32] x [the other], laid down with k first: tile[k][row of op(A), or column of op(B)].
template <bool K_BY_ROWS>
DEVICE void fetch_float32(float (*tile)[SIDE32 + 4], const float* matrix, int64_t stride, int k_size, int other_size,
                          int k, int other) {
#pragma unroll
  for (int i = 0; i < SIDE32 * DEPTH32 / 256; i++) {
    const int index = i * 256 + static_cast<int>(threadIdx.x);
    const int dk = K_BY_ROWS ? index / SIDE32 : index % DEPTH32;
    const int d = K_BY_ROWS ? index % SIDE32 : index / DEPTH32;
    const bool inside = k + dk < k_size && other + d < other_size;
    const int64_t at = K_BY_ROWS ? (k + dk) * stride + other + d : (other + d) * stride + k + dk;
    tile[dk][d] = inside ? matrix[at] : 0.0f;
  }
}

// A tile of 64 x 64 by 256 threads, 4 x 4 each.
template <bool TRANSPOSE_A, bool TRANSPOSE_B>
GLOBAL void LAUNCH_BOUNDS(256, 2) multiply_float32(Product p) {
  SHARED_ARRAY(float, left, [DEPTH32][SIDE32 + 4]);
  SHARED_ARRAY(float, right, [DEPTH32][SIDE32 + 4]);
  const Place corner = corner_of(static_cast<int>(blockIdx.x), SIDE32, p.m, p.n);
  const int row = static_cast<int>(threadIdx.x) / 16 * 4, column = static_cast<int>(threadIdx.x) % 16 * 4;
  float sum[4][4] = {};
  for (int k = 0; k < p.k; k += DEPTH32) {
    fetch_float32<TRANSPOSE_A>(left, static_cast<const float*>(p.a), p.lda, p.k, p.m, k, corner.row);
    fetch_float32<!TRANSPOSE_B>(right, static_cast<const float*>(p.b), p.ldb, p.k, p.n, k, corner.column);
    __syncthreads();
#pragma unroll
    for (int step = 0; step < DEPTH32; step++) {
      const float4 a = *reinterpret_cast<const float4*>(&left[step][row]);
      const float4 b = *reinterpret_cast<const float4*>(&right[step][column]);
      const float x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int r = corner.row + row + i, c = corner.column + column;
    if (r >= p.m) continue;
    if (c < p.n) write_pair(p, r, c, sum[i][0], sum[i][1]);
    if (c + 2 < p.n) write_pair(p, r, c + 2, sum[i][2], sum[i][3]);
  }
}

// c = 0.
GLOBAL void clear(Product p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= static_cast<int64_t>(p.m) * p.n) return;
  const int64_t at = index / p.n * p.ldc + index % p.n;
  if (p.bf16_output) static_cast<bf16*>(p.c)[at] = to_bf16(0.0f);
  else static_cast<float*>(p.c)[at] = 0.0f;
}

// ---- launches -------------------------------------------------------------------------------------------------------

bool rows_aligned(const void* pointer, int64_t stride, int64_t element_size, int64_t to) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(to) == 0 && stride * element_size % to == 0;
}

int64_t tiles_of(const Product& p, int64_t side) { return divide_up(p.m, side) * divide_up(p.n, side); }

// In how many parts k is cut: as many as fill the device twice, while each has at least 16 steps and all fit the scratch.
int parts_for(const mantou_context* context, const Product& p, int64_t tiles) {
  if (p.n % 2 != 0) return 1;
  int64_t parts = 2 * context->multiprocessors / tiles;
  const int64_t steps = divide_up(p.k, DEPTH);
  if (parts > steps / 16) parts = steps / 16;
  const int64_t bytes = static_cast<int64_t>(p.m) * p.n * 4;
  if (parts > context->scratch_bytes / bytes) parts = context->scratch_bytes / bytes;
  return parts < 2 ? 1 : static_cast<int>(parts);
}

template <bool TRANSPOSE_A, bool TRANSPOSE_B, int SIDE>
int32_t launch_tiles(const mantou_context* context, const Product& p) {
  const int64_t tiles = tiles_of(p, SIDE);
  const int parts = parts_for(context, p, tiles);
  Product product = p;
  if (parts > 1) {
    product.c = context->scratch;
    product.ldc = p.n;
    product.bf16_output = product.accumulate = false;
    product.aligned_c = true;
  }
  const dim3 grid = grid_of(tiles, parts);
  RETURN_IF_FAILED(launch(NAME, multiply_bf16<TRANSPOSE_A, TRANSPOSE_B, SIDE>, grid, THREADS,
                          Tiling<TRANSPOSE_A, TRANSPOSE_B, SIDE>::SHARED_BYTES, context->stream, product));
  if (parts == 1) return MANTOU_OK;
  const dim3 blocks = grid_of(divide_up(static_cast<int64_t>(p.m) * p.n / 2, 256));
  return launch(NAME, add_parts, blocks, 256, 0, context->stream, p, static_cast<const float*>(context->scratch), parts);
}

template <bool TRANSPOSE_A, bool TRANSPOSE_B>
int32_t launch_product(const mantou_context* context, int32_t dtype, const Product& p) {
  if (dtype == MANTOU_FLOAT32)
    return launch(NAME, multiply_float32<TRANSPOSE_A, TRANSPOSE_B>, grid_of(tiles_of(p, SIDE32)), 256, 0, context->stream,
                  p);
  // Small tiles where large ones would leave some of the device without work.
  const int64_t large = tiles_of(p, 128);
  if (large * parts_for(context, p, large) < context->multiprocessors)
    return launch_tiles<TRANSPOSE_A, TRANSPOSE_B, 64>(context, p);
  return launch_tiles<TRANSPOSE_A, TRANSPOSE_B, 128>(context, p);
}

}  // namespace
}  // namespace mantou

using namespace mantou;

int32_t mantou_matmul(mantou_context* context, int32_t transpose_a, int32_t transpose_b, int64_t m, int64_t n,
                      int64_t k, int32_t input_dtype, const void* a, int64_t lda, const void* b, int64_t ldb,
                      int32_t output_dtype, void* c, int64_t ldc, int32_t accumulate) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(input_dtype);
  CHECK_DTYPE(output_dtype);
  CHECK_NOT_NEGATIVE(m, n, k);
  if (m == 0 || n == 0) return MANTOU_OK;
  CHECK_NOT_NULL(c);
  CHECK_AT_LEAST(ldc, n);
  constexpr int64_t LIMIT = INT32_MAX - 1024;
  CHECK(m <= LIMIT && n <= LIMIT && k <= LIMIT,
        "%s: sizes of 2^31 and above are not supported, got m = %lld, n = %lld, k = %lld", __func__, static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k));
  Product p = {};
  p.m = static_cast<int>(m), p.n = static_cast<int>(n), p.k = static_cast<int>(k);
  p.a = a, p.lda = lda, p.b = b, p.ldb = ldb, p.c = c, p.ldc = ldc;
  p.bf16_output = output_dtype == MANTOU_BFLOAT16;
  p.accumulate = accumulate != 0;
  if (k == 0) {
    if (accumulate) return MANTOU_OK;
    return launch(NAME, clear, grid_of(divide_up(m * n, 256)), 256, 0, context->stream, p);
  }
  CHECK_NOT_NULL(a, b);
  const int64_t a_row = transpose_a ? m : k, b_row = transpose_b ? k : n;
  CHECK_AT_LEAST(lda, a_row);
  CHECK_AT_LEAST(ldb, b_row);
  const int32_t status =
      multiply_with_cublaslt(context, {transpose_a != 0, transpose_b != 0, m, n, k, input_dtype, a, lda, b, ldb,
                                       output_dtype, c, ldc, accumulate != 0});
  if (status != MANTOU_UNSUPPORTED) return status;
  p.aligned_a = rows_aligned(a, lda, 2, 16);
  p.aligned_b = rows_aligned(b, ldb, 2, 16);
  p.aligned_c = p.bf16_output ? rows_aligned(c, ldc, 2, 4) : rows_aligned(c, ldc, 4, 8);
  if (transpose_a)
    return transpose_b ? launch_product<true, true>(context, input_dtype, p)
                       : launch_product<true, false>(context, input_dtype, p);
  return transpose_b ? launch_product<false, true>(context, input_dtype, p)
                     : launch_product<false, false>(context, input_dtype, p);
}
