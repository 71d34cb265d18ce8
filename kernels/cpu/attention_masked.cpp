// Attention under any mask, without heads or rotation: the operation as textbooks write it, one query at a time. A
// thread's scratch holds the row of weights.
#include <cmath>

#include "context.h"
#include "tile.h"

namespace mantou {
namespace {

// Weights of one query over `keys` keys: softmax of the scores where `mask` is 1, all equal where it is 0 everywhere.
template <typename T>
void weigh(int64_t keys, int64_t dim, float scale, const T* q, const T* k, const uint8_t* mask, float* weights) {
  float most = -INFINITY;
  bool any = false;
  for (int64_t key = 0; key < keys; key++) {
    if (mask && !mask[key]) continue;
    any = true;
    Vector sum{};
    for_vectors(dim, [&](int64_t c, auto part) { sum += load(q + c, part) * load(k + key * dim + c, part); });
    weights[key] = scale * horizontal_sum(sum);
    if (weights[key] > most) most = weights[key];
  }
  if (!any) {
    for (int64_t key = 0; key < keys; key++) weights[key] = 1 / static_cast<float>(keys);
    return;
  }
  if (mask)
    for (int64_t key = 0; key < keys; key++)
      if (!mask[key]) weights[key] = -INFINITY;
  Vector sum{};
  for_vectors(keys, [&](int64_t key, auto part) {
    const Vector weight = exp(load(weights + key, part, -INFINITY) - most);
    store(weights + key, weight, part);
    sum += weight;
  });
  const float factor = 1 / horizontal_sum(sum);
  for_vectors(keys, [&](int64_t key, auto part) { store(weights + key, load(weights + key, part) * factor, part); });
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
  CHECK(keys <= SCRATCH_BYTES / 4, "%s: at most %lld keys are supported, got %lld", __func__,
        static_cast<long long>(SCRATCH_BYTES / 4), static_cast<long long>(keys));
  CHECK(v && output && (dk == 0 || (q && k)), "%s: q, k, v or output is null", __func__);
  const int64_t grain = larger(1, (int64_t{1} << 16) / (keys * (dk + dv)));
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const auto* const all_queries = static_cast<const T*>(q);
    const auto* const all_keys = static_cast<const T*>(k);
    const auto* const all_values = static_cast<const T*>(v);
    auto* const all_outputs = static_cast<T*>(output);
    parallel_for(context, batch * queries, grain, [&](int64_t begin, int64_t end, int thread) {
      float* const weights = context->thread_scratch<float>(thread);
      for (int64_t row = begin; row < end; row++) {
        const int64_t sequence = row / queries;
        weigh(keys, dk, scale, all_queries + row * dk, all_keys + sequence * keys * dk,
              mask ? mask + row * keys : nullptr, weights);
        const T* const values = all_values + sequence * keys * dv;
        for_vectors(dv, [&](int64_t c, auto part) {
          Vector sum{};
          for (int64_t key = 0; key < keys; key++) sum += weights[key] * load(values + key * dv + c, part);
          store(all_outputs + row * dv + c, sum, part);
        });
      }
    });
  });
  return MANTOU_OK;
}
