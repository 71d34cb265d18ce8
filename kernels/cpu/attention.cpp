// Causal attention, forward, as in FlashAttention (Dao 2023, "FlashAttention-2", algorithm 1): a block of queries walks
// over the blocks of keys that it may see with a running maximum and sum per query, and the T x T scores exist one tile
// at a time. Generation with a cache is the same walk over cached keys.
//
// Tiles of scores and sums are computed transposed, [keys, queries] and [head_dim, queries]. So each vector holds what
// belongs to LANES queries: maxima, sums over keys and corrections need no operation across lanes, and the tile of weights
// is already laid out as the weighted sum of values wants it (summed index, the keys, first). On the diagonal, strips of
// the tile above it are skipped and the rest masked.
//
// A unit of work is a block of queries of one (sequence, head), and units go to threads in contiguous runs of about
// equal cost. A thread rotates and transposes the keys of a head once and keeps them, as far as its scratch reaches,
// for all blocks of queries and all heads of the group that reads them.
#include "attention.h"

#include "attention_bf16.h"
#include "context.h"

namespace mantou {
namespace {

// One thread's scratch.
template <typename T>
class Worker {
 public:
  Worker(const Attention<T>& problem, float* scratch) : p(problem), width(round_up(problem.dim, LANES)) {
    scores = scratch;
    rows = scores + BLOCK * BLOCK;
    queries = rows + BLOCK * width;
    sums = queries + BLOCK * width;
    slots = {sums + BLOCK * width, scratch + SCRATCH_BYTES / 4, 2 * BLOCK * width};
  }

  // Queries [block * BLOCK, ...) of head `head` of sequence `sequence`.
  void run(int64_t sequence, int64_t head, int64_t block) {
    const int64_t first = block * BLOCK;
    const int64_t count = smaller(BLOCK, p.queries - first);
    const int64_t row = sequence * p.queries + first;
    const int64_t start = p.start(sequence) + first;
    const Rotation rotation = {p.q_rope, p.positions ? p.positions + row : nullptr, start};
    load_tile(count, p.dim, width, p.q + row * p.q_stride + head * p.dim, p.q_stride, rotation, p.scale, rows);
    transpose_tile(round_up(count, LANES), width, rows, width, queries, BLOCK);
    softmax.reset();

    const int64_t keys = start + count;
    for (int64_t key = 0; key < keys; key += BLOCK) {
      const float* tile = keys_and_values(sequence, head / (p.heads / p.kv_heads), key / BLOCK);
      // How far the queries lie past the first key of the block: query i sees the block's keys 0 .. ahead + i.
      add_block(count, smaller(BLOCK, keys - key), start - key, tile, tile + BLOCK * width, key > 0);
    }

    write_output(p, softmax, sequence, head, first, count, sums);
  }

 private:
  // Block `block` of keys, transposed, and behind it the values by rows.
  const float* keys_and_values(int64_t sequence, int64_t kv_head, int64_t block) {
    slots.of_head(sequence, kv_head);
    float* const slot = slots.at(block);
    if (slots.holds(block)) return slot;
    const int64_t first = block * BLOCK;
    const int64_t count = smaller(BLOCK, p.start(sequence) + p.queries - first);
    const int64_t offset = (p.slot(sequence) * p.kv_rows + first) * p.kv_stride + kv_head * p.dim;
    const int32_t* positions = p.positions ? p.positions + sequence * p.queries + first : nullptr;
    load_tile(count, p.dim, width, p.k + offset, p.kv_stride, {p.k_rope, positions, first}, 1, rows);
    transpose_tile(round_up(count, LANES), width, rows, width, slot, BLOCK);
    load_tile(count, p.dim, width, p.v + offset, p.kv_stride, {}, 1, slot + BLOCK * width);
    return slot;
  }

  // Adds the weights of `keys` keys to the running maxima, sums of weights and weighted sums of values.
  void add_block(int64_t count, int64_t keys, int64_t ahead, const float* transposed_keys, const float* values,
                 bool accumulate) {
    const int64_t columns = round_up(count, LANES);
    for (int64_t r = 0; r < keys; r += MR) {
      // The vector of the first query that sees a key of the strip.
      const int64_t first = larger(0, r - ahead) / LANES * LANES;
      multiply_tiles(smaller(MR, keys - r), columns - first, p.dim, transposed_keys + r, BLOCK, queries + first, BLOCK,
                     scores + r * BLOCK + first, BLOCK, false);
    }

    const auto put = [this](int64_t key, int64_t query, Vector first, Vector second) {
      store(scores + key * BLOCK + query, first);
      store(scores + (key + 1) * BLOCK + query, second);
    };
    const auto exp_of = [](Vector score, Vector most) { return exp(score - most); };
    if (softmax.weigh(count, keys, ahead, scores, round_up(keys, 2), exp_of, put) && accumulate)
      softmax.correct(count, p.dim, sums);

    // On the diagonal, in narrower tiles.
    const int64_t step = ahead + 1 < keys ? smaller(NR, 16) : NR;
    for (int64_t c = 0; c < columns; c += step) {
      const int64_t seen = smaller(keys, ahead + c + step);
      if (seen > 0)
        multiply_tiles(p.dim, smaller(step, columns - c), seen, values, width, scores + c, BLOCK, sums + c, BLOCK, accumulate);
    }
  }

