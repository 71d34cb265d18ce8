// Conversions, sums and scaling of plain arrays. They read and write each byte once and do next to no arithmetic.
#include "context.h"
#include "vector.h"

using namespace mantou;

// ---- cast --------------------------------------------------------------------------------------------------------

int32_t mantou_cast(mantou_context* context, int64_t count, int32_t input_dtype, const void* input,
                    int32_t output_dtype, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(count);
  CHECK_DTYPE(input_dtype);
  CHECK_DTYPE(output_dtype);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(input, output);
  if (input_dtype == output_dtype)
    return mantou_copy(context, output, input, count * (input_dtype == MANTOU_FLOAT32 ? 4 : 2));
  const auto convert = [=](const auto* from, auto* to) {
    parallel_elements(context, count, [=](int64_t begin, int64_t end) {
      for_vectors(end - begin, [=](int64_t i, auto lanes) {
        store(to + begin + i, load(from + begin + i, lanes), lanes);
      });
    });
  };
  if (input_dtype == MANTOU_FLOAT32) convert(static_cast<const float*>(input), static_cast<bfloat16*>(output));
  else convert(static_cast<const bfloat16*>(input), static_cast<float*>(output));
  return MANTOU_OK;
}

// ---- add, scale, sum ---------------------------------------------------------------------------------------------

int32_t mantou_add(mantou_context* context, int32_t dtype, int64_t count, const void* a, const void* b,
                   void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(a, b, output);
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const T* x = static_cast<const T*>(a);
    const T* y = static_cast<const T*>(b);
    T* sum = static_cast<T*>(output);
    parallel_elements(context, count, [=](int64_t begin, int64_t end) {
      for_vectors(end - begin, [=](int64_t i, auto lanes) {
        store(sum + begin + i, load(x + begin + i, lanes) + load(y + begin + i, lanes), lanes);
      });
    });
  });
  return MANTOU_OK;
}

int32_t mantou_scale(mantou_context* context, int64_t count, float* values, const float* factor) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(count);
  CHECK_NOT_NULL(factor);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(values);
  const Vector by = splat(*factor);
  parallel_elements(context, count, [=](int64_t begin, int64_t end) {
    for_vectors(end - begin, [=](int64_t i, auto lanes) {
      store(values + begin + i, load(values + begin + i, lanes) * by, lanes);
    });
  });
  return MANTOU_OK;
}

// On one thread: what is summed are the losses of a batch, and the order must not depend on anything.
int32_t mantou_sum(mantou_context* context, int64_t count, const float* values, float scale, int32_t accumulate,
                   float* result) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(count);
  CHECK_NOT_NULL(result);
  if (count > 0) CHECK_NOT_NULL(values);
  const float sum = static_cast<float>(scale * sum_double<false>(count, values));
  *result = accumulate ? *result + sum : sum;
  return MANTOU_OK;
}
