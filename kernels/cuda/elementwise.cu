// Conversions, sums and scaling of plain arrays. They read and write each byte once and do next to no arithmetic.
#include "context.h"

using namespace mantou;

namespace {

template <typename From, typename To>
struct Cast {
  const From* input;
  To* output;

  template <int N>
  DEVICE void at(int64_t i) const {
    float values[N];
    load(values, input + i);
    store(output + i, values);
  }
};

template <typename T>
struct Add {
  const T *a, *b;
  T* output;

  template <int N>
  DEVICE void at(int64_t i) const {
    float x[N], y[N];
    load(x, a + i);
    load(y, b + i);
#pragma unroll
    for (int k = 0; k < N; k++) x[k] += y[k];
    store(output + i, x);
  }
};

struct Scale {
  float* values;
  const float* factor;

  template <int N>
  DEVICE void at(int64_t i) const {
    const float by = *factor;
    float x[N];
    load(x, values + i);
#pragma unroll
    for (int k = 0; k < N; k++) x[k] *= by;
    store(values + i, x);
  }
};

constexpr int SUM_THREADS = 1024;

// One block: this is meant for the losses of a batch.
GLOBAL void LAUNCH_BOUNDS(SUM_THREADS)
    add_up(int64_t count, const float* values, float scale, bool accumulate, float* result) {
  SHARED_ARRAY(double, scratch, [SUM_THREADS / WARP]);
  double sum = 0.0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += SUM_THREADS) sum += static_cast<double>(values[i]);
  sum = block_sum<SUM_THREADS>(sum, scratch);
  if (threadIdx.x != 0) return;
  const float total = static_cast<float>(static_cast<double>(scale) * sum);
  *result = accumulate ? *result + total : total;
}

template <typename From, typename To>
int32_t cast(mantou_context* context, const char* name, int64_t count, const void* input, void* output) {
  const bool vectors = is_aligned(input) && is_aligned(output);
  return for_elements<4>(context, name, count, vectors,
                         Cast<From, To>{static_cast<const From*>(input), static_cast<To*>(output)});
}

}  // namespace

int32_t mantou_cast(mantou_context* context, int64_t count, int32_t input_dtype, const void* input,
                    int32_t output_dtype, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(count);
  CHECK_DTYPE(input_dtype);
  CHECK_DTYPE(output_dtype);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(input, output);
  if (input_dtype == output_dtype) {
    const size_t bytes = static_cast<size_t>(count * bytes_of(input_dtype));
    CHECK_CUDA(cudaMemcpyAsync(output, input, bytes, cudaMemcpyDefault, context->stream));
    return MANTOU_OK;
  }
  return input_dtype == MANTOU_FLOAT32 ? cast<float, bf16>(context, __func__, count, input, output)
                                       : cast<bf16, float>(context, __func__, count, input, output);
}

int32_t mantou_add(mantou_context* context, int32_t dtype, int64_t count, const void* a, const void* b, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(a, b, output);
  const char* const name = __func__;
  const bool vectors = is_aligned(a) && is_aligned(b) && is_aligned(output);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    return for_elements<LANES<T>>(context, name, count, vectors,
                                  Add<T>{static_cast<const T*>(a), static_cast<const T*>(b), static_cast<T*>(output)});
  });
}

int32_t mantou_scale(mantou_context* context, int64_t count, float* values, const float* factor) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(values, factor);
  return for_elements<4>(context, __func__, count, is_aligned(values), Scale{values, factor});
}

int32_t mantou_sum(mantou_context* context, int64_t count, const float* values, float scale, int32_t accumulate,
                   float* result) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(count);
  CHECK_NOT_NULL(result);
  if (count > 0) CHECK_NOT_NULL(values);
  return launch(__func__, add_up, 1, SUM_THREADS, 0, context->stream, count, values, scale, accumulate != 0, result);
}