  const Attention<T>& p;
  const int64_t width;
  float *scores, *rows, *queries, *sums;
  Slots slots;  // keys and values
  RunningSoftmax softmax;
};

// Runs a worker of type OneWorker on each thread, over its share of the blocks of queries.
template <typename OneWorker, typename T>
void attend_by(const mantou_context* context, const Attention<T>& p) {
  const int64_t blocks = (p.queries + BLOCK - 1) / BLOCK;
  // Block i costs as many blocks of keys as it sees, here reckoned as if all sequences started where the last one does;
  // begin_of(i) of a head's cost lies before it.
  const int64_t first_cost = p.largest_start() / BLOCK + 1;
  const auto begin_of = [&](int64_t block) { return block * first_cost + block * (block - 1) / 2; };
  const int64_t head_cost = begin_of(blocks);
  const int64_t grain = larger(1, (int64_t{1} << 17) / (BLOCK * BLOCK * p.dim));
  parallel_for(context, p.batch * p.heads * head_cost, grain, [&](int64_t begin, int64_t end, int thread) {
    OneWorker worker(p, context->thread_scratch<float>(thread));
    for (int64_t item = begin / head_cost; item * head_cost < end; item++)
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t at = item * head_cost + begin_of(block);
        if (begin <= at && at < end) worker.run(item / p.heads, item % p.heads, block);
      }
  });
}

template <typename T>
void attend(const mantou_context* context, const Attention<T>& p) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, bfloat16>) {
    const bool done = with_pairs(context, [&](auto unit) {
      attend_by<PairWorker<typename decltype(unit)::type>>(context, p);
    });
    if (done) return;
  }
#endif
  attend_by<Worker<T>>(context, p);
}

// ---- one new token per sequence -------------------------------------------------------------------------------------

// The inner products of q with LANES rows of k, of which the first `count` exist.
template <typename T>
Vector scores_of(int64_t dim, const float* q, const T* k, int64_t stride, int64_t count) {
  Vector sum[LANES] = {};
  for_vectors(dim, [&](int64_t c, auto part) {
    const Vector value = load(q + c, part);
    if (count == LANES) {
      MANTOU_UNROLL for (int i = 0; i < LANES; i++) sum[i] += value * load(k + i * stride + c, part);
    } else {
      for (int64_t i = 0; i < count; i++) sum[i] += value * load(k + i * stride + c, part);
    }
  });
  transpose(sum);
  Vector total = sum[0];
  MANTOU_UNROLL for (int i = 1; i < LANES; i++) total += sum[i];
  return total;
}

// One query against `keys` cached keys: reads every key and value once. `room`: BLOCK rows of values in float32, where
// they are not.
template <typename T>
void attend_one(int64_t keys, int64_t dim, const float* q, const T* k, const T* v, int64_t stride, float* room,
                T* output) {
  float weights[BLOCK], sum[MAX_HEAD_DIM], edge[BLOCK * LANES];
  float most = -INFINITY, total = 0;
  for (int64_t key = 0; key < keys; key += BLOCK) {
    const int64_t count = smaller(BLOCK, keys - key);
    Vector largest = splat(most);
    for (int64_t i = 0; i < count; i += LANES) {
      const int64_t some = smaller(LANES, count - i);
      store(weights + i, scores_of(dim, q, k + (key + i) * stride, stride, some));
      for (int64_t lane = some; lane < LANES; lane++) weights[i + lane] = -INFINITY;
      largest = maximum(load(weights + i), largest);
    }
    const float before = most;
    most = horizontal_max(largest);
    Vector added{};
    for (int64_t i = 0; i < count; i += LANES) {
      const Vector weight = exp(load(weights + i) - most);
      store(weights + i, weight);
      added += weight;
    }
    const float correction = std::exp(before - most);
    total = total * correction + horizontal_sum(added);
    if (key > 0 && correction != 1)
      for (int64_t c = 0; c < dim; c++) sum[c] *= correction;
    const T* const from = v + key * stride;
    const int64_t whole = dim / LANES * LANES;
    const float* values = room;
    int64_t values_stride = whole;
    if constexpr (std::is_same_v<T, float>) {
      values = from;
      values_stride = stride;
    } else {
      for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < whole; c += LANES) store(room + i * whole + c, load(from + i * stride + c));
    }
    multiply_tiles(1, whole, count, weights, 1, values, values_stride, sum, MAX_HEAD_DIM, key > 0);
    if (whole < dim) {
      for (int64_t i = 0; i < count; i++)
        store(edge + i * LANES, load(from + i * stride + whole, Part{dim - whole}));
      tile(1, dim - whole, count, weights, 1, edge, LANES, sum + whole, MAX_HEAD_DIM, key > 0);
    }
  }
  for (int64_t c = 0; c < dim; c++) output[c] = from_float<T>(sum[c] / total);
}

