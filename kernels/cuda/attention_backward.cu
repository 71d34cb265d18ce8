// Causal attention, backward, as in FlashAttention-2 (Dao 2023, algorithm 2): the weights P are computed again from q, k
// and the log-sum-exp of the forward pass, tile by tile. With delta = rowsum(doutput * output),
//
//   dV = P^T dO      dP = dO V^T      dS = P * (dP - delta)      dQ = scale dS K      dK = scale dS^T Q
//
// where Q and K are rotated; the gradients are rotated back as they are finished.
//
// Two kernels, so that every sum stays in one warp's registers and has a fixed order, without atomics and without a
// float32 dQ in device memory; the price is that P and dP are computed twice (7 products instead of 5). One holds a
// block of queries (dQ, and delta on the way) and walks over keys from the diagonal down; the other holds a block of keys
// and walks over the queries of all heads that read it, with scores transposed: so each warp's rows of P^T and dS^T are
// the left operands of its own dV and dK, and no weights pass through shared memory. Tiles move as in attention.cu. Short
// sequences with narrow heads have one kernel of their own (attention_short.cu).
#include "attention.h"

namespace mantou {
namespace {

// Rows held by a block.
constexpr int HELD = 128;

// PASSING rows at a time pass by: with wide heads 32, so that all fit the 99 KB that a block has on GPUs of compute
// capability 8.6, 8.9 and 12. A warp holds DOWN fragments of 16 rows: two share what is loaded for the other operand, but
// with wide heads their sums do not fit the registers. Scores are computed STRIP columns at a time.
template <int DIM>
struct Plan {
  static constexpr int DOWN = DIM > 64 ? 1 : 2;
  static constexpr int THREADS = HELD / (DOWN * 16) * 32;
  static constexpr int STRIP = 32;
  static constexpr int PASSING = DIM > 64 ? 32 : 64;
  static constexpr int SHARED_BYTES = (2 * HELD + 4 * PASSING) * DIM * 2;
  using Held = TensorTile<HELD, DIM>;
  using Passing = TensorTile<PASSING, DIM>;
  using HeldLoader = HeadLoader<Held, THREADS>;
  using PassingLoader = HeadLoader<Passing, THREADS>;
};

// The tiles of a block: two held, and two buffers for each of two that pass by.
template <int DIM>
struct Tiles {
  bf16* memory;
  int lane;
  DEVICE typename Plan<DIM>::Held held(int which) const { return {memory + which * HELD * DIM, lane}; }
  DEVICE typename Plan<DIM>::Passing passing(int which, int step) const {
    return {memory + (2 * HELD + (which * 2 + (step & 1)) * Plan<DIM>::PASSING) * DIM, lane};
  }
};

// dQ of a block of queries of one head, and its deltas.
template <int DIM>
GLOBAL void LAUNCH_BOUNDS(Plan<DIM>::THREADS, 1) differentiate_queries(AttentionBackward p, Order order) {
  using P = Plan<DIM>;
  constexpr int DOWN = P::DOWN, STRIP = P::STRIP, PASSING = P::PASSING;
  SHARED_DYNAMIC(memory);
  SHARED_ARRAY(float, deltas, [HELD]);
  Tiles<DIM> tiles = {reinterpret_cast<bf16*>(memory), lane_of_thread()};

  const Work work = order.at(blockIdx.x, p.heads);
  const int first = work.block * HELD;
  const int count = p.length - first < HELD ? p.length - first : HELD;
  const int64_t row = int64_t{work.sequence} * p.length + first;
  const int64_t width = static_cast<int64_t>(p.heads) * DIM;
  const int64_t offset = row * width + work.head * DIM;
  const int kv_head = work.head / (p.heads / p.kv_heads);
  const int64_t kv_offset = int64_t{work.sequence} * p.length * p.kv_stride + kv_head * DIM;
  const auto* const k = static_cast<const bf16*>(p.k) + kv_offset;
  const auto* const v = static_cast<const bf16*>(p.v) + kv_offset;
  const int32_t* const positions = p.positions ? p.positions + int64_t{work.sequence} * p.length : nullptr;
  const Rotation rotation = {p.rope, positions, 0};
  const int64_t statistics = (int64_t{work.sequence} * p.heads + work.head) * p.length + first;
  const int key_count = first + count;
  const auto fetch = [&](int block) {
    const int key = block * PASSING;
    P::PassingLoader::fetch(tiles.passing(0, block), k + key * p.kv_stride, p.kv_stride, key_count - key);
    P::PassingLoader::fetch(tiles.passing(1, block), v + key * p.kv_stride, p.kv_stride, key_count - key);
    cp_async_commit();
  };

  P::HeldLoader::fetch(tiles.held(0), static_cast<const bf16*>(p.q) + row * p.q_stride + work.head * DIM, p.q_stride,
                       count);
  P::HeldLoader::fetch(tiles.held(1), static_cast<const bf16*>(p.doutput) + offset, width, count);
  const int last_block = (key_count - 1) / PASSING;
  fetch(last_block);
  cp_async_wait<0>();
  P::HeldLoader::turn(tiles.held(0), rotation, first, count);
  compute_deltas<typename P::HeldLoader>(tiles.held(1), static_cast<const bf16*>(p.output) + offset, width, count, deltas,
                      p.delta + statistics);
  __syncthreads();

  const int lane = lane_of_thread();
  const int warp_row = warp_of_thread() * DOWN * 16;
  const float factor = p.scale * LOG2_E;
  float lse[DOWN][2], delta[DOWN][2];
#pragma unroll
  for (int i = 0; i < DOWN; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = warp_row + i * 16 + half * 8 + lane / 4;
      lse[i][half] = r < count ? p.lse[statistics + r] * LOG2_E : INFINITY;
      delta[i][half] = deltas[r];
    }
  }

