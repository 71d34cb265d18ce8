// Attention under any mask, without heads or rotation: the operation as textbooks write it, for tests and experiments. A
// block computes COLUMNS columns of one query's output: it passes over the keys in batches of one per thread, with a
// running maximum and sum, and every thread then adds up its column of the values. Wider values repeat the scores.
#include "attention.h"

namespace mantou {
namespace {

constexpr int THREADS = 128;  // keys per batch, and columns per block

struct Masked {
  int64_t queries, keys, dk, dv;
  float scale;
  const void *q, *k, *v;
  const uint8_t* mask;
  void* output;
};

template <typename T>
GLOBAL void LAUNCH_BOUNDS(THREADS) attend(Masked p) {
  SHARED_ARRAY(float, weights, [THREADS]);
  SHARED_ARRAY(float, largest, [THREADS / WARP]);
  SHARED_ARRAY(float, totals, [THREADS / WARP]);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;
  const int64_t sequence = row / p.queries;
  const int64_t column = static_cast<int64_t>(blockIdx.y) * THREADS + thread;
  const auto* const q = static_cast<const T*>(p.q) + row * p.dk;
  const auto* const k = static_cast<const T*>(p.k) + sequence * p.keys * p.dk;
  const auto* const v = static_cast<const T*>(p.v) + sequence * p.keys * p.dv;
  const uint8_t* const mask = p.mask ? p.mask + row * p.keys : nullptr;

  // A row that is masked everywhere attends to everything equally.
  bool any = !mask;
  if (mask) {
    float found = 0;
    for (int64_t key = thread; key < p.keys; key += THREADS) found = mask[key] ? 1.0f : found;
    any = block_max<THREADS>(found, totals) > 0;
  }

  float most = -INFINITY, total = 0, sum = 0;
  for (int64_t first = 0; first < p.keys; first += THREADS) {
    const int64_t key = first + thread;
    float score = -INFINITY;
    if (key < p.keys && !any) score = 0;
    if (key < p.keys && any && (!mask || mask[key])) {
      score = 0;
      for (int64_t c = 0; c < p.dk; c++) score = fmaf(to_float(q[c]), to_float(k[key * p.dk + c]), score);
      score *= p.scale;
    }
    const float before = most;
    most = fmaxf(before, block_max<THREADS>(score, largest));  // its barrier: the last batch's weights have been read
    // Nothing seen so far weighs nothing.
    const float base = most == -INFINITY ? 0.0f : most;
    const float correction = expf(before - base);
    const float weight = expf(score - base);
    weights[thread] = weight;
    total = total * correction + block_sum<THREADS>(weight, totals);  // its barrier: the weights are there for everyone
    sum *= correction;
    if (column < p.dv) {
      const int64_t rest = p.keys - first;
      const int count = rest < THREADS ? static_cast<int>(rest) : THREADS;
      for (int i = 0; i < count; i++) sum = fmaf(weights[i], to_float(v[(first + i) * p.dv + column]), sum);
    }
  }
  if (column < p.dv) static_cast<T*>(p.output)[row * p.dv + column] = from_float<T>(sum / total);
}

}  // namespace
}  // namespace mantou

using namespace mantou;

int32_t mantou_attention_masked(mantou_context* context, int32_t dtype, int64_t batch, int64_t queries, int64_t keys,
                                int64_t dk, int64_t dv, float scale, const void* q, const void* k, const void* v,
                                const uint8_t* mask, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(batch, queries, keys, dk, dv);
  if (batch == 0 || queries == 0 || dv == 0) return MANTOU_OK;
  CHECK(keys > 0, "%s: there is no key to attend to", __func__);
  CHECK(dv <= int64_t{65535} * THREADS, "%s: values of at most %lld columns are supported, got %lld", __func__,
        static_cast<long long>(int64_t{65535} * THREADS), static_cast<long long>(dv));
  CHECK(v && output && (dk == 0 || (q && k)), "%s: q, k, v or output is null", __func__);
  const Masked p = {queries, keys, dk, dv, scale, q, k, v, mask, output};
  const dim3 grid = grid_of(batch * queries, divide_up(dv, THREADS));
  return with_type(dtype, [&](auto type) {
    return launch("mantou_attention_masked", attend<decltype(type)>, grid, THREADS, 0, context->stream, p);
  });
}
