// Causal attention, forward, as in FlashAttention (Dao 2023, "FlashAttention-2", algorithm 1): a block of queries walks
// over the blocks of keys that it may see with a running maximum and sum per query, and the T x T scores exist one tile
// at a time. Keys and values may lie in a cache (attention_cached.cu).
//
// On tensor cores (attend): four warps hold 32 queries each. Scores stay in registers: rounded, accumulator fragments of
// weights are the left operand of the product with the values. Keys and values pass through two buffers each, the next
// block arriving while this one is used; a thread rotates the keys that it has copied itself. The walk begins at the
// diagonal, where alone scores are masked, and the last blocks of queries, which see most keys, start first.
#include "attention.h"

namespace mantou {
namespace {

constexpr int THREADS = 128;
constexpr int DOWN = 2;  // fragments of 16 queries per warp
constexpr int QUERIES = THREADS / 32 * DOWN * 16;

// Sums and weights are relative to a base that follows the greatest score only when that has left it this far behind, in
// powers of two: what was summed is scaled anew a few times in all instead of at every block of keys, and a weight of 2^8
// has the same digits as one of 1 (Zadouri et al. 2026, "FlashAttention-4").
constexpr float GROWTH = 8;

template <int DIM, int KEYS>
constexpr int SHARED_BYTES = (QUERIES + 4 * KEYS) * DIM * 2;

// What a block of queries reads and writes, kept in shared memory: beside the sums of wide heads there are no registers
// for what is needed once per block of keys.
struct Head {
  const bf16 *q, *k, *v;
  const int32_t* positions;
  bf16* output;
  float* lse;
};

template <int DIM, int KEYS>
GLOBAL void LAUNCH_BOUNDS(THREADS, 2) attend(Attention p, Order order) {
  using QueryTile = TensorTile<QUERIES, DIM>;
  using KeyTile = TensorTile<KEYS, DIM>;
  using QueryLoader = HeadLoader<QueryTile, THREADS>;
  using KeyLoader = HeadLoader<KeyTile, THREADS>;
  SHARED_DYNAMIC(memory);
  SHARED_ARRAY(Head, shared_head, [1]);
  const Head& head = shared_head[0];
  auto* const tiles = reinterpret_cast<bf16*>(memory);
  const int lane = lane_of_thread();
  const QueryTile queries{tiles, lane};
  const auto keys = [&](int block) { return KeyTile{tiles + (QUERIES + (block & 1) * KEYS) * DIM, lane}; };
  const auto values = [&](int block) { return KeyTile{tiles + (QUERIES + (2 + (block & 1)) * KEYS) * DIM, lane}; };

  const Work work = order.at(blockIdx.x, p.heads);
  if (!p.places.slot_exists(work.sequence) || !p.places.rows_fit(work.sequence, p.queries)) return;
  const int start = p.places.start(work.sequence);
  const int first = work.block * QUERIES;
  const int count = p.queries - first < QUERIES ? p.queries - first : QUERIES;
  const int key_count = start + first + count;
  const int64_t width = static_cast<int64_t>(p.heads) * DIM;
  if (threadIdx.x == 0) {
    const int kv_head = work.head / (p.heads / p.kv_heads);
    const int64_t row = int64_t{work.sequence} * p.queries + first;
    const int64_t kv_offset = p.places.slot(work.sequence) * p.places.capacity * p.kv_stride + kv_head * DIM;
    const int64_t statistics = (int64_t{work.sequence} * p.heads + work.head) * p.queries + first;
    shared_head[0] = {static_cast<const bf16*>(p.q) + row * p.q_stride + work.head * DIM,
                      static_cast<const bf16*>(p.k) + kv_offset,
                      static_cast<const bf16*>(p.v) + kv_offset,
                      p.positions ? p.positions + int64_t{work.sequence} * p.queries : nullptr,
                      static_cast<bf16*>(p.output) + row * width + work.head * DIM,
                      p.lse ? p.lse + statistics : nullptr};
  }
  __syncthreads();
  const auto fetch = [&](int block) {
    const int key = block * KEYS;
    KeyLoader::fetch(keys(block), head.k + key * p.kv_stride, p.kv_stride, key_count - key);
    KeyLoader::fetch(values(block), head.v + key * p.kv_stride, p.kv_stride, key_count - key);
    cp_async_commit();
  };

  QueryLoader::fetch(queries, head.q, p.q_stride, count);
  const int last_block = (key_count - 1) / KEYS;
  fetch(last_block);
  cp_async_wait<0>();
  QueryLoader::turn(queries, {p.q_rope, head.positions, start}, first, count);

  const int warp_row = warp_of_thread() * DOWN * 16;
  const float factor = p.scale * LOG2_E;
  float sums[DOWN][DIM / 8][4] = {};
  // Per row of this lane: fragment i, half h. A weight is 2^(score - base), with scores in powers of two; totals are this
  // lane's share until the end.
  float bases[DOWN][2], totals[DOWN][2];
#pragma unroll
  for (int i = 0; i < DOWN; i++)
    for (int half = 0; half < 2; half++) bases[i][half] = -INFINITY, totals[i][half] = 0;

  // Narrow heads leave the registers to hold the queries, which saves a fifth of the loads from shared memory.
  constexpr bool HOLDS_QUERIES = DIM <= 64;
  [[maybe_unused]] uint32_t q_fragments[DOWN][HOLDS_QUERIES ? DIM / 16 : 1][4];
  if constexpr (HOLDS_QUERIES) {
    __syncthreads();
    load_held(q_fragments, queries.from(warp_row));
  }
  for (int block = last_block; block >= 0; block--) {
    const int key = block * KEYS;
    cp_async_wait<0>();
    KeyLoader::turn(keys(block), {p.k_rope, head.positions, 0}, key, key_count - key);
    // Now this block is complete for everyone, and everyone has left the buffers of the one before.
    __syncthreads();
    if (block > 0) fetch(block - 1);

    // Query r of this warp sees the keys 0 .. ahead + r of the block.
    const int ahead = start + first + warp_row - key;
    if (ahead + DOWN * 16 <= 0) continue;

    float weights[DOWN][KEYS / 8][4] = {};
    if constexpr (HOLDS_QUERIES) multiply_held<DOWN, KEYS>(weights, q_fragments, keys(block));
    else multiply_by_rows<DOWN, KEYS>(weights, queries.from(warp_row), keys(block));
    if (ahead < KEYS - 1) {
#pragma unroll
      for (int i = 0; i < DOWN; i++)
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
          for (int e = 0; e < 4; e++)
            if (j * 8 + lane % 4 * 2 + e % 2 > ahead + i * 16 + e / 2 * 8 + lane / 4) weights[i][j][e] = -INFINITY;
    }

    float most[DOWN][2];
    bool grown = false;
#pragma unroll
    for (int i = 0; i < DOWN; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float score = -INFINITY;
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++)
          score = fmaxf(score, fmaxf(weights[i][j][half * 2], weights[i][j][half * 2 + 1]));
        score = fmaxf(score, __shfl_xor_sync(ALL_LANES, score, 1));
        score = fmaxf(score, __shfl_xor_sync(ALL_LANES, score, 2));
        most[i][half] = score * factor;
        grown |= most[i][half] > bases[i][half] + GROWTH;
      }
    }
    if (__ballot_sync(ALL_LANES, grown) != 0) {
#pragma unroll
      for (int i = 0; i < DOWN; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const float base = fmaxf(bases[i][half], most[i][half]);
          // A query that has seen no key yet has nothing to correct.
          const float correction = base == -INFINITY ? 1.0f : fast_exp2(bases[i][half] - base);
          bases[i][half] = base;
          totals[i][half] *= correction;
#pragma unroll
          for (int j = 0; j < DIM / 8; j++) {
            sums[i][j][half * 2] *= correction;
            sums[i][j][half * 2 + 1] *= correction;
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < DOWN; i++) {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const float base = bases[i][half] == -INFINITY ? 0.0f : bases[i][half];
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
          for (int e = half * 2; e < half * 2 + 2; e++) {
            weights[i][j][e] = fast_exp2(fmaf(weights[i][j][e], factor, -base));
            totals[i][half] += weights[i][j][e];
          }
        }
      }
    }
    multiply_fragments<DOWN, KEYS>(sums, weights, values(block));
  }

#pragma unroll
  for (int i = 0; i < DOWN; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = totals[i][half];
      total += __shfl_xor_sync(ALL_LANES, total, 1);
      total += __shfl_xor_sync(ALL_LANES, total, 2);
      const float inverse = __fdividef(1.0f, total);  // a total lies between 1 and 2^GROWTH for each key
#pragma unroll
      for (int j = 0; j < DIM / 8; j++) {
        sums[i][j][half * 2] *= inverse;
        sums[i][j][half * 2 + 1] *= inverse;
      }
      const int r = warp_row + i * 16 + half * 8 + lane / 4;
      if (head.lse && lane % 4 == 0 && r < count) head.lse[r] = bases[i][half] * (1 / LOG2_E) + logf(total);
    }
  }
  write_rows<DOWN>(sums, queries, warp_row, head.output + warp_row * width, width, count - warp_row);
}

