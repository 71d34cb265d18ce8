// Causal attention, backward, as in FlashAttention-2 (Dao 2023, algorithm 2): the weights P are computed again from
// q, k and the log-sum-exp of the forward pass, tile by tile. With delta = rowsum(doutput * output),
//
//   dV = P^T dO      dP = dO V^T      dS = P * (dP - delta)      dQ = scale dS K      dK = scale dS^T Q
//
// where Q and K are rotated; the gradients are rotated back as they are finished.
//
// A unit of work is a key/value head of one sequence, with all the query heads that read it, so that one thread sums
// dK and dV in a fixed order. It walks the blocks of keys, and for each of them the blocks of queries from the diagonal
// on: dK and dV of the block stay in scratch, dQ grows in its own memory, one block of keys after the other. What a
// block of queries needs (Q and dO, by rows and transposed) is kept in the thread's scratch as far as that reaches.
#include "attention.h"

#include "attention_backward_bf16.h"
#include "context.h"

namespace mantou {
namespace {

// Q (rotated and scaled) and dO of a block of queries.
struct Queries {
  const float *transposed, *rows, *transposed_doutput, *doutput;
};

// A row of scores becomes weights exp(score - lse), and dweights become dscores; both 0 from key `seen` on.
inline void differentiate(int64_t seen, int64_t columns, float lse, float delta, float* scores, float* dscores) {
  for_vectors(seen, [&](int64_t c, auto part) {
    const Vector weight = exp(load(scores + c, part, -INFINITY) - lse);
    const Vector change = load(dscores + c, part) - delta;
    store(scores + c, weight);
    store(dscores + c, weight * change);
  });
  for (int64_t c = round_up(seen, LANES); c < columns; c += LANES) {
    store(scores + c, Vector{});
    store(dscores + c, Vector{});
  }
}

template <typename T>
class Worker {
 public:
  Worker(const AttentionBackward<T>& problem, float* scratch) : p(problem), width(round_up(problem.dim, LANES)) {
    const int64_t size = BLOCK * width;
    weights = scratch;
    dscores = weights + BLOCK * BLOCK;
    rows = dscores + BLOCK * BLOCK;
    keys = rows + size;
    transposed_keys = keys + size;
    transposed_values = transposed_keys + size;
    dkeys = transposed_values + size;
    dvalues = dkeys + size;
    slots = {dvalues + size, scratch + SCRATCH_BYTES / 4, 4 * size};
  }

  // All of a key/value head of a sequence.
  void run(int64_t sequence, int64_t kv_head) {
    p.walk(kv_head, [&](int64_t head, int64_t key, bool accumulate) {
      add_keys(sequence, head, kv_head, key, accumulate);
    });
  }

 private:
  // The block of keys from `key` on, against all queries of `head`.
  void add_keys(int64_t sequence, int64_t head, int64_t kv_head, int64_t key, bool accumulate) {
    const int64_t count = smaller(BLOCK, p.length - key);
    const int64_t padded = round_up(count, LANES);
    const int64_t row = sequence * p.length + key;
    const int64_t offset = row * p.kv_stride + kv_head * p.dim;
    load_tile(count, p.dim, width, p.v + offset, p.kv_stride, {}, 1, rows);
    transpose_tile(padded, width, rows, width, transposed_values, BLOCK);
    load_tile(count, p.dim, width, p.k + offset, p.kv_stride, p.rotation_on_load(row), 1, keys);
    transpose_tile(padded, width, keys, width, transposed_keys, BLOCK);
    // By rows the keys serve dQ alone, which wants the scale.
    for (int64_t i = 0; i < count * width; i += LANES) store(keys + i, load(keys + i) * p.scale);

    for (int64_t query = key; query < p.length; query += BLOCK) add_tile(sequence, head, key, count, query);

    p.write_keys(row, kv_head, count, width, dkeys, dvalues, accumulate);
  }

  // The tile of `count` keys from `key` on and the block of queries from `query` on.
  void add_tile(int64_t sequence, int64_t head, int64_t key, int64_t count, int64_t query) {
    const bool diagonal = query == key;
    const int64_t queries = smaller(BLOCK, p.length - query);
    const int64_t columns = round_up(count, LANES);
    const Queries block = load_queries(sequence, head, query, key == 0);

    for (int64_t r = 0; r < queries; r += MR) {
      const int64_t strip = smaller(MR, queries - r);
      // On the diagonal, query r sees keys 0 .. r.
      const int64_t seen = diagonal ? smaller(columns, round_up(r + strip, LANES)) : columns;
      multiply_tiles(strip, seen, p.dim, block.transposed + r, BLOCK, transposed_keys, BLOCK, weights + r * BLOCK,
                     BLOCK, false);
      multiply_tiles(strip, seen, p.dim, block.transposed_doutput + r, BLOCK, transposed_values, BLOCK,
                     dscores + r * BLOCK, BLOCK, false);
    }

    const int64_t statistics = (sequence * p.heads + head) * p.length + query;
    for (int64_t r = 0; r < queries; r++)
      differentiate(diagonal ? r + 1 : count, columns, p.lse[statistics + r], p.delta[statistics + r],
                    weights + r * BLOCK, dscores + r * BLOCK);

    for (int64_t r = 0; r < count; r += MR) {
      const int64_t strip = smaller(MR, count - r);
      const int64_t first = diagonal ? r : 0;  // the first query that sees these keys
      multiply_tiles(strip, width, queries - first, weights + first * BLOCK + r, BLOCK, block.doutput + first * width,
                     width, dvalues + r * width, width, !diagonal);
      multiply_tiles(strip, width, queries - first, dscores + first * BLOCK + r, BLOCK, block.rows + first * width,
                     width, dkeys + r * width, width, !diagonal);
    }

    const int64_t row = sequence * p.length + query;
    float* const dq = p.dq_sum + statistics * p.dim;
    for (int64_t r = 0; r < queries; r += MR) {
      const int64_t strip = smaller(MR, queries - r), seen = diagonal ? smaller(count, r + strip) : count;
      for (int64_t c = 0; c < p.dim; c += NR)
        tile<true>(strip, smaller(NR, p.dim - c), seen, dscores + r * BLOCK, BLOCK, keys + c, width, dq + r * p.dim + c,
                   p.dim, key > 0);
    }
    if (!diagonal) return;
    T* const to = p.dq + row * p.q_stride + head * p.dim;
    for (int64_t r = 0; r < queries; r++) {
      const float* const sum = dq + r * p.dim;
      if (p.rope) rotate_row(p.dim, p.rotation(row).row(r, p.dim), true, sum, to + r * p.q_stride);
      else p.write(sum, to + r * p.q_stride, false);
    }
  }

