// What the files of attention share: the problems, rotation on load, and the checks of the entries.
//
// Two families of kernels compute attention. Those on tensor cores (attention.cu, attention_backward.cu) take bfloat16
// heads of 16, 32, 64 or 128 whose rows start at multiples of 16 bytes; those of attention_scalar.cu take everything
// else: float32, any even head size up to 256, any alignment.
#pragma once

#include "tensor_tile.h"

namespace mantou {

constexpr int64_t MAX_LENGTH = int64_t{1} << 30;

// Sequences up to this long are rotated as they are loaded, longer ones had better be before (see README.md).
constexpr int64_t ROTATED_ON_LOAD = 512;

// Where rows stand: row r of a sequence at positions[r], or at first + r where positions is null. No rotation where
// table is null. table float32 [positions, dim / 2, 2] of cos and sin.
struct Rotation {
  const float* table;
  const int32_t* positions;
  int first;

  DEVICE const float* row(int r, int dim) const {
    return table + static_cast<int64_t>(positions ? positions[r] : first + r) * dim;
  }
};

// Where the keys and values of sequences lie: those of sequence b in slot slots[b], or b where slots is null; queries
// stand behind starts[b] keys, or none where starts is null. Both [batch], or null.
struct Places {
  const int32_t *starts, *slots;
  int64_t slot_count;
  int capacity;  // rows of a slot

  DEVICE int start(int sequence) const { return starts ? starts[sequence] : 0; }
  DEVICE int64_t slot(int sequence) const { return slots ? slots[sequence] : sequence; }

  // What the host cannot check: whether `length` more rows fit a slot that there is.
  DEVICE bool slot_exists(int sequence) const { return slot(sequence) >= 0 && slot(sequence) < slot_count; }
  DEVICE bool rows_fit(int sequence, int length) const {
    return start(sequence) >= 0 && start(sequence) <= capacity - length;
  }
};

// `queries` rows per sequence, of which row t sees the keys 0 .. start + t.
struct Attention {
  int64_t batch;
  int queries;
  int heads, kv_heads, dim;
  Places places;
  float scale;
  const void* q;
  int64_t q_stride;
  const void *k, *v;
  int64_t kv_stride;
  const float *q_rope, *k_rope;
  const int32_t* positions;  // [batch, queries] or null
  void* output;
  float* lse;  // may be null
};

struct AttentionBackward {
  int64_t batch;
  int length;
  int heads, kv_heads, dim;
  float scale;
  const void* doutput;
  const void* q;
  int64_t q_stride;
  const void *k, *v;
  int64_t kv_stride;
  const float* rope;           // null where q and k come rotated
  const float* gradient_rope;  // for dq and dk
  const int32_t* positions;
  const void* output;
  const float* lse;
  void *dq, *dk, *dv;
  float* delta;  // [batch, heads, length], the row sums of doutput * output
};

// Where this block works: which sequence, head and block of rows.
struct Work {
  int sequence, head, block;
};

// Blocks of rows are handed out for TOGETHER heads at a time, so that these heads' keys and values stay in the
// second-level cache while all of their blocks of rows pass over them, and within that the block with most work first.
struct Order {
  int64_t heads;  // of all sequences
  int blocks;     // of rows, per head
  int64_t together;
  bool last_first;  // the last block of rows has most work

