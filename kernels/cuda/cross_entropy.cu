// Cross-entropy of rows of logits and its gradient, written over them.
//
// A block takes a row and passes over it three times. A row that fits is kept in shared memory, where every thread looks
// at what it has copied itself: it is read once and written once, and all of it is on its way at a time without a register.
// Longer rows are read three times. Columns past the vocabulary have no place in the sum, whatever they hold. A soft cap is
// computed anew wherever a logit is looked at; it keeps their order, so that the largest is found before.
#include "context.h"

using namespace mantou;

namespace {

// Static shared memory of a block at most, bytes.
constexpr int64_t MOST_STATIC = 1024;

// tanh(x) for arithmetic in T: to float32's last digits, or by two instructions of float32's range.
template <typename T>
DEVICE float hyperbolic_tangent(float x) {
  return sizeof(T) == 4 ? tanhf(x) : 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x));
}

template <typename T, int N, int THREADS, bool KEPT, bool CAPPED>
GLOBAL void LAUNCH_BOUNDS(THREADS, 1024 / THREADS)
    cross_entropy(int vocab_size, T* logits, int64_t stride, const int32_t* targets, float soft_cap, float z_loss,
                  float gradient_scale, float* losses, Fault* fault) {
  SHARED_DYNAMIC(memory);
  SHARED_ARRAY(float, scratch, [2][THREADS / WARP]);
  const int64_t row = blockIdx.x;
  const int32_t target = targets[row];
  if (target < 0 || target >= vocab_size) {
    if (threadIdx.x == 0) report_fault(fault, TARGET, target, row, vocab_size);
    if (threadIdx.x == 0) losses[row] = NAN;
    return;
  }
  T* const x = logits + row * stride;
  const float per_cap = 1.0f / soft_cap;
  const auto capped = [&](float logit) {
    return CAPPED ? soft_cap * hyperbolic_tangent<T>(logit * per_cap) : logit;
  };
  // Read before the barriers below, after which it is overwritten.
  const float wanted = threadIdx.x == 0 ? capped(to_float(x[target])) : 0.0f;

  // The row's whole packs, and for the first threads one element each of what is left over.
  using Packs = Pack<T, N>;
  const Packs* const packs = reinterpret_cast<const Packs*>(x);
  Packs* const kept = reinterpret_cast<Packs*>(memory);
  const int count = vocab_size / N, first = static_cast<int>(threadIdx.x);
  if constexpr (KEPT) {
    for (int i = first; i < count; i += THREADS) cp_async16(&kept[i], &packs[i]);
    cp_async_commit();
  }
  const auto logits_at = [&](int i) { return KEPT ? kept[i] : packs[i]; };
  const bool has_single = first < vocab_size - count * N;
  const int single_at = count * N + first;
  const float single = has_single ? to_float(x[single_at]) : -INFINITY;
  if constexpr (KEPT) cp_async_wait<0>();

  float most = single;
#pragma unroll 4
  for (int i = first; i < count; i += THREADS) {
    const Packs pack = logits_at(i);
#pragma unroll
    for (int k = 0; k < N; k++) most = fmaxf(most, to_float(pack.values[k]));
  }
  most = capped(block_max<THREADS>(most, scratch[0]));

  float sum = has_single ? exponential<T>(capped(single) - most) : 0.0f;
#pragma unroll 2
  for (int i = first; i < count; i += THREADS) {
    const Packs pack = logits_at(i);
    float part = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) part += exponential<T>(capped(to_float(pack.values[k])) - most);
    sum += part;
  }
  sum = block_sum<THREADS>(sum, scratch[1]);
  const float log_sum = logf(sum);
  if (threadIdx.x == 0) losses[row] = log_sum + (most - wanted);  // the difference is exact where it matters: near 0
  if (gradient_scale == 0.0f) return;

  const float factor = gradient_scale * (1.0f + 2.0f * z_loss * (log_sum + most)) / sum;
  const auto gradient = [&](float logit, int i) {
    const float z = capped(logit), part = z * per_cap;
    const float by_z = exponential<T>(z - most) * factor - (i == target ? gradient_scale : 0.0f);
    return CAPPED ? by_z * (1.0f - part * part) : by_z;
  };
#pragma unroll 2
  for (int i = first; i < count; i += THREADS) {
    const Packs pack = logits_at(i);
    float values[N];
#pragma unroll
    for (int k = 0; k < N; k++) values[k] = gradient(to_float(pack.values[k]), i * N + k);
    store(x + i * N, values);
  }
  if (has_single) x[single_at] = from_float<T>(gradient(single, single_at));
  for (int64_t i = vocab_size + first; i < stride; i += THREADS) x[i] = from_float<T>(0.0f);
}

}  // namespace

int32_t mantou_cross_entropy(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size, void* logits,
                             int64_t stride, const int32_t* targets, float soft_cap, float z_loss, float gradient_scale,
                             float* losses) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows);
  CHECK(vocab_size > 0, "%s: vocab_size is %lld; it must be positive", __func__, static_cast<long long>(vocab_size));
  CHECK(vocab_size < 1 << 30, "%s: vocab_size is %lld; it must be below 2^30", __func__,
        static_cast<long long>(vocab_size));
  CHECK_AT_LEAST(stride, vocab_size);
  CHECK(soft_cap >= 0.0f, "%s: soft_cap is %g; it must not be negative", __func__, static_cast<double>(soft_cap));
  CHECK(z_loss >= 0.0f, "%s: z_loss is %g; it must not be negative", __func__, static_cast<double>(z_loss));
  if (rows == 0) return MANTOU_OK;
  CHECK_NOT_NULL(logits, targets, losses);
  const char* const name = __func__;
  const bool vectors = in_vectors(dtype, stride, logits);
  return with_type(dtype, [=](auto zero) {
    return with_bool(soft_cap > 0.0f, [=](auto is_capped) {
      using T = decltype(zero);
      constexpr bool CAPPED = decltype(is_capped)::value;
      const auto run = [=](auto kernel, int threads, int64_t shared) {
        return launch(name, kernel, grid_of(rows), static_cast<unsigned>(threads), static_cast<size_t>(shared),
                      context->stream, static_cast<int>(vocab_size), static_cast<T*>(logits), stride, targets, soft_cap,
                      z_loss, gradient_scale, losses, context->fault);
      };
      constexpr int N = LANES<T>;
      const int64_t packs = vocab_size / N, bytes = packs * 16;
      if (!vectors) return run(cross_entropy<T, 1, 256, false, CAPPED>, 256, 0);
      if (bytes + MOST_STATIC > context->shared_bytes) return run(cross_entropy<T, N, 512, false, CAPPED>, 512, 0);
      if (packs <= 256) return run(cross_entropy<T, N, 128, true, CAPPED>, 128, bytes);
      if (packs <= 2048) return run(cross_entropy<T, N, 256, true, CAPPED>, 256, bytes);
      return run(cross_entropy<T, N, 512, true, CAPPED>, 512, bytes);
    });
  });
}
