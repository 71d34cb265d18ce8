// RMSNorm (Zhang & Sennrich 2019), y = x / sqrt(mean(x^2) + eps) * gain, with the residual addition in front of it.
//
// Backward, with r = 1 / sqrt(mean(x^2) + eps):
//   dx    = r (dy gain - x r^2 mean(dy gain x))
//   dgain = sum over rows of dy x r
#include <cmath>

#include "context.h"
#include "vector.h"

using namespace mantou;

// ---- forward -----------------------------------------------------------------------------------------------------

// Returns rstd. `sum` may be null, and `residual` too. What is normalised is x as memory keeps it, which is what the
// backward pass will read.
template <typename T>
static float forward_row(int64_t dim, float eps, const T* input, const T* residual, const T* gain, T* sum, T* output) {
  Vector squares{};
  // Where x is neither given nor wanted, `output` keeps it between the passes.
  T* kept = sum ? sum : residual ? output : nullptr;
  for_vectors(dim, [&](int64_t i, auto lanes) {
    Vector x = load(input + i, lanes);
    if (residual) x += load(residual + i, lanes);
    if (kept) store(kept + i, x, lanes);
    x = rounded_to<T>(x);
    squares += x * x;
  });
  const float rstd = 1.0f / std::sqrt(horizontal_sum(squares) / static_cast<float>(dim) + eps);
  const T* x = kept ? kept : input;
  for_vectors(dim, [=](int64_t i, auto lanes) {
    store(output + i, load(x + i, lanes) * rstd * load(gain + i, lanes), lanes);
  });
  return rstd;
}

int32_t mantou_rmsnorm_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, float eps,
                               const void* input, const void* residual, const void* gain, void* sum, void* output,
                               float* rstd) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(input, gain, output, rstd);
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    parallel_for(context, rows, grain_rows(dim), [=](int64_t begin, int64_t end, int) {
      for (int64_t row = begin; row < end; row++) {
        const int64_t at = row * dim;
        rstd[row] = forward_row(dim, eps, static_cast<const T*>(input) + at,
                                residual ? static_cast<const T*>(residual) + at : nullptr,
                                static_cast<const T*>(gain), sum ? static_cast<T*>(sum) + at : nullptr,
                                static_cast<T*>(output) + at);
      }
    });
  });
  return MANTOU_OK;
}

// ---- backward ----------------------------------------------------------------------------------------------------

// The rows are cut into parts by their number alone. Each part adds up its own row of dgain; the parts are added in
// order.
static int64_t parts_of(int64_t rows) {
  const int64_t parts = rows / 16;
  return parts < 1 ? 1 : parts > 128 ? 128 : parts;
}

int64_t mantou_rmsnorm_backward_workspace(int64_t rows, int64_t dim) {
  return parts_of(rows) * dim * static_cast<int64_t>(sizeof(float));
}

// `dgain` gets this row's share added. `dresidual` may be null.
template <typename T>
static void backward_row(int64_t dim, const T* doutput, const T* x, const T* gain, float rstd, const T* dresidual,
                         T* dinput, float* dgain) {
  Vector dots{};
  for_vectors(dim, [&](int64_t i, auto lanes) {
    const Vector product = load(doutput + i, lanes) * load(x + i, lanes);
    dots += product * load(gain + i, lanes);
    store(dgain + i, load(dgain + i, lanes) + product * rstd, lanes);
  });
  const float slope = rstd * rstd * rstd * (horizontal_sum(dots) / static_cast<float>(dim));
  for_vectors(dim, [=](int64_t i, auto lanes) {
    Vector dx = load(doutput + i, lanes) * load(gain + i, lanes) * rstd - load(x + i, lanes) * slope;
    if (dresidual) dx += load(dresidual + i, lanes);
    store(dinput + i, dx, lanes);
  });
}

int32_t mantou_rmsnorm_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, const void* doutput,
                                const void* x, const void* gain, const float* rstd, const void* dresidual,
                                void* dinput, float* dgain, void* workspace) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(doutput, x, gain, rstd, dinput, dgain, workspace);
  const int64_t parts = parts_of(rows);
  float* partial = static_cast<float*>(workspace);
  const int64_t grain = grain_rows(dim * ((rows + parts - 1) / parts));
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    parallel_for(context, parts, grain, [=](int64_t first, int64_t last, int) {
      for (int64_t part = first; part < last; part++) {
        float* sums = partial + part * dim;
        for (int64_t i = 0; i < dim; i++) sums[i] = 0.0f;
        for (int64_t row = rows * part / parts; row < rows * (part + 1) / parts; row++) {
          const int64_t at = row * dim;
          backward_row(dim, static_cast<const T*>(doutput) + at, static_cast<const T*>(x) + at,
                       static_cast<const T*>(gain), rstd[row],
                       dresidual ? static_cast<const T*>(dresidual) + at : nullptr, static_cast<T*>(dinput) + at, sums);
        }
      }
    });
  });
  parallel_for(context, (dim + LANES - 1) / LANES, (grain_rows(parts) + LANES - 1) / LANES,
               [=](int64_t first, int64_t last, int) {
    const int64_t begin = first * LANES, end = last * LANES < dim ? last * LANES : dim;
    for_vectors(end - begin, [=](int64_t i, auto lanes) {
      Vector sum{};
      for (int64_t part = 0; part < parts; part++) sum += load(partial + part * dim + begin + i, lanes);
      store(dgain + begin + i, load(dgain + begin + i, lanes) + sum, lanes);
    });
  });
  return MANTOU_OK;
}
