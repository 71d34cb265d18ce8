// Causal attention with a cache of keys and values, for generation: new keys and values are appended by a kernel of their
// own; then several tokens at a time attend like whole sequences (attention.cu), and single tokens as here.
//
// A single token reads its whole cache and computes little, so the bytes decide, and they arrive fast only if many
// multiprocessors ask for many at a time. A key is shared by as few lanes as its row has loads of 16 bytes; those lanes
// walk over keys with a running maximum, total and sum of values, AT_ONCE keys at a time. Where there are few heads, each
// is split among several blocks, whose results a second kernel puts together in order (Dao et al. 2023, "Flash-Decoding").
#include "attention.h"

namespace mantou {
namespace {

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

constexpr int WARPS = 8;
constexpr int AT_ONCE = 4;

// How many blocks should be at work, and the least keys of a full cache that are worth a block of their own. So the number
// of parts, and the order of sums, depend on sizes alone.
constexpr int64_t BLOCKS = 256;
constexpr int64_t LEAST_KEYS = 256;

struct Split {
  int lanes;     // that share a key, a power of two
  int parts;     // of a head
  float* walks;  // [batch * heads, parts, STATISTICS + dim]; not used where there is one part
};

// A walk over some of the keys is kept as its largest score, the total of the weights relative to that, and their sum of
// values.
constexpr int STATISTICS = 2;

// What weights are relative to: where no key was seen, all are 0.
DEVICE float base_of(float most) { return most == -INFINITY ? 0.0f : most; }

struct Walk {
  float most, total, sum;
};

// Column `column` of the `count` walks that lie `stride` floats apart, put together in order.
DEVICE Walk merge(const float* walks, int stride, int count, int column) {
  float most = -INFINITY;
  for (int w = 0; w < count; w++) most = fmaxf(most, walks[w * stride]);
  float total = 0, sum = 0;
  for (int w = 0; w < count; w++) {
    const float weight = expf(walks[w * stride] - base_of(most));
    total = fmaf(weight, walks[w * stride + 1], total);
    sum = fmaf(weight, walks[w * stride + STATISTICS + column], sum);
  }
  return {most, total, sum};
}

// N elements, in one access where they are 16 bytes.
template <int N, typename T>
DEVICE Pack<T, N> load_pack(const T* from) {
  if constexpr (N * sizeof(T) == 16) {
    return *reinterpret_cast<const Pack<T, N>*>(from);
  } else {
    Pack<T, N> pack;
#pragma unroll
    for (int e = 0; e < N; e++) pack.values[e] = from[e];
    return pack;
  }
}

// Block (x, y) handles part y of head x of all sequences. A lane holds PACKS times N columns.
template <typename T, int N, int PACKS>
GLOBAL void LAUNCH_BOUNDS(WARPS * 32, 2) attend_one(Attention p, Split split) {
  SHARED_ARRAY(float, walks, [WARPS][STATISTICS + MAX_HEAD_DIM]);
  const int sequence = static_cast<int>(blockIdx.x) / p.heads;
  const int head = static_cast<int>(blockIdx.x) % p.heads;
  if (!p.places.slot_exists(sequence) || !p.places.rows_fit(sequence, 1)) return;
  const int start = p.places.start(sequence);
  const int64_t offset =
      p.places.slot(sequence) * p.places.capacity * p.kv_stride + head / (p.heads / p.kv_heads) * p.dim;
  const auto* const k = static_cast<const T*>(p.k) + offset;
  const auto* const v = static_cast<const T*>(p.v) + offset;
  const auto* const q = static_cast<const T*>(p.q) + sequence * p.q_stride + head * p.dim;

  const int warp = warp_of_thread(), lane = lane_of_thread();
  const auto column = [&](int i) { return (i * split.lanes + lane % split.lanes) * N; };
  // A lane beyond the end of a row reads its beginning, times a query of 0.
  const auto place = [&](int i) { return column(i) < p.dim ? column(i) : 0; };
  float query[PACKS][N] = {}, sum[PACKS][N] = {};
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    if (column(i) >= p.dim) continue;
#pragma unroll
    for (int e = 0; e < N; e += 2) {
      float2 pair = load_pair(q + column(i) + e);
      if (p.q_rope) pair = rotate(pair, load_pair(p.q_rope + int64_t{start} * p.dim + column(i) + e));
      query[i][e] = pair.x * p.scale;
      query[i][e + 1] = pair.y * p.scale;
    }
  }

