// Softmax over the middle axis of [outer, dim, inner], with each row's largest value taken off first.
#include <cmath>

#include "context.h"
#include "vector.h"

using namespace mantou;

// inner = 1: the row lies in one piece.
template <typename T>
static void softmax_row(int64_t dim, const T* input, T* output) {
  Vector largest = splat(-INFINITY);
  for_vectors(dim, [&](int64_t i, auto lanes) { largest = maximum(load(input + i, lanes, -INFINITY), largest); });
  const float most = horizontal_max(largest);
  Vector sums{};
  for_vectors(dim, [&](int64_t i, auto lanes) {
    const Vector e = exp(load(input + i, lanes, -INFINITY) - most);
    store(output + i, e, lanes);
    sums += e;
  });
  const float factor = 1.0f / horizontal_sum(sums);
  for_vectors(dim, [=](int64_t i, auto lanes) { store(output + i, load(output + i, lanes) * factor, lanes); });
}

// A vector of neighbouring columns; their elements are `stride` apart.
template <typename T, typename Lanes>
static void softmax_columns(int64_t dim, int64_t stride, const T* input, T* output, Lanes lanes) {
  Vector largest = splat(-INFINITY);
  for (int64_t k = 0; k < dim; k++) largest = maximum(load(input + k * stride, lanes), largest);
  Vector sum{};
  for (int64_t k = 0; k < dim; k++) {
    const Vector e = exp(load(input + k * stride, lanes) - largest);
    store(output + k * stride, e, lanes);
    sum += e;
  }
  const Vector factor = 1.0f / sum;
  for (int64_t k = 0; k < dim; k++) store(output + k * stride, load(output + k * stride, lanes) * factor, lanes);
}

int32_t mantou_softmax(mantou_context* context, int32_t dtype, int64_t outer, int64_t dim, int64_t inner,
                       const void* input, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(outer, dim, inner);
  if (outer == 0 || dim == 0 || inner == 0) return MANTOU_OK;
  CHECK_NOT_NULL(input, output);
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const T* from = static_cast<const T*>(input);
    T* to = static_cast<T*>(output);
    if (inner == 1) {
      parallel_for(context, outer, grain_rows(dim), [=](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; row++) softmax_row(dim, from + row * dim, to + row * dim);
      });
      return;
    }
    const int64_t groups = (inner + LANES - 1) / LANES;
    parallel_for(context, outer * groups, grain_rows(dim * LANES), [=](int64_t begin, int64_t end, int) {
      for (int64_t group = begin; group < end; group++) {
        const int64_t column = group % groups * LANES, at = group / groups * dim * inner + column;
        if (column + LANES <= inner) softmax_columns(dim, inner, from + at, to + at, Whole{});
        else softmax_columns(dim, inner, from + at, to + at, Part{inner - column});
      }
    });
  });
  return MANTOU_OK;
}
