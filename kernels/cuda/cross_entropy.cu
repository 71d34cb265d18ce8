// Cross-entropy of rows of logits and its gradient, written over them.
//
// A block takes a row. Each thread keeps its first SPAN packs in registers, so that a row of up to SPAN * THREADS packs
// is read once and written once; what a longer one has beyond them is read three times. Columns past the vocabulary
// have no place in the sum, whatever they hold. A soft cap is computed anew wherever a logit is looked at; it keeps their
// order, so that the largest is found before.
#include "context.h"

using namespace mantou;

namespace {

// tanh(x) for arithmetic in T: to float32's last digits, or by two instructions of float32's range.
template <typename T>
DEVICE float hyperbolic_tangent(float x) {
  return sizeof(T) == 4 ? tanhf(x) : 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * x));
}

template <typename T, int N, int THREADS, int SPAN, bool CAPPED>
GLOBAL void LAUNCH_BOUNDS(THREADS) cross_entropy(int vocab_size, T* logits, int64_t stride, const int32_t* targets,
                                                 float soft_cap, float z_loss, float gradient_scale, float* losses,
                                                 Fault* fault) {
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
  Packs* const packs = reinterpret_cast<Packs*>(x);
  const int count = vocab_size / N, first = static_cast<int>(threadIdx.x);
  const bool has_single = first < vocab_size - count * N;
  const int single_at = count * N + first;
  const float single = has_single ? to_float(x[single_at]) : -INFINITY;

  Packs kept[SPAN];
  float most = single;
  // There are registers for what was loaded, but not for all that is computed from it on the way.
  const auto forget_kept = [&] {
#pragma unroll
    for (int j = 0; j < SPAN; j++) forget(kept[j]);
  };
  const auto raise = [&](const Packs& pack) {
#pragma unroll
    for (int k = 0; k < N; k++) most = fmaxf(most, to_float(pack.values[k]));
  };
#pragma unroll
  for (int j = 0; j < SPAN; j++)
    if (first + j * THREADS < count) kept[j] = packs[first + j * THREADS];
#pragma unroll
  for (int j = 0; j < SPAN; j++)
    if (first + j * THREADS < count) raise(kept[j]);
  for (int i = first + SPAN * THREADS; i < count; i += THREADS) raise(packs[i]);
  most = capped(block_max<THREADS>(most, scratch[0]));
  forget_kept();

  float sum = has_single ? exponential<T>(capped(single) - most) : 0.0f;
  const auto add = [&](const Packs& pack) {
    float part = 0.0f;
#pragma unroll
    for (int k = 0; k < N; k++) part += exponential<T>(capped(to_float(pack.values[k])) - most);
    sum += part;
  };
#pragma unroll
  for (int j = 0; j < SPAN; j++)
    if (first + j * THREADS < count) add(kept[j]);
  for (int i = first + SPAN * THREADS; i < count; i += THREADS) add(packs[i]);
  sum = block_sum<THREADS>(sum, scratch[1]);
  forget_kept();
  const float log_sum = logf(sum);
  if (threadIdx.x == 0) losses[row] = log_sum + (most - wanted);  // the difference is exact where it matters: near 0
  if (gradient_scale == 0.0f) return;

  const float factor = gradient_scale * (1.0f + 2.0f * z_loss * (log_sum + most)) / sum;
  const auto gradient = [&](float logit, int i) {
    const float z = capped(logit), part = z * per_cap;
    const float by_z = exponential<T>(z - most) * factor - (i == target ? gradient_scale : 0.0f);
    return CAPPED ? by_z * (1.0f - part * part) : by_z;
  };
  const auto write = [&](const Packs& pack, int i) {
    float values[N];
#pragma unroll
    for (int k = 0; k < N; k++) values[k] = gradient(to_float(pack.values[k]), i * N + k);
    store(x + i * N, values);
  };
#pragma unroll
  for (int j = 0; j < SPAN; j++)
    if (first + j * THREADS < count) write(kept[j], first + j * THREADS);
  for (int i = first + SPAN * THREADS; i < count; i += THREADS) write(packs[i], i);
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
      const auto run = [=](auto kernel, int threads) {
        return launch(name, kernel, grid_of(rows), static_cast<unsigned>(threads), 0, context->stream,
                      static_cast<int>(vocab_size), static_cast<T*>(logits), stride, targets, soft_cap, z_loss,
                      gradient_scale, losses, context->fault);
      };
      if (!vectors) return run(cross_entropy<T, 1, 256, 8, CAPPED>, 256);
      constexpr int N = LANES<T>;
      const int64_t packs = divide_up(vocab_size, N);
      if (packs <= 128) return run(cross_entropy<T, N, 128, 1, CAPPED>, 128);
      if (packs <= 256 * 8) return run(cross_entropy<T, N, 256, 8, CAPPED>, 256);
      if (packs <= 512 * 8) return run(cross_entropy<T, N, 512, 8, CAPPED>, 512);
      return run(cross_entropy<T, N, 768, 9, CAPPED>, 768);
    });
  });
}
