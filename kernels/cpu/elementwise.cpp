// Conversions, sums and scaling of plain arrays. They read and write each byte once and do next to no arithmetic.
#include <cstring>

#include "context.h"
#include "vector.h"

using namespace mantou;

// ---- cast --------------------------------------------------------------------------------------------------------

// A bfloat16 is the upper half of a float32.
static uint16_t to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  const uint32_t rounded = bits + 0x7fff + (bits >> 16 & 1);  // to nearest, ties to even
  return static_cast<uint16_t>((is_nan ? bits | 0x400000 : rounded) >> 16);
}

static float from_bfloat16(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

static bool is_dtype(int32_t dtype) { return dtype == MANTOU_FLOAT32 || dtype == MANTOU_BFLOAT16; }

int32_t mantou_cast(mantou_context* context, int64_t count, int32_t input_dtype, const void* input,
                    int32_t output_dtype, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(count);
  CHECK(is_dtype(input_dtype), "%s: unknown input_dtype %d", __func__, input_dtype);
  CHECK(is_dtype(output_dtype), "%s: unknown output_dtype %d", __func__, output_dtype);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(input);
  CHECK_NOT_NULL(output);
  if (input_dtype == output_dtype)
    return mantou_copy(context, output, input, count * (input_dtype == MANTOU_FLOAT32 ? 4 : 2));
  parallel_elements(context, count, [=](int64_t begin, int64_t end) {
    if (input_dtype == MANTOU_FLOAT32) {
      const float* from = static_cast<const float*>(input);
      uint16_t* to = static_cast<uint16_t*>(output);
      for (int64_t i = begin; i < end; i++) to[i] = to_bfloat16(from[i]);
    } else {
      const uint16_t* from = static_cast<const uint16_t*>(input);
      float* to = static_cast<float*>(output);
      for (int64_t i = begin; i < end; i++) to[i] = from_bfloat16(from[i]);
    }
  });
  return MANTOU_OK;
}

// ---- add, scale, sum ---------------------------------------------------------------------------------------------

int32_t mantou_add(mantou_context* context, int32_t dtype, int64_t count, const void* a, const void* b,
                   void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(a);
  CHECK_NOT_NULL(b);
  CHECK_NOT_NULL(output);
  const float* x = static_cast<const float*>(a);
  const float* y = static_cast<const float*>(b);
  float* sum = static_cast<float*>(output);
  parallel_elements(context, count, [=](int64_t begin, int64_t end) {
    for_vectors(end - begin, [=](int64_t i, auto lanes) {
      store(sum + begin + i, load(x + begin + i, lanes) + load(y + begin + i, lanes), lanes);
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
