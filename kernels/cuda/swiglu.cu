// SiLU(x) = x sigmoid(x) and SwiGLU = SiLU(gate) * up (Shazeer 2020). The backward passes recompute the sigmoid, which
// is cheaper than keeping it.
#include "context.h"

using namespace mantou;

namespace {

template <typename T>
DEVICE float sigmoid(float x) {
  return sizeof(T) == 4 ? 1.0f / (1.0f + expf(-x)) : __fdividef(1.0f, 1.0f + __expf(-x));
}

// d/dx x s(x) = s + x s (1 - s), with s = sigmoid(x).
DEVICE float silu_derivative(float x, float s) { return s + x * s * (1.0f - s); }

template <typename T>
struct SiluForward {
  const T* input;
  T* output;

  template <int N>
  DEVICE void at(int64_t i) const {
    float x[N];
    load(x, input + i);
#pragma unroll
    for (int k = 0; k < N; k++) x[k] *= sigmoid<T>(x[k]);
    store(output + i, x);
  }
};

template <typename T>
struct SiluBackward {
  const T *doutput, *input;
  T* dinput;

  template <int N>
  DEVICE void at(int64_t i) const {
    float d[N], x[N];
    load(d, doutput + i);
    load(x, input + i);
#pragma unroll
    for (int k = 0; k < N; k++) d[k] *= silu_derivative(x[k], sigmoid<T>(x[k]));
    store(dinput + i, d);
  }
};

// i counts elements of the output [rows, dim]; a pack never crosses the end of a row.
template <typename T>
struct SwigluForward {
  int64_t dim;
  const T* gate_up;
  T* output;

  template <int N>
  DEVICE void at(int64_t i) const {
    const T* const gate = gate_up + i + row_and_column(i / N, dim / N).row * dim;
    float x[N], up[N];
    load(x, gate);
    load(up, gate + dim);
#pragma unroll
    for (int k = 0; k < N; k++) x[k] = x[k] * sigmoid<T>(x[k]) * up[k];
    store(output + i, x);
  }
};

template <typename T>
struct SwigluBackward {
  int64_t dim;
  const T *doutput, *gate_up;
  T* dgate_up;

  template <int N>
  DEVICE void at(int64_t i) const {
    const int64_t gate = i + row_and_column(i / N, dim / N).row * dim;
    float d[N], x[N], up[N], dgate[N], dup[N];
    load(d, doutput + i);
    load(x, gate_up + gate);
    load(up, gate_up + gate + dim);
#pragma unroll
    for (int k = 0; k < N; k++) {
      const float s = sigmoid<T>(x[k]);
      dgate[k] = d[k] * up[k] * silu_derivative(x[k], s);
      dup[k] = d[k] * (x[k] * s);
    }
    store(dgate_up + gate, dgate);
    store(dgate_up + gate + dim, dup);
  }
};

}  // namespace

// ---- SiLU --------------------------------------------------------------------------------------------------------

int32_t mantou_silu_forward(mantou_context* context, int32_t dtype, int64_t count, const void* input, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(input, output);
  const char* const name = __func__;
  const bool vectors = is_aligned(input) && is_aligned(output);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    return for_elements<LANES<T>>(context, name, count, vectors,
                                  SiluForward<T>{static_cast<const T*>(input), static_cast<T*>(output)});
  });
}

int32_t mantou_silu_backward(mantou_context* context, int32_t dtype, int64_t count, const void* doutput,
                             const void* input, void* dinput) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(count);
  if (count == 0) return MANTOU_OK;
  CHECK_NOT_NULL(doutput, input, dinput);
  const char* const name = __func__;
  const bool vectors = is_aligned(doutput) && is_aligned(input) && is_aligned(dinput);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    return for_elements<LANES<T>>(
        context, name, count, vectors,
        SiluBackward<T>{static_cast<const T*>(doutput), static_cast<const T*>(input), static_cast<T*>(dinput)});
  });
}

// ---- SwiGLU ------------------------------------------------------------------------------------------------------

int32_t mantou_swiglu_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, const void* gate_up,
                              void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(gate_up, output);
  const char* const name = __func__;
  const bool vectors = in_vectors(dtype, dim, gate_up, output);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    return for_elements<LANES<T>>(context, name, rows * dim, vectors,
                                  SwigluForward<T>{dim, static_cast<const T*>(gate_up), static_cast<T*>(output)});
  });
}

int32_t mantou_swiglu_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, const void* doutput,
                               const void* gate_up, void* dgate_up) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(doutput, gate_up, dgate_up);
  const char* const name = __func__;
  const bool vectors = in_vectors(dtype, dim, doutput, gate_up, dgate_up);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    return for_elements<LANES<T>>(context, name, rows * dim, vectors,
                                  SwigluBackward<T>{dim, static_cast<const T*>(doutput), static_cast<const T*>(gate_up),
                                                    static_cast<T*>(dgate_up)});
  });
}