template <int DIM, int KEYS>
int32_t launch_attend(const mantou_context* context, const char* name, const Attention& p) {
  const int blocks = (p.queries - 1) / QUERIES + 1;
  const Order order = order_of(context, p.batch * p.heads, blocks, int64_t{4} * p.places.capacity * DIM, true);
  return launch(name, attend<DIM, KEYS>, grid_of(order.heads * order.blocks), THREADS, SHARED_BYTES<DIM, KEYS>,
                context->stream, p, order);
}

}  // namespace

int32_t attend(const mantou_context* context, const char* name, int32_t dtype, const Attention& p) {
  // A maximum times a negative scale would be a minimum.
  if (!(p.scale > 0) ||
      !on_tensor_cores(dtype, p.dim, p.q_stride, p.kv_stride, p.q, p.k, p.v, p.q_rope, p.k_rope, p.output))
    return attend_scalar(context, name, dtype, p);
  switch (p.dim) {
    case 16: return launch_attend<16, 128>(context, name, p);
    case 32: return launch_attend<32, 128>(context, name, p);
    case 64: return launch_attend<64, 64>(context, name, p);
    default: return launch_attend<128, 64>(context, name, p);
  }
}

}  // namespace mantou

using namespace mantou;

int32_t mantou_attention_forward(mantou_context* context, int32_t dtype, int64_t batch, int64_t sequence_length,
                                 int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, const void* q,
                                 int64_t q_stride, const void* k, const void* v, int64_t kv_stride, const float* rope,
                                 const int32_t* positions, void* output, float* lse) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  RETURN_IF_FAILED(check_sizes(__func__, batch, sequence_length, heads, kv_heads, head_dim, q_stride, kv_stride));
  if (batch == 0 || sequence_length == 0) return MANTOU_OK;
  CHECK_NOT_NULL(q, k, v, output, lse);
  return attend(context, __func__, dtype,
                {batch, static_cast<int>(sequence_length), static_cast<int>(heads), static_cast<int>(kv_heads),
                 static_cast<int>(head_dim), {nullptr, nullptr, batch, static_cast<int>(sequence_length)}, scale, q,
                 q_stride, k, v, kv_stride, rope, rope, positions, output, lse});
}
