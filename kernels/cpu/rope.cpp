// Rotary position embedding as an operation of its own; attention rotates q and k as it loads them.
#include "rope.h"

#include "context.h"

using namespace mantou;

int32_t mantou_rope(mantou_context* context, int32_t dtype, int64_t rows, int64_t sequence_length, int64_t heads,
                    int64_t head_dim, const float* rope, const int32_t* positions, const void* input,
                    int64_t input_stride, void* output, int64_t output_stride, int32_t inverse) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, heads, head_dim);
  if (rows == 0 || heads == 0 || head_dim == 0) return MANTOU_OK;
  CHECK(head_dim % 2 == 0, "%s: head_dim must be even, got %lld", __func__, static_cast<long long>(head_dim));
  CHECK(positions || sequence_length > 0, "%s: sequence_length must be positive where positions is null, got %lld",
        __func__, static_cast<long long>(sequence_length));
  CHECK_NOT_NULL(rope, input, output);
  const int64_t width = heads * head_dim;
  CHECK_AT_LEAST(input_stride, width);
  CHECK_AT_LEAST(output_stride, width);
  const int64_t grain = larger(1, (int64_t{1} << 14) / (heads * head_dim));
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const T* from = static_cast<const T*>(input);
    T* to = static_cast<T*>(output);
    parallel_for(context, rows, grain, [=](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        const int64_t position = positions ? positions[row] : row % sequence_length;
        for (int64_t head = 0; head < heads; head++)
          rotate_row(head_dim, rope + position * head_dim, inverse != 0, from + row * input_stride + head * head_dim,
                     to + row * output_stride + head * head_dim);
      }
    });
  });
  return MANTOU_OK;
}