  // With heads of 64 there are registers for one of the two.
  constexpr bool HOLDS_BOTH = DIM != 64;
  uint32_t q_fragments[DOWN][DIM / 16][4];
  [[maybe_unused]] uint32_t doutput_fragments[DOWN][DIM / 16][4];
  load_held(q_fragments, tiles.held(0).from(warp_row));
  if constexpr (HOLDS_BOTH) load_held(doutput_fragments, tiles.held(1).from(warp_row));
  float sums[DOWN][DIM / 8][4] = {};
  for (int block = last_block; block >= 0; block--) {
    const int key = block * PASSING;
    cp_async_wait<0>();
    P::PassingLoader::turn(tiles.passing(0, block), rotation, key, key_count - key);
    // Now this block is complete for everyone, and everyone has left the buffers of the one before.
    __syncthreads();
    if (block > 0) fetch(block - 1);
#pragma unroll 1
    for (int strip = 0; strip < PASSING; strip += STRIP) {
      // Query r of this warp sees the keys 0 .. ahead + r of the strip.
      const int ahead = first + warp_row - key - strip;
      if (ahead + DOWN * 16 <= 0) break;
      float weights[DOWN][STRIP / 8][4] = {}, dweights[DOWN][STRIP / 8][4] = {};
      multiply_held<DOWN, STRIP>(weights, q_fragments, tiles.passing(0, block).from(strip));
      if constexpr (HOLDS_BOTH)
        multiply_held<DOWN, STRIP>(dweights, doutput_fragments, tiles.passing(1, block).from(strip));
      else
        multiply_by_rows<DOWN, STRIP>(dweights, tiles.held(1).from(warp_row), tiles.passing(1, block).from(strip));
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
#pragma unroll
        for (int j = 0; j < STRIP / 8; j++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const bool seen = j * 8 + lane % 4 * 2 + e % 2 <= ahead + i * 16 + e / 2 * 8 + lane / 4;
            const float weight = seen ? fast_exp2(fmaf(weights[i][j][e], factor, -lse[i][e / 2])) : 0.0f;
            dweights[i][j][e] = weight * (dweights[i][j][e] - delta[i][e / 2]);
          }
        }
      }
      multiply_fragments<DOWN, STRIP>(sums, dweights, tiles.passing(0, block).from(strip));
    }
  }

  scale_all(sums, p.scale);
  turn_back(sums, {p.gradient_rope, positions, 0}, first + warp_row, count - warp_row);
  write_rows<DOWN>(sums, tiles.held(0), warp_row,
                   static_cast<bf16*>(p.dq) + (row + warp_row) * p.q_stride + work.head * DIM, p.q_stride,
                   count - warp_row);
}

