// Causal attention, forward, as in FlashAttention (Dao 2023, "FlashAttention-2", algorithm 1): a block of queries walks
// over the blocks of keys that it may see with a running maximum and sum per query, and the T x T scores exist one tile
// at a time. Generation with a cache is the same walk over cached keys, or for a single token one pass over them.
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

// Keys arrive KEYS at a time; scores are computed for STRIP of them, as many as the registers hold beside the sums.
template <int DIM, int KEYS, int STRIP>
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
  // Per row of this lane: fragment i, half h. Totals are this lane's share until the end.
  float maxima[DOWN][2], totals[DOWN][2];
#pragma unroll
  for (int i = 0; i < DOWN; i++)
    for (int half = 0; half < 2; half++) maxima[i][half] = -INFINITY, totals[i][half] = 0;

  for (int block = last_block; block >= 0; block--) {
    const int key = block * KEYS;
    cp_async_wait<0>();
    KeyLoader::turn(keys(block), {p.k_rope, head.positions, 0}, key, key_count - key);
    // Now this block is complete for everyone, and everyone has left the buffers of the one before.
    __syncthreads();
    if (block > 0) fetch(block - 1);

#pragma unroll 1
    for (int strip = 0; strip < KEYS; strip += STRIP) {
      // Query r of this warp sees the keys 0 .. ahead + r of the strip.
      const int ahead = start + first + warp_row - key - strip;
      if (ahead + DOWN * 16 <= 0) break;

      float weights[DOWN][STRIP / 8][4] = {};
      multiply_by_rows<DOWN, STRIP>(weights, queries, warp_row, keys(block), strip);
      if (ahead < STRIP - 1) {
#pragma unroll
        for (int i = 0; i < DOWN; i++)
#pragma unroll
          for (int j = 0; j < STRIP / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
              if (j * 8 + lane % 4 * 2 + e % 2 > ahead + i * 16 + e / 2 * 8 + lane / 4) weights[i][j][e] = -INFINITY;
      }

#pragma unroll
      for (int i = 0; i < DOWN; i++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float most = maxima[i][half];
#pragma unroll
          for (int j = 0; j < STRIP / 8; j++)
            most = fmaxf(most, fmaxf(weights[i][j][half * 2], weights[i][j][half * 2 + 1]));
          most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
          most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
          // A query that has seen no key yet has nothing to correct and weighs nothing.
          const float base = most == -INFINITY ? 0.0f : most * factor;
          const float correction = fast_exp2(maxima[i][half] * factor - base);
          maxima[i][half] = most;
          float total = totals[i][half] * correction;
#pragma unroll
          for (int j = 0; j < STRIP / 8; j++) {
#pragma unroll
            for (int e = half * 2; e < half * 2 + 2; e++) {
              weights[i][j][e] = fast_exp2(fmaf(weights[i][j][e], factor, -base));
              total += weights[i][j][e];
            }
          }
          totals[i][half] = total;
#pragma unroll
          for (int j = 0; j < DIM / 8; j++) {
            sums[i][j][half * 2] *= correction;
            sums[i][j][half * 2 + 1] *= correction;
          }
        }
      }
      multiply_fragments<DOWN, STRIP>(sums, weights, values(block), strip);
    }
  }

#pragma unroll
  for (int i = 0; i < DOWN; i++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = totals[i][half];
      total += __shfl_xor_sync(ALL_LANES, total, 1);
      total += __shfl_xor_sync(ALL_LANES, total, 2);
      const float inverse = __fdividef(1.0f, total);  // a total lies between 1 and the number of keys
#pragma unroll
      for (int j = 0; j < DIM / 8; j++) {
        sums[i][j][half * 2] *= inverse;
        sums[i][j][half * 2 + 1] *= inverse;
      }
      const int r = warp_row + i * 16 + half * 8 + lane / 4;
      if (head.lse && lane % 4 == 0 && r < count) head.lse[r] = maxima[i][half] * p.scale + logf(total);
    }
  }
  write_rows<DOWN>(sums, queries, warp_row, head.output + warp_row * width, width, count - warp_row);
}

template <int DIM, int KEYS, int STRIP>
int32_t launch_attend(const mantou_context* context, const char* name, const Attention& p) {
  const int blocks = (p.queries - 1) / QUERIES + 1;
  const Order order = order_of(context, p.batch * p.heads, blocks, int64_t{4} * p.places.capacity * DIM, true);
  return launch(name, attend<DIM, KEYS, STRIP>, static_cast<unsigned>(order.heads * order.blocks), THREADS, SHARED_BYTES<DIM, KEYS>,
                context->stream, p, order);
}