  // The block of queries from `query` on. delta is computed on the first walk.
  Queries load_queries(int64_t sequence, int64_t head, int64_t query, bool first_walk) {
    const int64_t size = BLOCK * width, block = query / BLOCK;
    slots.of_head(sequence, head);
    float* const slot = slots.at(block);
    const Queries result = {slot, slot + size, slot + 2 * size, slot + 3 * size};
    if (slots.holds(block)) return result;
    const int64_t count = smaller(BLOCK, p.length - query), padded = round_up(count, LANES);
    const int64_t row = sequence * p.length + query;
    const int64_t offset = (row * p.heads + head) * p.dim;
    load_tile(count, p.dim, width, p.q + row * p.q_stride + head * p.dim, p.q_stride, p.rotation_on_load(row), p.scale,
              slot + size);
    transpose_tile(padded, width, slot + size, width, slot, BLOCK);
    load_tile(count, p.dim, width, p.doutput + offset, p.heads * p.dim, {}, 1, slot + 3 * size);
    transpose_tile(padded, width, slot + 3 * size, width, slot + 2 * size, BLOCK);
    if (first_walk) p.write_delta(sequence, head, query, count);
    return result;
  }

  const AttentionBackward<T>& p;
  const int64_t width;
  float *weights, *dscores, *rows, *keys, *transposed_keys, *transposed_values, *dkeys, *dvalues;
  Slots slots;  // blocks of queries
};

// Runs a worker of type OneWorker on each thread, over its share of the sequences' key/value heads.
template <typename OneWorker, typename T>
void differentiate_by(const mantou_context* context, const AttentionBackward<T>& p) {
  parallel_for(context, p.batch * p.kv_heads, 1, [&](int64_t begin, int64_t end, int thread) {
    OneWorker worker(p, context->thread_scratch<float>(thread));
    for (int64_t item = begin; item < end; item++) worker.run(item / p.kv_heads, item % p.kv_heads);
  });
}

template <typename T>
void differentiate_attention(const mantou_context* context, const AttentionBackward<T>& p) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, bfloat16>) {
    const bool done = with_pairs(context, [&](auto unit) {
      differentiate_by<PairBackwardWorker<typename decltype(unit)::type>>(context, p);
    });
    if (done) return;
  }
#endif
  differentiate_by<Worker<T>>(context, p);
}

}  // namespace
}  // namespace mantou

using namespace mantou;

// A worker rotates the queries and keys of a head once, and keeps them.
int64_t mantou_attention_rotate_first(int64_t) { return 0; }

// delta, and room for dq while it grows.
int64_t mantou_attention_backward_workspace(int64_t batch, int64_t sequence_length, int64_t heads, int64_t,
                                            int64_t head_dim) {
  return batch * heads * sequence_length * (1 + head_dim) * static_cast<int64_t>(sizeof(float));
}

int32_t mantou_attention_backward(mantou_context* context, int32_t dtype, int64_t batch, int64_t sequence_length,
                                  int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, const void* doutput,
                                  const void* q, int64_t q_stride, const void* k, const void* v, int64_t kv_stride,
                                  const float* rope, const int32_t* positions, int32_t rotated, const void* output,
                                  const float* lse, void* dq, void* dk, void* dv, void* workspace) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  RETURN_IF_FAILED(check_attention(__func__, batch, sequence_length, heads, kv_heads, head_dim, q_stride, kv_stride));
  if (batch == 0 || sequence_length == 0) return MANTOU_OK;
  CHECK_NOT_NULL(doutput, q, k, v, output, lse, dq, dk, dv, workspace);
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    float* const delta = static_cast<float*>(workspace);
    const AttentionBackward<T> problem = {batch,
                                          sequence_length,
                                          heads,
                                          kv_heads,
                                          head_dim,
                                          scale,
                                          static_cast<const T*>(doutput),
                                          static_cast<const T*>(q),
                                          q_stride,
                                          static_cast<const T*>(k),
                                          static_cast<const T*>(v),
                                          kv_stride,
                                          rope,
                                          positions,
                                          rotated != 0,
                                          static_cast<const T*>(output),
                                          lse,
                                          static_cast<T*>(dq),
                                          static_cast<T*>(dk),
                                          static_cast<T*>(dv),
                                          delta,
                                          delta + batch * heads * sequence_length};
    differentiate_attention(context, problem);
  });
  return MANTOU_OK;
}