// dK and dV of a block of keys of one key/value head.
template <int DIM>
GLOBAL void LAUNCH_BOUNDS(Plan<DIM>::THREADS, 1) differentiate_keys(AttentionBackward p, Order order) {
  using P = Plan<DIM>;
  constexpr int DOWN = P::DOWN, STRIP = P::STRIP, PASSING = P::PASSING;
  SHARED_DYNAMIC(memory);
  SHARED_ARRAY(float, lses, [2][PASSING]);
  SHARED_ARRAY(float, deltas, [2][PASSING]);
  Tiles<DIM> tiles = {reinterpret_cast<bf16*>(memory), lane_of_thread()};

  const Work work = order.at(blockIdx.x, p.kv_heads);
  const int first = work.block * HELD;
  const int count = p.length - first < HELD ? p.length - first : HELD;
  const int64_t row = int64_t{work.sequence} * p.length;
  const int64_t width = static_cast<int64_t>(p.heads) * DIM;
  const int64_t kv_offset = (row + first) * p.kv_stride + work.head * DIM;
  const int32_t* const positions = p.positions ? p.positions + row : nullptr;
  const Rotation rotation = {p.rope, positions, 0};
  const int group = p.heads / p.kv_heads;
  // The blocks of queries that see these keys, of one head of the group after the other.
  const int first_block = first / PASSING, end_block = (p.length - 1) / PASSING + 1;
  const int steps = group * (end_block - first_block);
  const int thread = static_cast<int>(threadIdx.x);
  int head = work.head * group, block = first_block;
  float next_lse = 0, next_delta = 0;
  const auto fetch = [&](int step) {
    const int query = block * PASSING;
    P::PassingLoader::fetch(tiles.passing(0, step),
                            static_cast<const bf16*>(p.q) + (row + query) * p.q_stride + head * DIM, p.q_stride,
                            p.length - query);
    P::PassingLoader::fetch(tiles.passing(1, step),
                            static_cast<const bf16*>(p.doutput) + (row + query) * width + head * DIM, width,
                            p.length - query);
    cp_async_commit();
    if (thread < PASSING) {
      const bool exists = query + thread < p.length;
      const int64_t at = (int64_t{work.sequence} * p.heads + head) * p.length + query + thread;
      next_lse = exists ? p.lse[at] * LOG2_E : INFINITY;  // so that a query beyond the end weighs nothing
      next_delta = exists ? p.delta[at] : 0.0f;
    }
  };

  P::HeldLoader::fetch(tiles.held(0), static_cast<const bf16*>(p.k) + kv_offset, p.kv_stride, count);
  P::HeldLoader::fetch(tiles.held(1), static_cast<const bf16*>(p.v) + kv_offset, p.kv_stride, count);
  fetch(0);
  cp_async_wait<0>();
  P::HeldLoader::turn(tiles.held(0), rotation, first, count);

  const int lane = lane_of_thread();
  const int warp_row = warp_of_thread() * DOWN * 16;
  const float factor = p.scale * LOG2_E;
  float dk[DOWN][DIM / 8][4] = {}, dv[DOWN][DIM / 8][4] = {};
  for (int step = 0; step < steps; step++) {
    const int query = block * PASSING;
    cp_async_wait<0>();
    P::PassingLoader::turn(tiles.passing(0, step), rotation, query, p.length - query);
    if (thread < PASSING) lses[step & 1][thread] = next_lse, deltas[step & 1][thread] = next_delta;
    __syncthreads();
    if (step + 1 < steps) {
      if (++block == end_block) block = first_block, head++;
      fetch(step + 1);
    }
#pragma unroll 1
    for (int strip = 0; strip < PASSING; strip += STRIP) {
      // Key r of this warp is seen by the queries behind + r .. of the strip.
      const int behind = first + warp_row - query - strip;
      if (behind >= STRIP) continue;
      float weights[DOWN][STRIP / 8][4] = {}, dweights[DOWN][STRIP / 8][4] = {};
      multiply_by_rows<DOWN, STRIP>(weights, tiles.held(0).from(warp_row), tiles.passing(0, step).from(strip));
      multiply_by_rows<DOWN, STRIP>(dweights, tiles.held(1).from(warp_row), tiles.passing(1, step).from(strip));
#pragma unroll
      for (int j = 0; j < STRIP / 8; j++) {
        const int column = j * 8 + lane % 4 * 2;
        const float2 lse = *reinterpret_cast<const float2*>(&lses[step & 1][strip + column]);
        const float2 delta = *reinterpret_cast<const float2*>(&deltas[step & 1][strip + column]);
#pragma unroll
        for (int i = 0; i < DOWN; i++) {
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const bool seen = column + e % 2 >= behind + i * 16 + e / 2 * 8 + lane / 4;
            const float weight =
                seen ? fast_exp2(fmaf(weights[i][j][e], factor, e % 2 ? -lse.y : -lse.x)) : 0.0f;
            weights[i][j][e] = weight;
            dweights[i][j][e] = weight * (dweights[i][j][e] - (e % 2 ? delta.y : delta.x));
          }
        }
      }
      multiply_fragments<DOWN, STRIP>(dv, weights, tiles.passing(1, step).from(strip));
      multiply_fragments<DOWN, STRIP>(dk, dweights, tiles.passing(0, step).from(strip));
    }
  }

  scale_all(dk, p.scale);
  turn_back(dk, {p.gradient_rope, positions, 0}, first + warp_row, count - warp_row);
  const int64_t to = kv_offset + warp_row * p.kv_stride;
  write_rows<DOWN>(dk, tiles.held(0), warp_row, static_cast<bf16*>(p.dk) + to, p.kv_stride, count - warp_row);
  write_rows<DOWN>(dv, tiles.held(1), warp_row, static_cast<bf16*>(p.dv) + to, p.kv_stride, count - warp_row);
}

