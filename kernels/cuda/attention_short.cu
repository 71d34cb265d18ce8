// Attention, backward, of short sequences with narrow heads: a block holds a whole head, so that the weights P and their
// gradients dS are computed once for all three gradients (5 products; attention_backward.cu, which see for the formulas,
// needs 7) and everything is read from device memory once.
//
// Each of 16 warps holds 16 keys. The block walks over the queries, STRIP at a time: a warp adds its keys' part to its own
// dK and dV, with scores transposed, as differentiate_keys does, and leaves its rows of dS^T in shared memory; after a
// barrier two warps, of those with least to do, multiply them by K to the finished dQ of these queries, while the others
// are at the next ones. A block takes one head after another; the next one's rows arrive while this one is computed.
#include "attention.h"

namespace mantou {
namespace {

constexpr int ROWS = 256;
constexpr int WARPS = ROWS / 16;
constexpr int THREADS = WARPS * 32;
constexpr int STRIP = 32;

template <int DIM>
struct Plan {
  using Rows = TensorTile<ROWS, DIM>;
  using Scores = TensorTile<ROWS, STRIP>;  // by keys
  using Loader = HeadLoader<Rows, THREADS>;
  static constexpr int SHARED_BYTES = 8 * Rows::BYTES + 2 * Scores::BYTES;
};

// Q, dO, K and V of a head, two times over, and dS^T of a strip, two times over.
enum Which : int { QUERIES, DOUTPUTS, KEYS, VALUES };

template <int DIM>
struct Tiles {
  bf16* memory;
  int lane;
  DEVICE typename Plan<DIM>::Rows rows(Which which, int turn) const {
    return {memory + ((turn & 1) * 4 + which) * ROWS * DIM, lane};
  }
  DEVICE typename Plan<DIM>::Scores scores(int step) const {
    return {memory + (8 * DIM + (step & 1) * STRIP) * ROWS, lane};
  }
};

template <int DIM>
GLOBAL void LAUNCH_BOUNDS(THREADS, 1) differentiate_head(AttentionBackward p) {
  using P = Plan<DIM>;
  SHARED_DYNAMIC(memory);
  SHARED_ARRAY(float, lses, [ROWS]);
  SHARED_ARRAY(float, deltas, [ROWS]);
  const int thread = static_cast<int>(threadIdx.x);
  Tiles<DIM> tiles = {reinterpret_cast<bf16*>(memory), lane_of_thread()};
  const int group = p.heads / p.kv_heads;
  const int64_t width = static_cast<int64_t>(p.heads) * DIM;

  // Turn t is the head t % group of the key/value head of all sequences that this block takes t / group-th.
  const auto head_at = [&](int turn) {
    const int64_t kv_head = blockIdx.x + int64_t{turn / group} * gridDim.x;
    return Work{static_cast<int>(kv_head / p.kv_heads),
                static_cast<int>(kv_head % p.kv_heads) * group + turn % group, 0};
  };
  const auto fetch = [&](int turn) {
    const Work work = head_at(turn);
    const int64_t row = int64_t{work.sequence} * p.length;
    const int64_t kv_offset = row * p.kv_stride + work.head / group * DIM;
    P::Loader::fetch(tiles.rows(QUERIES, turn), static_cast<const bf16*>(p.q) + row * p.q_stride + work.head * DIM,
                     p.q_stride, p.length);
    P::Loader::fetch(tiles.rows(DOUTPUTS, turn), static_cast<const bf16*>(p.doutput) + row * width + work.head * DIM,
                     width, p.length);
    P::Loader::fetch(tiles.rows(KEYS, turn), static_cast<const bf16*>(p.k) + kv_offset, p.kv_stride, p.length);
    P::Loader::fetch(tiles.rows(VALUES, turn), static_cast<const bf16*>(p.v) + kv_offset, p.kv_stride, p.length);
    cp_async_commit();
  };

  const int64_t kv_heads = p.batch * p.kv_heads;
  const int turns = static_cast<int>((kv_heads - blockIdx.x - 1) / gridDim.x + 1) * group;
  const int first_key = warp_of_thread() * 16;
  const float factor = p.scale * LOG2_E;
  float dk[1][DIM / 8][4] = {}, dv[1][DIM / 8][4] = {};
  fetch(0);
  for (int turn = 0; turn < turns; turn++) {
    const Work work = head_at(turn);
    const int64_t row = int64_t{work.sequence} * p.length;
    const int32_t* const positions = p.positions ? p.positions + row : nullptr;
    const auto tile = [&](Which which) { return tiles.rows(which, turn); };
    cp_async_wait<0>();
    P::Loader::turn(tile(QUERIES), {p.rope, positions, 0}, 0, p.length);
    P::Loader::turn(tile(KEYS), {p.rope, positions, 0}, 0, p.length);
    compute_deltas<typename P::Loader>(tile(DOUTPUTS), static_cast<const bf16*>(p.output) + row * width + work.head * DIM,
                                       width, p.length, deltas, nullptr);
    if (thread < ROWS) {
      const int64_t statistics = (int64_t{work.sequence} * p.heads + work.head) * p.length;
      lses[thread] = thread < p.length ? p.lse[statistics + thread] * LOG2_E : INFINITY;
    }
    // Now this head is complete for everyone, and everyone has left the tiles of the one before.
    __syncthreads();
    if (turn + 1 < turns) fetch(turn + 1);

    uint32_t key_fragments[1][DIM / 16][4], value_fragments[1][DIM / 16][4];
    load_held(key_fragments, tile(KEYS).from(first_key));
    load_held(value_fragments, tile(VALUES).from(first_key));
    for (int step = 0; step * STRIP < p.length; step++) {
      const int query = step * STRIP;
      forget(tiles.lane);  // no registers are left to keep addresses in from step to step
      const int lane = tiles.lane;
      if (first_key < query + STRIP) {
        float weights[1][STRIP / 8][4] = {}, dweights[1][STRIP / 8][4] = {};
        multiply_held<1, STRIP>(weights, key_fragments, tile(QUERIES).from(query));
        multiply_held<1, STRIP>(dweights, value_fragments, tile(DOUTPUTS).from(query));
#pragma unroll
        for (int j = 0; j < STRIP / 8; j++) {
          const int column = query + j * 8 + lane % 4 * 2;
          const float2 lse = *reinterpret_cast<const float2*>(&lses[column]);
          const float2 delta = *reinterpret_cast<const float2*>(&deltas[column]);
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const bool seen = column + e % 2 >= first_key + e / 2 * 8 + lane / 4;
            const float weight = seen ? fast_exp2(fmaf(weights[0][j][e], factor, e % 2 ? -lse.y : -lse.x)) : 0.0f;
            weights[0][j][e] = weight;
            dweights[0][j][e] = weight * (dweights[0][j][e] - (e % 2 ? delta.y : delta.x));
          }
#pragma unroll
          for (int half = 0; half < 2; half++)
            *reinterpret_cast<uint32_t*>(tiles.scores(step).chunk(first_key + half * 8 + lane / 4, j) + lane % 4 * 2) =
                pack_bf16(dweights[0][j][half * 2], dweights[0][j][half * 2 + 1]);
        }
        multiply_fragments<1, STRIP>(dv, weights, tile(DOUTPUTS).from(query));
        multiply_fragments<1, STRIP>(dk, dweights, tile(QUERIES).from(query));
      }
      // Now dS^T is complete, and these queries have served everyone.
      __syncthreads();
      const int part = WARPS - 1 - warp_of_thread();
      const int first = query + part * 16;
      if (part >= STRIP / 16 || first >= p.length) continue;
      float dq[1][DIM / 8][4] = {};
      for (int key = 0; key < first + 16; key += 16) {
        uint32_t left[4];
        tiles.scores(step).load_across_transposed(left, key, part * 16);
#pragma unroll
        for (int j = 0; j < DIM / 8; j += 2) {
          uint32_t right[4];
          tile(KEYS).load_down_transposed(right, key, j * 8);
          mma_bf16_16816(dq[0][j], left, right[0], right[1]);
          mma_bf16_16816(dq[0][j + 1], left, right[2], right[3]);
        }
      }
      scale_all(dq, p.scale);
      turn_back(dq, {p.gradient_rope, positions, 0}, first, p.length - first);
      write_rows<1>(dq, tile(QUERIES), first, static_cast<bf16*>(p.dq) + (row + first) * p.q_stride + work.head * DIM,
                    p.q_stride, p.length - first);
    }

    if (turn % group < group - 1) continue;
    const int count = p.length - first_key;
    const int64_t to = (row + first_key) * p.kv_stride + work.head / group * DIM;
    scale_all(dk, p.scale);
    turn_back(dk, {p.gradient_rope, positions, 0}, first_key, count);
    // By way of this warp's values, which are in its registers; keys may still be in use.
    write_rows<1>(dk, tile(VALUES), first_key, static_cast<bf16*>(p.dk) + to, p.kv_stride, count);
    write_rows<1>(dv, tile(VALUES), first_key, static_cast<bf16*>(p.dv) + to, p.kv_stride, count);
#pragma unroll
    for (int j = 0; j < DIM / 8; j++)
#pragma unroll
      for (int e = 0; e < 4; e++) dk[0][j][e] = dv[0][j][e] = 0;
  }
}

template <int DIM>
int32_t launch_short(const mantou_context* context, const AttentionBackward& p) {
  return launch("mantou_attention_backward", differentiate_head<DIM>, grid_for(context, p.batch * p.kv_heads, 1), THREADS,
                Plan<DIM>::SHARED_BYTES, context->stream, p);
}

}  // namespace

// GPUs of compute capability 8.6 and 8.9 have too little shared memory for heads of 32.
bool is_short(const mantou_context* context, const AttentionBackward& p) {
  constexpr int64_t STATISTICS = 2 * ROWS * sizeof(float);
  const int64_t bytes = p.dim == 16 ? Plan<16>::SHARED_BYTES : Plan<32>::SHARED_BYTES;
  return p.dim <= 32 && p.length <= ROWS && bytes + STATISTICS <= context->shared_bytes;
}

int32_t attend_short_backward(const mantou_context* context, const AttentionBackward& p) {
  return p.dim == 16 ? launch_short<16>(context, p) : launch_short<32>(context, p);
}

}  // namespace mantou
