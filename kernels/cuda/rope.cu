// Rotary position embedding (Su et al. 2021, "RoFormer", section 3.2) as an operation of its own; attention rotates q
// and k as it loads them. The pair (2i, 2i + 1) is turned by the angle whose cos and sin are table[2i] and table[2i +
// 1].
#include "context.h"

using namespace mantou;

namespace {

// N elements, M in one access.
template <int M, int N, typename T>
DEVICE void load_in_parts(float (&values)[N], const T* from) {
#pragma unroll
  for (int part = 0; part < N; part += M) {
    float some[M];
    load(some, from + part);
#pragma unroll
    for (int k = 0; k < M; k++) values[part + k] = some[k];
  }
}

// A thread turns N neighbouring elements of one head; a pair where they cannot be read as vectors.
template <typename T, int N, bool vectors>
GLOBAL void LAUNCH_BOUNDS(ELEMENT_THREADS)
    rotate(int64_t rows, int64_t sequence_length, int64_t width, int64_t head_dim, const float* rope,
           const int32_t* positions, const T* input, int64_t input_stride, T* output, int64_t output_stride,
           float direction) {
  const RowColumn place = row_and_column(thread_index(), width / N);
  if (place.row >= rows) return;
  const int64_t column = place.column * N;
  const int64_t position = positions ? positions[place.row] : row_and_column(place.row, sequence_length).column;
  const float* const angles = rope + position * head_dim + row_and_column(column, head_dim).column;
  float x[N], angle[N], y[N];
  load_in_parts<vectors ? N : 1>(x, input + place.row * input_stride + column);
  load_in_parts<vectors ? 4 : 1>(angle, angles);
#pragma unroll
  for (int k = 0; k < N; k += 2) {
    const float sine = angle[k + 1] * direction;
    y[k] = x[k] * angle[k] - x[k + 1] * sine;
    y[k + 1] = x[k + 1] * angle[k] + x[k] * sine;
  }
  T* const to = output + place.row * output_stride + column;
  if constexpr (vectors) {
    store(to, y);
  } else {
    to[0] = from_float<T>(y[0]);
    to[1] = from_float<T>(y[1]);
  }
}

}  // namespace

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
  const char* const name = __func__;
  const bool vectors = in_vectors(dtype, head_dim, rope, input, output) && input_stride * bytes_of(dtype) % 16 == 0 &&
                       output_stride * bytes_of(dtype) % 16 == 0;
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    const auto run = [=](auto n, auto kernel) {
      return launch(name, kernel, grid_of(divide_up(rows * (width / n), ELEMENT_THREADS)), ELEMENT_THREADS, 0,
                    context->stream, rows, sequence_length, width, head_dim, rope, positions,
                    static_cast<const T*>(input), input_stride, static_cast<T*>(output), output_stride,
                    inverse ? -1.0f : 1.0f);
    };
    if (vectors) return run(LANES<T>, rotate<T, LANES<T>, true>);
    return run(2, rotate<T, 2, false>);
  });
}