int32_t launch_forward(const mantou_context* context, const char* name, int32_t dtype, const Attention& p) {
  // A maximum times a negative scale would be a minimum.
  if (!(p.scale > 0) ||
      !on_tensor_cores(dtype, p.dim, p.q_stride, p.kv_stride, p.q, p.k, p.v, p.q_rope, p.k_rope, p.output))
    return attend_scalar(context, name, dtype, p);
  switch (p.dim) {
    case 16: return launch_attend<16, 128, 128>(context, name, p);
    case 32: return launch_attend<32, 128, 128>(context, name, p);
    case 64: return launch_attend<64, 64, 64>(context, name, p);
    default: return launch_attend<128, 64, 32>(context, name, p);
  }
}

// ---- generation -----------------------------------------------------------------------------------------------------

// Appends new keys, rotated, and values to their caches [slots, capacity, kv_heads * dim]: one pair per thread.
struct Append {
  int64_t pairs;  // per cache
  int length, width, dim;
  Places places;
  const void *k, *v;
  int64_t stride;
  const float* rope;
  void *k_cache, *v_cache;
  Fault* fault;
};

template <typename T>
GLOBAL void append(Append p) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= p.pairs) return;
  const int64_t row = index / (p.width / 2);
  const int column = static_cast<int>(index % (p.width / 2)) * 2;
  const int sequence = static_cast<int>(row / p.length);
  const Places& places = p.places;
  if (!places.slot_exists(sequence) || !places.rows_fit(sequence, p.length)) {
    if (column > 0 || row % p.length > 0) return;
    if (!places.slot_exists(sequence))
      report_fault(p.fault, CACHE_SLOT, static_cast<int32_t>(places.slot(sequence)), sequence, places.slot_count);
    else report_fault(p.fault, CACHE_FULL, places.start(sequence), p.length, places.capacity);
    return;
  }
  const int64_t position = places.start(sequence) + row % p.length;
  const int64_t from = row * p.stride + column;
  const int64_t to = (places.slot(sequence) * places.capacity + position) * p.width + column;
  const auto* const k = static_cast<const T*>(p.k) + from;
  const auto* const v = static_cast<const T*>(p.v) + from;
  auto* const k_cache = static_cast<T*>(p.k_cache) + to;
  auto* const v_cache = static_cast<T*>(p.v_cache) + to;
  float2 key = make_float2(to_float(k[0]), to_float(k[1]));
  if (p.rope) {
    const float* const angle = p.rope + position * p.dim + column % p.dim;
    key = rotate(key, make_float2(angle[0], angle[1]));
  }
  k_cache[0] = from_float<T>(key.x), k_cache[1] = from_float<T>(key.y);
  v_cache[0] = v[0], v_cache[1] = v[1];
}

// One new query per (sequence, head) block: each of WARPS warps takes every WARPS-th batch of AT_ONCE keys, lanes share
// the pairs of a head, and the warps' results are put together in order.
constexpr int WARPS = 8;
constexpr int AT_ONCE = 4;
constexpr int PAIRS = MAX_HEAD_DIM / 64;  // per lane

template <typename T>
GLOBAL void LAUNCH_BOUNDS(WARPS * 32, 2) attend_one(Attention p) {
  SHARED_ARRAY(float, warp_sums, [WARPS][MAX_HEAD_DIM]);
  SHARED_ARRAY(float, warp_maxima, [WARPS]);
  SHARED_ARRAY(float, warp_totals, [WARPS]);
  const int sequence = static_cast<int>(blockIdx.x) / p.heads;
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  const int warp = warp_of_thread(), lane = lane_of_thread();
  if (!p.places.slot_exists(sequence) || !p.places.rows_fit(sequence, 1)) return;
  const int start = p.places.start(sequence);
  const int64_t offset =
      p.places.slot(sequence) * p.places.capacity * p.kv_stride + head / (p.heads / p.kv_heads) * p.dim;
  const auto* const k = static_cast<const T*>(p.k) + offset;
  const auto* const v = static_cast<const T*>(p.v) + offset;
  const auto* const q = static_cast<const T*>(p.q) + sequence * p.q_stride + head * p.dim;
  const int64_t keys = int64_t{start} + 1;

  const auto column = [&](int i) { return (i * 32 + lane) * 2; };
  float2 query[PAIRS], sum[PAIRS];
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    query[i] = sum[i] = make_float2(0, 0);
    if (column(i) >= p.dim) continue;
    query[i] = load_pair(q + column(i));
    if (p.q_rope) query[i] = rotate(query[i], load_pair(p.q_rope + int64_t{start} * p.dim + column(i)));
    query[i] = make_float2(query[i].x * p.scale, query[i].y * p.scale);
  }

  float most = -INFINITY, total = 0;
  for (int64_t key = static_cast<int64_t>(warp) * AT_ONCE; key < keys; key += WARPS * AT_ONCE) {
    float scores[AT_ONCE];
    float2 value[AT_ONCE][PAIRS];
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      scores[n] = 0;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        value[n][i] = make_float2(0, 0);
        if (key + n >= keys || column(i) >= p.dim) continue;
        const float2 pair = load_pair(k + (key + n) * p.kv_stride + column(i));
        value[n][i] = load_pair(v + (key + n) * p.kv_stride + column(i));
        scores[n] += query[i].x * pair.x + query[i].y * pair.y;
      }
    }
    float highest = most;
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
      for (int step = 16; step > 0; step /= 2) scores[n] += __shfl_xor_sync(ALL_LANES, scores[n], step);
      if (key + n >= keys) scores[n] = -INFINITY;
      highest = fmaxf(highest, scores[n]);
    }
    const float correction = expf(most - highest);
    most = highest;
    total *= correction;