  DEVICE Work at(int64_t index, int heads_per_sequence) const {
    const int64_t group = index / (together * blocks);
    const int64_t rest = heads - group * together;
    const int64_t size = rest < together ? rest : together;
    const int64_t within = index - group * together * blocks;
    const int64_t head = group * together + within % size;
    const int block = static_cast<int>(within / size);
    return {static_cast<int>(head / heads_per_sequence), static_cast<int>(head % heads_per_sequence),
            last_first ? blocks - 1 - block : block};
  }
};

// `bytes`: what a head reads again for every block of rows. A third of the cache is taken, which leaves room for what
// streams through it.
inline Order order_of(const mantou_context* context, int64_t heads, int blocks, int64_t bytes, bool last_first) {
  const int64_t together = context->cache_bytes / 3 / (bytes > 0 ? bytes : 1);
  return {heads, blocks, together < 1 ? 1 : together < heads ? together : heads, last_first};
}

constexpr float LOG2_E = 1.44269504088896340736f;

// Two neighbouring elements at any alignment.
template <typename T>
DEVICE float2 load_pair(const T* from) {
  return make_float2(to_float(from[0]), to_float(from[1]));
}

// The pair (x, y) turned by the angle of (cos, sin).
DEVICE float2 rotate(float2 pair, float2 angle) {
  return make_float2(pair.x * angle.x - pair.y * angle.y, pair.y * angle.x + pair.x * angle.y);
}

// The same backwards.
DEVICE float2 rotate_back(float2 pair, float2 angle) { return rotate(pair, make_float2(angle.x, -angle.y)); }

// Rows [first, first + rows) of one head on their way into a tile in shared memory, by a block of THREADS threads. Every
// thread copies its own chunks and, once they have arrived, rotates the same ones in place: no barrier lies between.
template <typename Tile, int THREADS>
struct HeadLoader {
  static constexpr int PASS = THREADS / Tile::CHUNKS;  // rows per round
  static constexpr int ROUNDS = Tile::ROWS / PASS;
  static_assert(THREADS % Tile::CHUNKS == 0 && Tile::ROWS % PASS == 0, "every thread copies as much as the others");
  static_assert(PASS % 8 == 0, "rows of a thread must share their swizzle");

  // Starts the copy of the `count` rows that exist; the others become zeros.
  static DEVICE void fetch(Tile tile, const bf16* rows, int64_t stride, int count) {
    const bf16* from = rows + row(0) * stride + column() * CHUNK;
    [[maybe_unused]] constexpr int UNROLL = Tile::COLUMNS > 32 ? 4 : 2;  // registers are full of sums when it runs
#pragma unroll UNROLL
    for (int i = 0; i < ROUNDS; i++, from += PASS * stride) cp_async16(place(tile, i), from, row(i) < count ? 16 : 0);
  }

  // Rotates what this thread has fetched and waited for. `first`: the first row's place in its sequence.
  static DEVICE void turn(Tile tile, const Rotation& rotation, int first, int count) {
    if (!rotation.table) return;
#pragma unroll 2
    for (int i = 0; i < ROUNDS; i++) {
      const int r = row(i);
      if (r >= count) continue;
      const auto* const angles =
          reinterpret_cast<const float4*>(rotation.row(first + r, Tile::COLUMNS) + column() * CHUNK);
      const float4 one = angles[0], two = angles[1];
      auto* const chunk = reinterpret_cast<uint4*>(place(tile, i));
      uint4 values = *chunk;
      values.x = turned(values.x, make_float2(one.x, one.y));
      values.y = turned(values.y, make_float2(one.z, one.w));
      values.z = turned(values.z, make_float2(two.x, two.y));
      values.w = turned(values.w, make_float2(two.z, two.w));
      *chunk = values;
    }
  }

  static DEVICE int row(int round) { return round * PASS + static_cast<int>(threadIdx.x) / Tile::CHUNKS; }
  static DEVICE int column() { return static_cast<int>(threadIdx.x) % Tile::CHUNKS; }
  static DEVICE bf16* place(Tile tile, int round) {
    return tile.chunk(row(0), column()) + round * PASS * Tile::COLUMNS;
  }

 private:
  static DEVICE uint32_t turned(uint32_t pair, float2 angle) {
    const float2 result = rotate(unpack_bf16(pair), angle);
    return pack_bf16(result.x, result.y);
  }
};

// The left operand of a product from two neighbouring accumulator fragments: rounded, they lie as it wants them.
DEVICE void as_left_operand(uint32_t (&fragment)[4], const float (&left)[4], const float (&right)[4]) {
  fragment[0] = pack_bf16(left[0], left[1]);
  fragment[1] = pack_bf16(left[2], left[3]);
  fragment[2] = pack_bf16(right[0], right[1]);
  fragment[3] = pack_bf16(right[2], right[3]);
}

// sum += A B^T for the first DOWN * 16 rows of A, a warp's, and the first COLUMNS rows of B.
template <int DOWN, int COLUMNS, typename TileA, typename TileB>
DEVICE void multiply_by_rows(float (&sum)[DOWN][COLUMNS / 8][4], TileA a, TileB b) {
#pragma unroll
  for (int k = 0; k < TileA::COLUMNS; k += 16) {
    uint32_t left[DOWN][4];
#pragma unroll
    for (int i = 0; i < DOWN; i++) a.load_down(left[i], i * 16, k);
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j += 2) {
      uint32_t right[4];
      b.load_across(right, j * 8, k);
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
        mma_bf16_16816(sum[i][j], left[i], right[0], right[1]);
        mma_bf16_16816(sum[i][j + 1], left[i], right[2], right[3]);
      }
    }
  }
}

