// SiLU(x) = x sigmoid(x) and SwiGLU = SiLU(gate) * up (Shazeer 2020). The backward passes recompute the sigmoid, which
// is cheaper than keeping it.
#include "context.h"
#include "vector.h"

using namespace mantou;

// d/dx x s(x) = s + x s (1 - s), with s = sigmoid(x).
static inline Vector silu_derivative(Vector x, Vector s) { return s + x * s * (1.0f - s); }
static inline Two silu_derivative(Two x, Two s) { return {silu_derivative(x.even, s.even), silu_derivative(x.odd, s.odd)}; }

// ---- SiLU --------------------------------------------------------------------------------------------------------

int32_t mantou_silu_forward(mantou_context* context, int32_t dtype, int64_t count, const void* input, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(input, output);
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const T* from = static_cast<const T*>(input);
    T* to = static_cast<T*>(output);
    parallel_elements(context, count, [=](int64_t begin, int64_t end) {
      for_vectors(end - begin, [=](int64_t i, auto lanes) {
        const Vector x = load(from + begin + i, lanes);
        store(to + begin + i, x * sigmoid(x), lanes);
      });
    });
  });
  return MANTOU_OK;
}

int32_t mantou_silu_backward(mantou_context* context, int32_t dtype, int64_t count, const void* doutput,
                             const void* input, void* dinput) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(doutput, input, dinput);
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const T* gradient = static_cast<const T*>(doutput);
    const T* from = static_cast<const T*>(input);
    T* to = static_cast<T*>(dinput);
    parallel_elements(context, count, [=](int64_t begin, int64_t end) {
      for_vectors(end - begin, [=](int64_t i, auto lanes) {
        const Vector x = load(from + begin + i, lanes);
        store(to + begin + i, load(gradient + begin + i, lanes) * silu_derivative(x, sigmoid(x)), lanes);
      });
    });
  });
  return MANTOU_OK;
}

// ---- SwiGLU ------------------------------------------------------------------------------------------------------

// The bodies of these loops are always inlined: a call would load their constants for each vector.
template <typename T>
static void swiglu_forward_row(int64_t dim, const T* gate, const T* up, T* output) {
  for_two_vectors(dim, [=](int64_t i, auto lanes) __attribute__((always_inline)) {
    const auto x = load(gate + i, lanes);
    store(output + i, x * sigmoid(x) * load(up + i, lanes), lanes);
  });
}

template <typename T>
static void swiglu_backward_row(int64_t dim, const T* doutput, const T* gate, const T* up, T* dgate, T* dup) {
  for_two_vectors(dim, [=](int64_t i, auto lanes) __attribute__((always_inline)) {
    const auto x = load(gate + i, lanes), dy = load(doutput + i, lanes), y = load(up + i, lanes);
    const auto s = sigmoid(x);
    store(dgate + i, dy * y * silu_derivative(x, s), lanes);
    store(dup + i, dy * (x * s), lanes);
  });
}

int32_t mantou_swiglu_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, const void* gate_up,
                              void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(gate_up, output);
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const T* from = static_cast<const T*>(gate_up);
    T* to = static_cast<T*>(output);
    parallel_for(context, rows, grain_rows(dim), [=](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        const T* gate = from + row * 2 * dim;
        swiglu_forward_row(dim, gate, gate + dim, to + row * dim);
      }
    });
  });
  return MANTOU_OK;
}

int32_t mantou_swiglu_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, const void* doutput,
                               const void* gate_up, void* dgate_up) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(doutput, gate_up, dgate_up);
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const T* gradient = static_cast<const T*>(doutput);
    const T* from = static_cast<const T*>(gate_up);
    T* to = static_cast<T*>(dgate_up);
    parallel_for(context, rows, grain_rows(dim), [=](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        const T* gate = from + row * 2 * dim;
        T* dgate = to + row * 2 * dim;
        swiglu_backward_row(dim, gradient + row * dim, gate, gate + dim, dgate, dgate + dim);
      }
    });
  });
  return MANTOU_OK;
}
