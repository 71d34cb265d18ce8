// AdamW (Loshchilov & Hutter 2019) and the norm of the gradients that clipping needs: each one pass over contiguous
// arrays. Learning rate, corrections and clipping factor are read from device memory, so that neither the norm nor a
// captured graph needs the host.
#include <cmath>

#include "context.h"

using namespace mantou;

// ---- norm --------------------------------------------------------------------------------------------------------

namespace {

constexpr int64_t CHUNK = 4096;
constexpr int NORM_THREADS = 256, TOTAL_THREADS = 1024;

int64_t chunks_of(int64_t count) { return divide_up(count, CHUNK); }

template <int N>
GLOBAL void LAUNCH_BOUNDS(NORM_THREADS) sum_squares(int64_t count, const float* gradients, double* sums) {
  SHARED_ARRAY(double, scratch, [NORM_THREADS / WARP]);
  const int64_t begin = int64_t{blockIdx.x} * CHUNK, end = count - begin < CHUNK ? count : begin + CHUNK;
  float squares[N] = {};
#pragma unroll 4
  for (int64_t i = begin + int64_t{threadIdx.x} * N; i + N <= end; i += NORM_THREADS * N) {
    float x[N];
    load(x, gradients + i);
#pragma unroll
    for (int k = 0; k < N; k++) squares[k] += x[k] * x[k];
  }
  double sum = 0.0;
#pragma unroll
  for (int k = 0; k < N; k++) sum += static_cast<double>(squares[k]);
  const int64_t left = end - (end - begin) % N + threadIdx.x;
  if (left < end) sum += static_cast<double>(gradients[left]) * static_cast<double>(gradients[left]);
  sum = block_sum<NORM_THREADS>(sum, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

GLOBAL void LAUNCH_BOUNDS(TOTAL_THREADS)
    norm_and_factor(int64_t chunks, const double* sums, float max_norm, float eps, float* result) {
  SHARED_ARRAY(double, scratch, [TOTAL_THREADS / WARP]);
  double sum = 0.0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < chunks; i += TOTAL_THREADS) sum += sums[i];
  sum = block_sum<TOTAL_THREADS>(sum, scratch);
  if (threadIdx.x != 0) return;
  const float norm = static_cast<float>(sqrt(sum));
  const float factor = max_norm / (norm + eps);
  result[0] = norm;
  result[1] = max_norm > 0.0f && !(factor > 1.0f) ? factor : 1.0f;  // NaN stays NaN
}

}  // namespace

int64_t mantou_gradient_norm_workspace(int64_t count) {
  return chunks_of(count) * static_cast<int64_t>(sizeof(double));
}

int32_t mantou_gradient_norm(mantou_context* context, int64_t count, const float* gradients, float max_norm, float eps,
                             float* result, void* workspace) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(count);
  CHECK_NOT_NULL(result);
  double* const sums = static_cast<double*>(workspace);
  if (count > 0) {
    CHECK_NOT_NULL(gradients, workspace);
    const auto kernel = is_aligned(gradients) ? sum_squares<4> : sum_squares<1>;
    RETURN_IF_FAILED(
        launch(__func__, kernel, grid_of(chunks_of(count)), NORM_THREADS, 0, context->stream, count, gradients, sums));
  }
  return launch(__func__, norm_and_factor, 1, TOTAL_THREADS, 0, context->stream, chunks_of(count), sums, max_norm, eps,
                result);
}

// ---- update ------------------------------------------------------------------------------------------------------

namespace {

template <typename T>
struct Update {
  int64_t count;
  T* weights;
  float* master;  // the weights themselves where they are float32
  const float* gradients;
  float *first_moments, *second_moments;
  const float *scalars, *gradient_factor;
  float beta1, complement1, beta2, complement2, eps;  // complement = 1 - beta
  int32_t ranges;
  const int64_t* range_ends;
  const float* range_decays;

  // The first range that ends after i.
  DEVICE int32_t range_of(int64_t i) const {
    int32_t low = 0, high = ranges - 1;
    while (low < high) {
      const int32_t middle = (low + high) / 2;
      if (range_ends[middle] > i)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }

  template <int N>
  DEVICE void at(int64_t i) const {
    const float lr = scalars[0], rate = lr / scalars[1], second_scale = rsqrtf(scalars[2]);
    const float factor = gradient_factor ? *gradient_factor : 1.0f;
    float w[N], g[N], m[N], v[N];
    load(w, master + i);
    load(g, gradients + i);
    load(m, first_moments + i);
    load(v, second_moments + i);
    int32_t range = range_of(i);
#pragma unroll
    for (int k = 0; k < N; k++) {
      while (range_ends[range] <= i + k) range++;
      const float gradient = g[k] * factor;
      m[k] = beta1 * m[k] + complement1 * gradient;
      v[k] = beta2 * v[k] + complement2 * (gradient * gradient);
      w[k] = w[k] * (1.0f - lr * range_decays[range]) - rate * m[k] / (sqrtf(v[k]) * second_scale + eps);
    }
    store(first_moments + i, m);
    store(second_moments + i, v);
    store(master + i, w);
    if (sizeof(T) < sizeof(float)) store(weights + i, w);
  }
};

// 1 - beta. A float32 near 1 is good to 3e-8 only, which would leave 0.001 = 1 - 0.999 wrong in its fifth digit, so
// that the moments would differ from those of an optimizer that subtracts before rounding. Betas are short decimals.
float complement(float beta) { return static_cast<float>(std::round((1.0 - static_cast<double>(beta)) * 1e7) / 1e7); }

}  // namespace

int32_t mantou_adamw(mantou_context* context, int32_t dtype, int64_t count, void* weights, float* master,
                     const float* gradients, float* first_moments, float* second_moments, const float* scalars,
                     const float* gradient_factor, float beta1, float beta2, float eps, int32_t ranges,
                     const int64_t* range_ends, const float* range_decays) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(weights);
  CHECK((master == nullptr) == (dtype == MANTOU_FLOAT32), "%s: master must be %s where the weights are %s", __func__,
        dtype == MANTOU_FLOAT32 ? "null" : "given", dtype == MANTOU_FLOAT32 ? "float32" : "bfloat16");
  CHECK_NOT_NULL(gradients, first_moments, second_moments, scalars);
  CHECK(ranges > 0, "%s: ranges is %d; there must be at least one", __func__, ranges);
  CHECK_NOT_NULL(range_ends, range_decays);
  CHECK(beta1 >= 0.0f && beta1 < 1.0f, "%s: beta1 is %g; it must be in [0, 1)", __func__, static_cast<double>(beta1));
  CHECK(beta2 >= 0.0f && beta2 < 1.0f, "%s: beta2 is %g; it must be in [0, 1)", __func__, static_cast<double>(beta2));
  const char* const name = __func__;
  if (dtype == MANTOU_FLOAT32) master = static_cast<float*>(weights);
  const bool vectors = is_aligned(weights) && is_aligned(master) && is_aligned(gradients) &&
                       is_aligned(first_moments) && is_aligned(second_moments);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    const Update<T> update{count,         static_cast<T*>(weights),
                           master,        gradients,
                           first_moments, second_moments,
                           scalars,       gradient_factor,
                           beta1,         complement(beta1),
                           beta2,         complement(beta2),
                           eps,           ranges,
                           range_ends,    range_decays};
    return for_elements<4>(context, name, count, vectors, update);
  });
}
