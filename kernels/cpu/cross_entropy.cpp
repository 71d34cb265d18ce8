// Cross-entropy of rows of logits, and its gradient written over them while the row is still in the cache.
#include <cmath>

#include "context.h"
#include "vector.h"

using namespace mantou;

template <typename T>
static float largest_of(int64_t count, const T* values) {
  Vector largest = splat(-INFINITY);
  for_two_vectors(count, [&](int64_t i, auto lanes) { largest = maximum(load(values + i, lanes, -INFINITY), largest); });
  return horizontal_max(largest);
}

// What the loss sees of the logits: z = cap tanh(logits / cap), which leaves -inf as it is so that lanes past the end of a
// row stay out of sums. `slope` is dz / dlogit.
struct SoftCap {
  float cap;
  Vector operator()(Vector logits) const { return logits == -INFINITY ? logits : cap * tanh(logits / cap); }
  Vector slope(Vector logits) const {
    const Vector part = tanh(logits / cap);
    return 1.0f - part * part;
  }
  Two operator()(Two logits) const { return {(*this)(logits.even), (*this)(logits.odd)}; }
  Two slope(Two logits) const { return {slope(logits.even), slope(logits.odd)}; }
};

// Or z = logits.
struct NoCap {
  template <typename Logits>
  Logits operator()(Logits logits) const {
    return logits;
  }
  Vector slope(Vector) const { return splat(1.0f); }
  Two slope(Two) const { return {splat(1.0f), splat(1.0f)}; }
};

static Vector sum_of(Vector value) { return value; }
static Vector sum_of(Two values) { return values.even + values.odd; }

// The sum of exp(z - most), with z the capped logits; the exponentials go to `exponentials` unless it is null, which may be
// the logits. (In the order in which for_two_vectors meets them.) A sum over a whole vocabulary in one float32 would lose digits: stretches of it are added up in float64.
// Meanwhile the next row, `stride` further on, is fetched from memory, which would otherwise stand idle (past the last
// row that is harmless).
template <bool keep, typename T, typename Cap>
static double sum_of_exponentials(int64_t count, const T* logits, int64_t stride, Cap cap, float most,
                                  float* exponentials) {
  constexpr int64_t STRETCH = 2048;  // whole pairs of vectors
  double total = 0.0;
  for (int64_t begin = 0; begin < count; begin += STRETCH) {
    const T* values = logits + begin;
    Vector sums{};
    for_two_vectors(begin + STRETCH < count ? STRETCH : count - begin, [&](int64_t i, auto lanes) {
      const auto e = exp(cap(load(values + i, lanes, -INFINITY)) - most);
      __builtin_prefetch(values + i + stride, keep, 2);
      if (sizeof(T) == 4) __builtin_prefetch(values + i + LANES + stride, keep, 2);
      if (keep) store(exponentials + begin + i, e, lanes);
      sums += sum_of(e);
    });
    total += horizontal_sum(sums);
  }
  return total;
}
// `exponentials`: room for a row, or the row itself where float32 fits in place of logits that are not needed again.
template <typename T, typename Cap>
static float cross_entropy_row(int64_t vocab_size, T* logits, int64_t stride, int32_t target, Cap cap, float z_loss,
                               float gradient_scale, float* exponentials) {
  const auto one = [=](float logit) { return cap(splat(logit))[0]; };
  const Vector slope = cap.slope(splat(to_float(logits[target])));
  const float most = one(largest_of(vocab_size, logits));
  const float below = most - one(to_float(logits[target]));  // exact where it matters: near 0
  if (gradient_scale == 0.0f) {
    const double sum = sum_of_exponentials<false>(vocab_size, logits, stride, cap, most, nullptr);
    return static_cast<float>(std::log(sum) + below);
  }
  const double sum = sum_of_exponentials<true>(vocab_size, logits, stride, cap, most, exponentials);
  const double log_z = std::log(sum) + most;
  const float factor = static_cast<float>(gradient_scale * (1.0 + 2.0 * z_loss * log_z) / sum);
  const float at_target = (exp(splat(-below))[0] * factor - gradient_scale) * slope[0];
  for_two_vectors(vocab_size, [=](int64_t i, auto lanes) {
    const auto gradient = load(exponentials + i, lanes) * factor;
    store(logits + i, gradient * cap.slope(load(logits + i, lanes)), lanes);
  });
  logits[target] = from_float<T>(at_target);
  for (int64_t i = vocab_size; i < stride; i++) logits[i] = from_float<T>(0.0f);
  return static_cast<float>(std::log(sum) + below);
}

int32_t mantou_cross_entropy(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size, void* logits,
                             int64_t stride, const int32_t* targets, float soft_cap, float z_loss, float gradient_scale,
                             float* losses) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows);
  CHECK(vocab_size > 0, "%s: vocab_size is %lld; it must be positive", __func__, static_cast<long long>(vocab_size));
  CHECK_AT_LEAST(stride, vocab_size);
  CHECK(soft_cap >= 0.0f, "%s: soft_cap is %g; it must not be negative", __func__, static_cast<double>(soft_cap));
  CHECK(z_loss >= 0.0f, "%s: z_loss is %g; it must not be negative", __func__, static_cast<double>(z_loss));
  if (rows == 0) return MANTOU_OK;
  CHECK_NOT_NULL(logits, targets, losses);
  for (int64_t row = 0; row < rows; row++)
    CHECK(targets[row] >= 0 && targets[row] < vocab_size,
          "%s: target %d in row %lld is not within the vocabulary (0 to %lld)", __func__, targets[row],
          static_cast<long long>(row), static_cast<long long>(vocab_size - 1));
  const bool in_place = dtype == MANTOU_FLOAT32 && soft_cap == 0.0f;
  constexpr int64_t ROOM = SCRATCH_BYTES / static_cast<int64_t>(sizeof(float));
  CHECK(in_place || vocab_size <= ROOM, "%s: vocab_size is %lld; in bfloat16 or with a soft_cap it can be at most %lld",
        __func__, static_cast<long long>(vocab_size), static_cast<long long>(ROOM));
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    T* values = static_cast<T*>(logits);
    const auto run = [=](auto cap) {
      parallel_for(context, rows, grain_rows(vocab_size), [=](int64_t begin, int64_t end, int thread) {
        for (int64_t row = begin; row < end; row++) {
          T* own = values + row * stride;
          float* room = in_place ? reinterpret_cast<float*>(own) : context->thread_scratch<float>(thread);
          losses[row] = cross_entropy_row(vocab_size, own, stride, targets[row], cap, z_loss, gradient_scale, room);
        }
      });
    };
    if (soft_cap > 0.0f) run(SoftCap{soft_cap});
    else run(NoCap{});
  });
  return MANTOU_OK;
}