// The first DOWN * 16 rows of a tile as fragments of a left operand, to be held in registers.
template <int DOWN, int DEPTH, typename Tile>
DEVICE void load_held(uint32_t (&a)[DOWN][DEPTH][4], Tile tile) {
#pragma unroll
  for (int i = 0; i < DOWN; i++)
#pragma unroll
    for (int k = 0; k < DEPTH; k++) tile.load_down(a[i][k], i * 16, k * 16);
}

// sum += A B^T for such fragments A and the first COLUMNS rows of B.
template <int DOWN, int COLUMNS, int DEPTH, typename Tile>
DEVICE void multiply_held(float (&sum)[DOWN][COLUMNS / 8][4], const uint32_t (&a)[DOWN][DEPTH][4], Tile b) {
#pragma unroll
  for (int k = 0; k < DEPTH; k++) {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j += 2) {
      uint32_t right[4];
      b.load_across(right, j * 8, k * 16);
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
        mma_bf16_16816(sum[i][j], a[i][k], right[0], right[1]);
        mma_bf16_16816(sum[i][j + 1], a[i][k], right[2], right[3]);
      }
    }
  }
}

// sum += A B for accumulator fragments A [DOWN * 16, DEPTH] and the first DEPTH rows of B.
template <int DOWN, int DEPTH, typename Tile>
DEVICE void multiply_fragments(float (&sum)[DOWN][Tile::COLUMNS / 8][4], const float (&a)[DOWN][DEPTH / 8][4], Tile b) {
#pragma unroll
  for (int k = 0; k < DEPTH; k += 16) {
    uint32_t left[DOWN][4];
#pragma unroll
    for (int i = 0; i < DOWN; i++) as_left_operand(left[i], a[i][k / 8], a[i][k / 8 + 1]);
#pragma unroll
    for (int j = 0; j < Tile::COLUMNS / 8; j += 2) {
      uint32_t right[4];
      b.load_down_transposed(right, k, j * 8);
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
        mma_bf16_16816(sum[i][j], left[i], right[0], right[1]);
        mma_bf16_16816(sum[i][j + 1], left[i], right[2], right[3]);
      }
    }
  }
}

// Deltas, the row sums of doutput * output, of the rows that a thread has fetched, in `deltas` (shared) and, where `to`
// is not null, in device memory. A row's chunks lie in neighbouring lanes.
template <typename Loader, typename Tile>
DEVICE void compute_deltas(Tile doutput, const bf16* output, int64_t stride, int count, float* deltas, float* to) {
  for (int i = 0; i < Loader::ROUNDS; i++) {
    const int r = Loader::row(i);
    float sum = 0;
    if (r < count) {
      const uint4 a = *reinterpret_cast<const uint4*>(Loader::place(doutput, i));
      const uint4 b = *reinterpret_cast<const uint4*>(output + r * stride + Loader::column() * CHUNK);
      const uint32_t x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int e = 0; e < 4; e++) {
        const float2 left = unpack_bf16(x[e]), right = unpack_bf16(y[e]);
        sum = fmaf(left.x, right.x, fmaf(left.y, right.y, sum));
      }
    }
#pragma unroll
    for (int step = 1; step < Tile::CHUNKS; step *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
    if (Loader::column() == 0) {
      deltas[r] = sum;
      if (to && r < count) to[r] = sum;
    }
  }
}

template <int DOWN, int FRAGMENTS>
DEVICE void scale_all(float (&sum)[DOWN][FRAGMENTS][4], float factor) {
#pragma unroll
  for (int i = 0; i < DOWN; i++)
#pragma unroll
    for (int j = 0; j < FRAGMENTS; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) sum[i][j][e] *= factor;
}