#pragma unroll
    for (int i = 0; i < PAIRS; i++) sum[i] = make_float2(sum[i].x * correction, sum[i].y * correction);
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      const float weight = expf(scores[n] - most);
      total += weight;
#pragma unroll
      for (int i = 0; i < PAIRS; i++) {
        sum[i].x = fmaf(weight, value[n][i].x, sum[i].x);
        sum[i].y = fmaf(weight, value[n][i].y, sum[i].y);
      }
    }
  }

#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    if (column(i) >= p.dim) continue;
    warp_sums[warp][column(i)] = sum[i].x;
    warp_sums[warp][column(i) + 1] = sum[i].y;
  }
  if (lane == 0) warp_maxima[warp] = most, warp_totals[warp] = total;
  __syncthreads();
  most = warp_maxima[0];  // the first warp has seen a key
  for (int w = 1; w < WARPS; w++) most = fmaxf(most, warp_maxima[w]);
  total = 0;
  float weights[WARPS];
#pragma unroll
  for (int w = 0; w < WARPS; w++) {
    weights[w] = expf(warp_maxima[w] - most);
    total += weights[w] * warp_totals[w];
  }
  for (int c = static_cast<int>(threadIdx.x); c < p.dim; c += WARPS * 32) {
    float result = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) result = fmaf(weights[w], warp_sums[w][c], result);
    static_cast<T*>(p.output)[(int64_t{sequence} * p.heads + head) * p.dim + c] = from_float<T>(result / total);
  }
}

template <typename T>
int32_t launch_cached(const mantou_context* context, const char* name, const Append& added, const Attention& p,
                      int32_t dtype) {
  RETURN_IF_FAILED(
      launch(name, append<T>, static_cast<unsigned>(divide_up(added.pairs, 256)), 256, 0, context->stream, added));
  if (p.queries > 1) return launch_forward(context, name, dtype, p);
  return launch(name, attend_one<T>, static_cast<unsigned>(p.batch * p.heads), WARPS * 32, 0, context->stream, p);
}

}  // namespace
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
  return launch_forward(context, __func__, dtype,
                        {batch, static_cast<int>(sequence_length), static_cast<int>(heads), static_cast<int>(kv_heads),
                         static_cast<int>(head_dim), {nullptr, nullptr, batch, static_cast<int>(sequence_length)},
                         scale, q, q_stride, k, v, kv_stride, rope, rope, positions, output, lse});
}

int32_t mantou_attention_cached(mantou_context* context, int32_t dtype, int64_t batch, int64_t length,
                                const int32_t* starts, const int32_t* slots, int64_t slot_count, int64_t capacity,
                                int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, const void* q,
                                int64_t q_stride, const void* k, const void* v, int64_t kv_stride, const float* rope,
                                void* k_cache, void* v_cache, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  RETURN_IF_FAILED(check_sizes(__func__, batch, length, heads, kv_heads, head_dim, q_stride, kv_stride));
  if (batch == 0 || length == 0) return MANTOU_OK;
  CHECK_NOT_NULL(starts, q, k, v, k_cache, v_cache, output);
  CHECK(slots || batch <= slot_count, "%s: %lld sequences for %lld slots", __func__, static_cast<long long>(batch),
        static_cast<long long>(slot_count));
  CHECK(capacity >= length && capacity <= MAX_LENGTH, "%s: %lld tokens do not fit the cache's capacity of %lld",
        __func__, static_cast<long long>(length), static_cast<long long>(capacity));
  const int64_t width = kv_heads * head_dim;
  const Places places = {starts, slots, slot_count, static_cast<int>(capacity)};
  const Append added = {batch * length * width / 2, static_cast<int>(length), static_cast<int>(width),
                        static_cast<int>(head_dim), places, k, v, kv_stride, rope, k_cache, v_cache, context->fault};
  const Attention problem = {batch, static_cast<int>(length), static_cast<int>(heads), static_cast<int>(kv_heads),
                             static_cast<int>(head_dim), places, scale, q, q_stride, k_cache, v_cache, width, rope,
                             nullptr, nullptr, output, nullptr};
  return with_type(dtype, [&](auto type) {
    return launch_cached<decltype(type)>(context, "mantou_attention_cached", added, problem, dtype);
  });
}