  // A warp takes as many neighbouring keys as it can, the warps of all parts in turn: so each part has work at any length.
  const int keys = start + 1, of_warp = 32 / split.lanes * AT_ONCE;
  float most = -INFINITY, total = 0;
  for (int64_t first = int64_t{warp * split.parts + static_cast<int>(blockIdx.y)} * of_warp; first < keys;
       first += int64_t{WARPS} * split.parts * of_warp) {
    const int64_t key = first + lane / split.lanes * AT_ONCE;
    // All loads before anything that waits for one, and none on a condition: beyond the end the last key is read again.
    Pack<T, N> key_packs[AT_ONCE][PACKS], values[AT_ONCE][PACKS];
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      const int64_t row = (key + n < keys ? key + n : keys - 1) * p.kv_stride;
#pragma unroll
      for (int i = 0; i < PACKS; i++) {
        key_packs[n][i] = load_pack<N>(k + row + place(i));
        values[n][i] = load_pack<N>(v + row + place(i));
      }
    }
    float highest = most, scores[AT_ONCE] = {};
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
#pragma unroll
      for (int i = 0; i < PACKS; i++)
#pragma unroll
        for (int e = 0; e < N; e++) scores[n] = fmaf(query[i][e], to_float(key_packs[n][i].values[e]), scores[n]);
      for (int step = split.lanes / 2; step > 0; step /= 2) scores[n] += __shfl_xor_sync(ALL_LANES, scores[n], step);
      if (key + n >= keys) scores[n] = -INFINITY;
      highest = fmaxf(highest, scores[n]);
    }
    const float correction = expf(most - base_of(highest));
    most = highest;
    total *= correction;
#pragma unroll
    for (int i = 0; i < PACKS; i++)
#pragma unroll
      for (int e = 0; e < N; e++) sum[i][e] *= correction;
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
      const float weight = expf(scores[n] - base_of(most));
      total += weight;
#pragma unroll
      for (int i = 0; i < PACKS; i++)
#pragma unroll
        for (int e = 0; e < N; e++) sum[i][e] = fmaf(weight, to_float(values[n][i].values[e]), sum[i][e]);
    }
  }

  // The warp's walks become one.
  for (int step = split.lanes; step < 32; step *= 2) {
    const float highest = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, step));
    const float correction = expf(most - base_of(highest));
    most = highest;
    total *= correction;
    total += __shfl_xor_sync(ALL_LANES, total, step);
#pragma unroll
    for (int i = 0; i < PACKS; i++) {
#pragma unroll
      for (int e = 0; e < N; e++) {
        sum[i][e] *= correction;
        sum[i][e] += __shfl_xor_sync(ALL_LANES, sum[i][e], step);
      }
    }
  }
  if (lane == 0) walks[warp][0] = most, walks[warp][1] = total;
#pragma unroll
  for (int i = 0; i < PACKS; i++) {
    if (lane >= split.lanes || column(i) >= p.dim) continue;
#pragma unroll
    for (int e = 0; e < N; e++) walks[warp][STATISTICS + column(i) + e] = sum[i][e];
  }
  __syncthreads();

  const int own = static_cast<int>(threadIdx.x);
  if (own >= p.dim) return;
  const Walk walk = merge(walks[0], STATISTICS + MAX_HEAD_DIM, WARPS, own);
  if (split.parts == 1) {
    static_cast<T*>(p.output)[int64_t{blockIdx.x} * p.dim + own] = from_float<T>(walk.sum / walk.total);
    return;
  }
  float* const to = split.walks + (int64_t{blockIdx.x} * split.parts + blockIdx.y) * (STATISTICS + p.dim);
  to[STATISTICS + own] = walk.sum;
  if (own == 0) to[0] = walk.most, to[1] = walk.total;
}

// Puts the parts of each head together: a block per head of all sequences, a thread per column.
template <typename T>
GLOBAL void LAUNCH_BOUNDS(MAX_HEAD_DIM) join_parts(Attention p, Split split) {
  const int sequence = static_cast<int>(blockIdx.x) / p.heads;
  const int own = static_cast<int>(threadIdx.x);
  if (own >= p.dim || !p.places.slot_exists(sequence) || !p.places.rows_fit(sequence, 1)) return;
  const int stride = STATISTICS + p.dim;
  const Walk walk = merge(split.walks + int64_t{blockIdx.x} * split.parts * stride, stride, split.parts, own);
  static_cast<T*>(p.output)[int64_t{blockIdx.x} * p.dim + own] = from_float<T>(walk.sum / walk.total);
}

template <typename T, int N, int PACKS>
int32_t launch_one(const mantou_context* context, const char* name, const Attention& p) {
  const int64_t heads = p.batch * p.heads;
  int lanes = 1;
  while (lanes < 32 && lanes * N < p.dim) lanes *= 2;
  int64_t parts = smaller(divide_up(BLOCKS, heads), p.places.capacity / LEAST_KEYS);
  const int64_t bytes = heads * (STATISTICS + p.dim) * static_cast<int64_t>(sizeof(float));
  parts = smaller(parts, context->scratch_bytes / bytes);
  const Split split = {lanes, static_cast<int>(parts > 1 ? parts : 1), static_cast<float*>(context->scratch)};
  const dim3 grid = grid_of(heads, split.parts);
  RETURN_IF_FAILED(launch(name, attend_one<T, N, PACKS>, grid, WARPS * 32, 0, context->stream, p, split));
  if (split.parts == 1) return MANTOU_OK;
  return launch(name, join_parts<T>, grid_of(heads), MAX_HEAD_DIM, 0, context->stream, p, split);
}

template <typename T>
int32_t launch_cached(const mantou_context* context, const char* name, const Append& added, const Attention& p,
                      int32_t dtype) {
  RETURN_IF_FAILED(launch(name, append<T>, grid_of(divide_up(added.pairs, 256)), 256, 0, context->stream, added));
  if (p.queries > 1) return attend(context, name, dtype, p);
  const bool vectors = in_vectors(dtype, p.dim, p.q, p.k, p.v) && p.q_stride % LANES<T> == 0;
  if (vectors) return launch_one<T, LANES<T>, MAX_HEAD_DIM / 32 / LANES<T>>(context, name, p);
  return launch_one<T, 2, MAX_HEAD_DIM / 64>(context, name, p);
}

}  // namespace
}  // namespace mantou

using namespace mantou;

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
