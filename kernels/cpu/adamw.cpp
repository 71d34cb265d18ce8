// AdamW (Loshchilov & Hutter 2019) and the norm of the gradients that clipping needs: each one pass over contiguous
// arrays.
#include <cmath>

#include "context.h"
#include "vector.h"

using namespace mantou;

// ---- norm --------------------------------------------------------------------------------------------------------

constexpr int64_t CHUNK = 16384;

static int64_t chunks_of(int64_t count) { return (count + CHUNK - 1) / CHUNK; }

int64_t mantou_gradient_norm_workspace(int64_t count) {
  return chunks_of(count) * static_cast<int64_t>(sizeof(double));
}

// Chunks are summed one by one, whoever does it, and then added in order.
int32_t mantou_gradient_norm(mantou_context* context, int64_t count, const float* gradients, float max_norm, float eps,
                             float* result, void* workspace) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(count);
  CHECK_NOT_NULL(result);
  if (count > 0) {
    CHECK_NOT_NULL(gradients, workspace);
  }
  double* sums = static_cast<double*>(workspace);
  parallel_for(context, chunks_of(count), GRAIN / CHUNK, [=](int64_t first, int64_t last, int) {
    for (int64_t chunk = first; chunk < last; chunk++) {
      const int64_t begin = chunk * CHUNK, rest = count - begin;
      sums[chunk] = sum_double<true>(rest < CHUNK ? rest : CHUNK, gradients + begin);
    }
  });
  double sum = 0.0;
  for (int64_t chunk = 0; chunk < chunks_of(count); chunk++) sum += sums[chunk];
  const float norm = static_cast<float>(std::sqrt(sum));
  const float factor = max_norm / (norm + eps);
  result[0] = norm;
  result[1] = max_norm > 0.0f && !(factor > 1.0f) ? factor : 1.0f;  // NaN stays NaN
  return MANTOU_OK;
}

// ---- update ------------------------------------------------------------------------------------------------------

// 1 - beta. A float32 near 1 is good to 3e-8 only, which would leave 0.001 = 1 - 0.999 wrong in its fifth digit, so
// that the moments would differ from those of an optimizer that subtracts before rounding. Betas are short decimals.
static float complement(float beta) {
  return static_cast<float>(std::round((1.0 - static_cast<double>(beta)) * 1e7) / 1e7);
}

struct Step {
  float beta1, complement1;  // complement = 1 - beta
  float beta2, complement2;
  float rate;          // lr / c1
  float second_scale;  // 1 / sqrt(c2)
  float eps, factor;
};

// `keep` is what the weight decay leaves of a weight: 1 - lr * decay. `rounded`, if not null, receives the new weights.
template <bool round>
static void update(int64_t count, float* __restrict w, bfloat16* __restrict rounded, const float* __restrict gradients,
                   float* __restrict m, float* __restrict v, const Step step, float keep) {
  for (int64_t i = 0; i < count; i++) {
    const float g = gradients[i] * step.factor;
    const float first = step.beta1 * m[i] + step.complement1 * g;
    const float second = step.beta2 * v[i] + step.complement2 * (g * g);
    m[i] = first;
    v[i] = second;
    w[i] = w[i] * keep - step.rate * first / (std::sqrt(second) * step.second_scale + step.eps);
    if (round) rounded[i] = to_bfloat16(w[i]);
  }
}

int32_t mantou_adamw(mantou_context* context, int32_t dtype, int64_t count, void* weights, float* master,
                     const float* gradients, float* first_moments, float* second_moments, const float* scalars,
                     const float* gradient_factor, float beta1, float beta2, float eps, int32_t ranges,
                     const int64_t* range_ends, const float* range_decays) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(weights);
  CHECK((master == nullptr) == (dtype == MANTOU_FLOAT32),
        "%s: master must be %s where the weights are %s", __func__, dtype == MANTOU_FLOAT32 ? "null" : "given",
        dtype == MANTOU_FLOAT32 ? "float32" : "bfloat16");
  CHECK_NOT_NULL(gradients, first_moments, second_moments, scalars);
  CHECK(ranges > 0, "%s: ranges is %d; there must be at least one", __func__, ranges);
  CHECK_NOT_NULL(range_ends, range_decays);
  for (int32_t r = 0; r < ranges; r++)
    CHECK(range_ends[r] >= (r > 0 ? range_ends[r - 1] : 0), "%s: range_ends[%d] is %lld, less than the end before it",
          __func__, r, static_cast<long long>(range_ends[r]));
  CHECK(range_ends[ranges - 1] == count, "%s: the last range ends at %lld; it must end at count, %lld", __func__,
        static_cast<long long>(range_ends[ranges - 1]), static_cast<long long>(count));
  CHECK(beta1 >= 0.0f && beta1 < 1.0f, "%s: beta1 is %g; it must be in [0, 1)", __func__, static_cast<double>(beta1));
  CHECK(beta2 >= 0.0f && beta2 < 1.0f, "%s: beta2 is %g; it must be in [0, 1)", __func__, static_cast<double>(beta2));

  const float lr = scalars[0];
  const float factor = gradient_factor ? *gradient_factor : 1.0f;
  const Step step = {beta1,           complement(beta1),            beta2, complement(beta2),
                     lr / scalars[1], 1.0f / std::sqrt(scalars[2]), eps,   factor};
  float* w = master ? master : static_cast<float*>(weights);
  bfloat16* rounded = master ? static_cast<bfloat16*>(weights) : nullptr;
  parallel_elements(context, count, [=](int64_t begin, int64_t end) {
    int32_t range = 0;
    while (range_ends[range] <= begin) range++;
    for (int64_t i = begin; i < end; range++) {
      const int64_t until = range_ends[range] < end ? range_ends[range] : end;
      const float keep = 1.0f - lr * range_decays[range];
      if (rounded)
        update<true>(until - i, w + i, rounded + i, gradients + i, first_moments + i, second_moments + i, step, keep);
      else
        update<false>(until - i, w + i, nullptr, gradients + i, first_moments + i, second_moments + i, step, keep);
      i = until;
    }
  });
  return MANTOU_OK;
}