template <typename T>
void attend_last(const mantou_context* context, const Attention<T>& p) {
  const int64_t group = p.heads / p.kv_heads;
  const int64_t grain = larger(1, (int64_t{1} << 14) / ((p.largest_start() + 1) * p.dim * group));
  parallel_for(context, p.batch * p.kv_heads, grain, [&](int64_t begin, int64_t end, int thread) {
    float q[MAX_HEAD_DIM];
    for (int64_t item = begin; item < end; item++) {
      const int64_t sequence = item / p.kv_heads, kv_head = item % p.kv_heads;
      const int64_t start = p.start(sequence);
      const int64_t offset = p.slot(sequence) * p.kv_rows * p.kv_stride + kv_head * p.dim;
      for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        const T* from = p.q + sequence * p.q_stride + head * p.dim;
        if (p.q_rope) rotate_row(p.dim, p.q_rope + start * p.dim, false, from, q);
        for (int64_t c = 0; c < p.dim; c++) q[c] = (p.q_rope ? q[c] : to_float(from[c])) * p.scale;
        attend_one(start + 1, p.dim, q, p.k + offset, p.v + offset, p.kv_stride, context->thread_scratch<float>(thread),
                   p.output + (sequence * p.heads + head) * p.dim);
      }
    }
  });
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
  RETURN_IF_FAILED(check_attention(__func__, batch, sequence_length, heads, kv_heads, head_dim, q_stride, kv_stride));
  if (batch == 0 || sequence_length == 0) return MANTOU_OK;
  CHECK_NOT_NULL(q, k, v, output, lse);
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    attend<T>(context, {batch, sequence_length, heads, kv_heads, head_dim, nullptr, nullptr, scale,
                        static_cast<const T*>(q), q_stride, static_cast<const T*>(k), static_cast<const T*>(v),
                        kv_stride, sequence_length, rope, rope, positions, static_cast<T*>(output), lse});
  });
  return MANTOU_OK;
}

int32_t mantou_attention_cached(mantou_context* context, int32_t dtype, int64_t batch, int64_t length,
                                const int32_t* starts, const int32_t* slots, int64_t slot_count, int64_t capacity,
                                int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, const void* q,
                                int64_t q_stride, const void* k, const void* v, int64_t kv_stride, const float* rope,
                                void* k_cache, void* v_cache, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  RETURN_IF_FAILED(check_attention(__func__, batch, length, heads, kv_heads, head_dim, q_stride, kv_stride));
  if (batch == 0 || length == 0) return MANTOU_OK;
  CHECK_NOT_NULL(starts, q, k, v, k_cache, v_cache, output);
  CHECK(slots || batch <= slot_count, "%s: %lld sequences for %lld slots", __func__, static_cast<long long>(batch),
        static_cast<long long>(slot_count));
  for (int64_t b = 0; b < batch; b++) {
    CHECK(starts[b] >= 0 && starts[b] + length <= capacity,
          "%s: tokens %lld .. %lld do not fit the cache's capacity of %lld", __func__,
          static_cast<long long>(starts[b]), static_cast<long long>(starts[b] + length),
          static_cast<long long>(capacity));
    CHECK(!slots || (slots[b] >= 0 && slots[b] < slot_count), "%s: slot %lld is not one of %lld", __func__,
          static_cast<long long>(slots[b]), static_cast<long long>(slot_count));
  }
  const int64_t width = kv_heads * head_dim;
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    auto* const keys = static_cast<T*>(k_cache);
    auto* const values = static_cast<T*>(v_cache);
    const Attention<T> problem = {batch, length, heads, kv_heads, head_dim, starts, slots, scale,
                                  static_cast<const T*>(q), q_stride, keys, values, width, capacity, rope, nullptr,
                                  nullptr, static_cast<T*>(output), nullptr};
    for (int64_t row = 0; row < batch * length; row++) {
      const int64_t sequence = row / length;
      const int64_t position = starts[sequence] + row % length;
      const int64_t cached = (problem.slot(sequence) * capacity + position) * width;
      const T* key = static_cast<const T*>(k) + row * kv_stride;
      for (int64_t c = 0; c < width; c += head_dim) {
        if (rope) rotate_row(head_dim, rope + position * head_dim, false, key + c, keys + cached + c);
        else std::memcpy(keys + cached + c, key + c, static_cast<size_t>(head_dim) * sizeof(T));
      }
      std::memcpy(values + cached, static_cast<const T*>(v) + row * kv_stride, static_cast<size_t>(width) * sizeof(T));
    }
    if (length == 1) attend_last(context, problem);
    else attend(context, problem);
  });
  return MANTOU_OK;
}
