// Cross-entropy of rows of logits, and its gradient written over them while the row is still in the cache.
#include <cmath>

#include "context.h"
#include "vector.h"

using namespace mantou;

template <typename T>
static float largest_of(int64_t count, const T* values) {
  Vector largest = splat(-INFINITY);
  for_vectors(count, [&](int64_t i, auto lanes) { largest = maximum(load(values + i, lanes, -INFINITY), largest); });
  return horizontal_max(largest);
}

// The sum of exp(logits - most); the exponentials go to `exponentials` unless it is null, which may be the logits. A sum
// over a whole vocabulary in one float32 would lose digits: stretches of it are added up in float64. Meanwhile the next
// row, `stride` further on, is fetched from memory, which would otherwise stand idle (past the last row that is
// harmless).
template <bool keep, typename T>
static double sum_of_exponentials(int64_t count, const T* logits, int64_t stride, float most, float* exponentials) {
  constexpr int64_t STRETCH = 2048;
  double total = 0.0;
  for (int64_t begin = 0; begin < count; begin += STRETCH) {
    const T* values = logits + begin;
    Vector sums{};
    for_vectors(begin + STRETCH < count ? STRETCH : count - begin, [&](int64_t i, auto lanes) {
      const Vector e = exp(load(values + i, lanes, -INFINITY) - most);
      __builtin_prefetch(values + i + stride, keep, 2);
      if (keep) store(exponentials + begin + i, e, lanes);
      sums += e;
    });
    total += horizontal_sum(sums);
  }
  return total;
}

// `exponentials`: room for a row, where float32 does not fit in place of the logits.
template <typename T>
static float cross_entropy_row(int64_t vocab_size, T* logits, int64_t stride, int32_t target, float gradient_scale,
                               float* exponentials) {
  const float most = largest_of(vocab_size, logits);
  const float below = most - to_float(logits[target]);  // exact where it matters: near 0
  if (gradient_scale == 0.0f)
    return static_cast<float>(std::log(sum_of_exponentials<false>(vocab_size, logits, stride, most, nullptr)) + below);
  const double sum = sum_of_exponentials<true>(vocab_size, logits, stride, most, exponentials);
  const float factor = static_cast<float>(gradient_scale / sum);
  const float at_target = exponentials[target] * factor - gradient_scale;
  for_vectors(vocab_size, [=](int64_t i, auto lanes) {
    store(logits + i, load(exponentials + i, lanes) * factor, lanes);
  });
  logits[target] = from_float<T>(at_target);
  for (int64_t i = vocab_size; i < stride; i++) logits[i] = from_float<T>(0.0f);
  return static_cast<float>(std::log(sum) + below);
}

int32_t mantou_cross_entropy(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size, void* logits,
                             int64_t stride, const int32_t* targets, float gradient_scale, float* losses) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows);
  CHECK(vocab_size > 0, "%s: vocab_size is %lld; it must be positive", __func__, static_cast<long long>(vocab_size));
  CHECK(stride >= vocab_size, "%s: stride is %lld; it must be at least vocab_size, %lld", __func__,
        static_cast<long long>(stride), static_cast<long long>(vocab_size));
  if (rows == 0) return MANTOU_OK;
  CHECK_NOT_NULL(logits);
  CHECK_NOT_NULL(targets);
  CHECK_NOT_NULL(losses);
  for (int64_t row = 0; row < rows; row++)
    CHECK(targets[row] >= 0 && targets[row] < vocab_size,
          "%s: target %d in row %lld is not within the vocabulary (0 to %lld)", __func__, targets[row],
          static_cast<long long>(row), static_cast<long long>(vocab_size - 1));
  if (dtype == MANTOU_FLOAT32) {
    float* values = static_cast<float*>(logits);
    parallel_for(context, rows, grain_rows(vocab_size), [=](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        float* own = values + row * stride;
        losses[row] = cross_entropy_row(vocab_size, own, stride, targets[row], gradient_scale, own);
      }
    });
    return MANTOU_OK;
  }
  constexpr int64_t ROOM = SCRATCH_BYTES / static_cast<int64_t>(sizeof(float));
  CHECK(vocab_size <= ROOM, "%s: vocab_size is %lld; in bfloat16 it can be at most %lld", __func__,
        static_cast<long long>(vocab_size), static_cast<long long>(ROOM));
  bfloat16* values = static_cast<bfloat16*>(logits);
  parallel_for(context, rows, grain_rows(vocab_size), [=](int64_t begin, int64_t end, int thread) {
    for (int64_t row = begin; row < end; row++)
      losses[row] = cross_entropy_row(vocab_size, values + row * stride, stride, targets[row], gradient_scale,
                                      context->thread_scratch<float>(thread));
  });
  return MANTOU_OK;
}