// Turns a warp's accumulator rows back: row i stands where row `first` + i of the sequence does, if i < count.
template <int DOWN, int FRAGMENTS>
DEVICE void turn_back(float (&sum)[DOWN][FRAGMENTS][4], const Rotation& rotation, int first, int count) {
  if (!rotation.table) return;
  const int lane = lane_of_thread();
#pragma unroll
  for (int i = 0; i < DOWN; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = i * 16 + half * 8 + lane / 4;
      if (r >= count) continue;
      const float* const angles = rotation.row(first + r, FRAGMENTS * 8) + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < FRAGMENTS; j++) {
        float(&pair)[4] = sum[i][j];
        const float2 turned = rotate_back(make_float2(pair[half * 2], pair[half * 2 + 1]),
                                          *reinterpret_cast<const float2*>(angles + j * 8));
        pair[half * 2] = turned.x;
        pair[half * 2 + 1] = turned.y;
      }
    }
  }
}

// Writes a warp's accumulator rows to device memory, as far as they exist, by way of its rows of a tile that it alone
// still uses, so that stores are of 16 bytes.
template <int DOWN, typename Tile>
DEVICE void write_rows(const float (&sum)[DOWN][Tile::COLUMNS / 8][4], Tile tile, int row, bf16* to, int64_t stride,
                       int count) {
  const int lane = lane_of_thread();
  __syncwarp();
#pragma unroll
  for (int i = 0; i < DOWN; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = row + i * 16 + half * 8 + lane / 4;
#pragma unroll
      for (int j = 0; j < Tile::CHUNKS; j++)
        *reinterpret_cast<uint32_t*>(tile.chunk(r, j) + lane % 4 * 2) =
            pack_bf16(sum[i][j][half * 2], sum[i][j][half * 2 + 1]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < DOWN * 16 * Tile::CHUNKS / 32; i++) {
    const int r = (i * 32 + lane) / Tile::CHUNKS, c = (i * 32 + lane) % Tile::CHUNKS;
    if (r < count)
      *reinterpret_cast<uint4*>(to + r * stride + c * CHUNK) = *reinterpret_cast<const uint4*>(tile.chunk(row + r, c));
  }
}

// Whether the kernels on tensor cores take such heads, with rows that start at these pointers (null ones aside).
template <typename... Pointers>
inline bool on_tensor_cores(int32_t dtype, int64_t dim, int64_t q_stride, int64_t kv_stride, Pointers... pointers) {
  return dtype == MANTOU_BFLOAT16 && (dim == 16 || dim == 32 || dim == 64 || dim == 128) && q_stride % CHUNK == 0 &&
         kv_stride % CHUNK == 0 && (is_aligned(pointers) && ...);
}

// Forward: for any heads, and for those that `on_tensor_cores` refuses.
int32_t attend(const mantou_context* context, const char* name, int32_t dtype, const Attention& problem);
int32_t attend_scalar(const mantou_context* context, const char* name, int32_t dtype, const Attention& problem);
// Whether a block can hold a whole head (that the kernels on tensor cores take), and backward where it can.
bool is_short(const mantou_context* context, const AttentionBackward& problem);
int32_t attend_short_backward(const mantou_context* context, const AttentionBackward& problem);
int32_t attend_scalar_backward(const mantou_context* context, int32_t dtype, const AttentionBackward& problem);

// check_attention, and that the kernels can count in int.
inline int32_t check_sizes(const char* function, int64_t batch, int64_t length, int64_t heads, int64_t kv_heads,
                           int64_t head_dim, int64_t q_stride, int64_t kv_stride) {
  RETURN_IF_FAILED(check_attention(function, batch, length, heads, kv_heads, head_dim, q_stride, kv_stride));
  CHECK(batch <= MAX_LENGTH && length <= MAX_LENGTH && heads <= INT32_MAX / MAX_HEAD_DIM,
        "%s: %lld sequences of %lld with %lld heads are too large", function, static_cast<long long>(batch),
        static_cast<long long>(length), static_cast<long long>(heads));
  return MANTOU_OK;
}

}  // namespace mantou
