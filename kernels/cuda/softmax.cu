// Softmax over the middle axis of [outer, dim, inner], with each row's largest value taken off first.
#include "context.h"

using namespace mantou;

namespace {

constexpr int THREADS = 256;

// inner = 1: a block takes a row, in packs of N; output may be input.
template <typename T, int N>
GLOBAL void LAUNCH_BOUNDS(THREADS) softmax_rows(int64_t dim, const T* input, T* output) {
  SHARED_ARRAY(float, scratch, [2][THREADS / WARP]);
  const T* const from = input + int64_t{blockIdx.x} * dim;
  T* const to = output + int64_t{blockIdx.x} * dim;
  const int64_t first = int64_t{threadIdx.x} * N;
  float most = -INFINITY;
  for (int64_t i = first; i < dim; i += THREADS * N) {
    float x[N];
    load(x, from + i);
#pragma unroll
    for (int k = 0; k < N; k++) most = fmaxf(most, x[k]);
  }
  most = block_max<THREADS>(most, scratch[0]);
  float sum = 0.0f;
  for (int64_t i = first; i < dim; i += THREADS * N) {
    float x[N];
    load(x, from + i);
#pragma unroll
    for (int k = 0; k < N; k++) sum += exponential<T>(x[k] - most);
  }
  const float factor = 1.0f / block_sum<THREADS>(sum, scratch[1]);
  for (int64_t i = first; i < dim; i += THREADS * N) {
    float x[N];
    load(x, from + i);
#pragma unroll
    for (int k = 0; k < N; k++) x[k] = exponential<T>(x[k] - most) * factor;
    store(to + i, x);
  }
}

// A thread takes a column; neighbouring threads read neighbouring ones.
template <typename T>
GLOBAL void LAUNCH_BOUNDS(THREADS)
    softmax_columns(int64_t columns, int64_t dim, int64_t inner, const T* input, T* output) {
  if (thread_index() >= columns) return;
  const RowColumn place = row_and_column(thread_index(), inner);
  const int64_t at = place.row * dim * inner + place.column;
  float most = -INFINITY;
  for (int64_t k = 0; k < dim; k++) most = fmaxf(most, to_float(input[at + k * inner]));
  float sum = 0.0f;
  for (int64_t k = 0; k < dim; k++) sum += exponential<T>(to_float(input[at + k * inner]) - most);
  const float factor = 1.0f / sum;
  for (int64_t k = 0; k < dim; k++)
    output[at + k * inner] = from_float<T>(exponential<T>(to_float(input[at + k * inner]) - most) * factor);
}

}  // namespace

int32_t mantou_softmax(mantou_context* context, int32_t dtype, int64_t outer, int64_t dim, int64_t inner,
                       const void* input, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(outer, dim, inner);
  if (outer == 0 || dim == 0 || inner == 0) return MANTOU_OK;
  CHECK_NOT_NULL(input, output);
  const char* const name = __func__;
  const bool vectors = in_vectors(dtype, dim, input, output);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    const T* const from = static_cast<const T*>(input);
    T* const to = static_cast<T*>(output);
    if (inner > 1)
      return launch(name, softmax_columns<T>, grid_of(divide_up(outer * inner, THREADS)), THREADS, 0, context->stream,
                    outer * inner, dim, inner, from, to);
    const auto kernel = vectors ? softmax_rows<T, LANES<T>> : softmax_rows<T, 1>;
    return launch(name, kernel, grid_of(outer), THREADS, 0, context->stream, dim, from, to);
  });
}