template <int DIM>
int32_t launch_backward(const mantou_context* context, const AttentionBackward& p) {
  using P = Plan<DIM>;
  constexpr const char* NAME = "mantou_attention_backward";
  const int blocks = (p.length - 1) / HELD + 1;
  const int64_t bytes = int64_t{4} * p.length * DIM;
  const Order queries = order_of(context, p.batch * p.heads, blocks, bytes, true);
  RETURN_IF_FAILED(launch(NAME, differentiate_queries<DIM>, grid_of(queries.heads * blocks), P::THREADS, P::SHARED_BYTES,
                          context->stream, p, queries));
  const Order keys = order_of(context, p.batch * p.kv_heads, blocks, bytes * (p.heads / p.kv_heads), false);
  return launch(NAME, differentiate_keys<DIM>, grid_of(keys.heads * blocks), P::THREADS, P::SHARED_BYTES,
                context->stream, p, keys);
}

}  // namespace
}  // namespace mantou

using namespace mantou;

int64_t mantou_attention_rotate_first(int64_t sequence_length) { return sequence_length > ROTATED_ON_LOAD; }

int64_t mantou_attention_backward_workspace(int64_t batch, int64_t sequence_length, int64_t heads, int64_t, int64_t) {
  return batch * heads * sequence_length * static_cast<int64_t>(sizeof(float));
}

int32_t mantou_attention_backward(mantou_context* context, int32_t dtype, int64_t batch, int64_t sequence_length,
                                  int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, const void* doutput,
                                  const void* q, int64_t q_stride, const void* k, const void* v, int64_t kv_stride,
                                  const float* rope, const int32_t* positions, int32_t rotated, const void* output,
                                  const float* lse, void* dq, void* dk, void* dv, void* workspace) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  RETURN_IF_FAILED(check_sizes(__func__, batch, sequence_length, heads, kv_heads, head_dim, q_stride, kv_stride));
  if (batch == 0 || sequence_length == 0) return MANTOU_OK;
  CHECK_NOT_NULL(doutput, q, k, v, output, lse, dq, dk, dv, workspace);
  const AttentionBackward p = {batch,
                               static_cast<int>(sequence_length),
                               static_cast<int>(heads),
                               static_cast<int>(kv_heads),
                               static_cast<int>(head_dim),
                               scale,
                               doutput,
                               q,
                               q_stride,
                               k,
                               v,
                               kv_stride,
                               rotated ? nullptr : rope,
                               rope,
                               positions,
                               output,
                               lse,
                               dq,
                               dk,
                               dv,
                               static_cast<float*>(workspace)};
  if (!on_tensor_cores(dtype, head_dim, q_stride, kv_stride, doutput, q, k, v, rope, output, dq, dk, dv))
    return attend_scalar_backward(context, dtype, p);
  if (is_short(context, p)) return attend_short_backward(context, p);
  switch (p.dim) {
    case 16: return launch_backward<16>(context, p);
    case 32: return launch_backward<32>(context, p);
    case 64: return launch_backward<64>(context, p);
    default: return launch_backward<128>(context, p);
  }
}
