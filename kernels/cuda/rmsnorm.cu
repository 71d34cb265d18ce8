// RMSNorm (Zhang & Sennrich 2019), y = x / sqrt(mean(x^2) + eps) * gain, with the residual addition in front of it.
//
// A team of threads takes a row: a warp where the row is short, so that sums need no barrier, else a block. A row's
// first SPAN packs of N elements per thread stay in registers between the passes; what a longer row has beyond them is
// read again.
//
// Backward, with r = 1 / sqrt(mean(x^2) + eps):
//   dx    = r (dy gain - x r^2 mean(dy gain x))
//   dgain = sum over rows of dy x r
// The rows are cut into parts by their number alone. A team walks over the rows of one part and sums dgain, each thread
// for its own columns; a second kernel adds up the parts in order.
#include "context.h"

using namespace mantou;

namespace {

constexpr int WARPS = 4;    // teams of one warp in a block
constexpr int BLOCK = 256;  // threads of a team that is a block

// A warp is given no row that is longer than what its threads keep.
struct WarpTeam {
  static constexpr int SIZE = WARP, THREADS = WARPS * WARP;
  static constexpr bool KEEPS_ALL = true;
  static int64_t blocks(int64_t teams) { return divide_up(teams, WARPS); }
  static DEVICE int64_t index() { return int64_t{blockIdx.x} * WARPS + warp_of_thread(); }
  static DEVICE int rank() { return lane_of_thread(); }
  static DEVICE float sum(float x, float*) { return warp_sum(x); }
};

struct BlockTeam {
  static constexpr int SIZE = BLOCK, THREADS = BLOCK;
  static constexpr bool KEEPS_ALL = false;
  static int64_t blocks(int64_t teams) { return teams; }
  static DEVICE int64_t index() { return blockIdx.x; }
  static DEVICE int rank() { return static_cast<int>(threadIdx.x); }
  static DEVICE float sum(float x, float* scratch) { return block_sum<BLOCK>(x, scratch); }
};

// Where the thread's pack number j begins in its row.
template <typename Team, int N>
DEVICE int place_of(int j) {
  return (j * Team::SIZE + Team::rank()) * N;
}

// Where what the thread does not keep of its row begins.
template <typename Team, int N, int SPAN>
DEVICE int first_read_again(int dim) {
  return Team::KEEPS_ALL ? dim : place_of<Team, N>(SPAN);
}

// ---- forward -----------------------------------------------------------------------------------------------------

template <typename T, int N, int SPAN, typename Team>
GLOBAL void LAUNCH_BOUNDS(Team::THREADS) forward(int64_t rows, int dim, float eps, const T* input, const T* residual,
                                                 const T* gain, T* sum, T* output, float* rstd) {
  SHARED_ARRAY(float, scratch, [BLOCK / WARP]);
  const int64_t row = Team::index();
  if (row >= rows) return;
  const T* const x = input + row * dim;
  T* const y = output + row * dim;
  // Where x is neither given nor wanted, y keeps it between the passes over a long row.
  T* const total = sum ? sum + row * dim : y;

  // x as it is stored: rounded.
  const auto load_x = [&](float (&values)[N], int i) {
    load(values, x + i);
    if (!residual) return;
    float more[N];
    load(more, residual + row * dim + i);
#pragma unroll
    for (int k = 0; k < N; k++) values[k] = to_float(from_float<T>(values[k] + more[k]));
  };

  float kept[SPAN][N];
  float squares = 0.0f;
#pragma unroll
  for (int j = 0; j < SPAN; j++)
    if (place_of<Team, N>(j) < dim) load_x(kept[j], place_of<Team, N>(j));
#pragma unroll
  for (int j = 0; j < SPAN; j++) {
    if (place_of<Team, N>(j) >= dim) continue;
    if (sum) store(total + place_of<Team, N>(j), kept[j]);
#pragma unroll
    for (int k = 0; k < N; k++) squares += kept[j][k] * kept[j][k];
  }
  const bool keeps = sum || residual;
  for (int i = first_read_again<Team, N, SPAN>(dim); i < dim; i += Team::SIZE * N) {
    float values[N];
    load_x(values, i);
    if (keeps) store(total + i, values);
#pragma unroll
    for (int k = 0; k < N; k++) squares += values[k] * values[k];
  }
  const float scale = rsqrtf(Team::sum(squares, scratch) / static_cast<float>(dim) + eps);
  if (Team::rank() == 0) rstd[row] = scale;

  const auto write_y = [&](const float (&values)[N], int i) {
    float g[N], out[N];
    load(g, gain + i);
#pragma unroll
    for (int k = 0; k < N; k++) out[k] = values[k] * scale * g[k];
    store(y + i, out);
  };
#pragma unroll
  for (int j = 0; j < SPAN; j++)
    if (place_of<Team, N>(j) < dim) write_y(kept[j], place_of<Team, N>(j));
  for (int i = first_read_again<Team, N, SPAN>(dim); i < dim; i += Team::SIZE * N) {
    float values[N];
    load(values, (keeps ? total : x) + i);
    write_y(values, i);
  }
}

// Calls run(N, SPAN, team) with the layout for rows of `dim` elements.
template <typename T, typename Run>
int32_t with_layout(bool vectors, int64_t dim, const Run& run) {
  using std::integral_constant;
  constexpr int N = LANES<T>;
  if (!vectors) {
    if (dim <= 8 * WARP) return run(integral_constant<int, 1>(), integral_constant<int, 8>(), WarpTeam());
    return run(integral_constant<int, 1>(), integral_constant<int, 8>(), BlockTeam());
  }
  if (dim <= 2 * WARP * N) return run(integral_constant<int, N>(), integral_constant<int, 2>(), WarpTeam());
  if (dim <= 4 * WARP * N) return run(integral_constant<int, N>(), integral_constant<int, 4>(), WarpTeam());
  if (dim <= 32 * WARP) return run(integral_constant<int, N>(), integral_constant<int, 32 / N>(), WarpTeam());
  return run(integral_constant<int, N>(), integral_constant<int, 4>(), BlockTeam());
}

}  // namespace

int32_t mantou_rmsnorm_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, float eps,
                               const void* input, const void* residual, const void* gain, void* sum, void* output,
                               float* rstd) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, dim);
  CHECK(dim < 1 << 30, "%s: dim is %lld; it must be below 2^30", __func__, static_cast<long long>(dim));
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(input, gain, output, rstd);
  const char* const name = __func__;
  const bool vectors = in_vectors(dtype, dim, input, residual, gain, sum, output);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    return with_layout<T>(vectors, dim, [=](auto n, auto span, auto team) {
      using Team = decltype(team);
      return launch(name, forward<T, n, span, Team>, grid_of(Team::blocks(rows)), Team::THREADS, 0, context->stream,
                    rows, static_cast<int>(dim), eps, static_cast<const T*>(input), static_cast<const T*>(residual),
                    static_cast<const T*>(gain), static_cast<T*>(sum), static_cast<T*>(output), rstd);
    });
  });
}

// ---- backward ----------------------------------------------------------------------------------------------------

namespace {

// Blocks of warps that have to fit a multiprocessor: as many as have the registers.
template <typename T, int SPAN, typename Team>
constexpr int AT_ONCE = !Team::KEEPS_ALL || sizeof(T) > 2 ? 1 : SPAN > 2 ? 3 : 4;

// In how many parts rows are cut at most: as many as an H100 with its 132 multiprocessors runs at once in bfloat16, where
// rows of up to 512 are two packs a thread.
int64_t parts_of(int64_t rows, int64_t dim) {
  const int64_t parts = rows / 8, most = 132 * WARPS * (dim <= 512 ? 4 : 3);
  return parts < 1 ? 1 : smaller(parts, most);
}

// `partial` float32 [parts, dim]. A row is kept as it was loaded, and what is computed from it is computed twice: the
// registers are better used for more rows on their way.
template <typename T, int N, int SPAN, typename Team>
GLOBAL void LAUNCH_BOUNDS(Team::THREADS, (AT_ONCE<T, SPAN, Team>))
    backward(int64_t rows_each, int64_t rows_over, int dim, int64_t parts, const T* doutput, const T* x, const T* gain,
             const float* rstd, const T* dresidual, T* dinput, float* partial) {
  using Packs = Pack<T, N>;
  SHARED_ARRAY(float, scratch, [2][BLOCK / WARP]);
  const int64_t part = Team::index();
  if (part >= parts) return;
  float* const own = partial + part * dim;
  // The first `rows_over` parts have a row more than the others.
  const int64_t begin = part * rows_each + (part < rows_over ? part : rows_over);
  const int64_t end = begin + rows_each + (part < rows_over ? 1 : 0);
  float dgain[SPAN][N] = {};

  for (int64_t row = begin; row < end; row++) {
    const int64_t at = row * dim;
    const float scale = rstd[row];
    Packs dys[SPAN], values[SPAN], residuals[SPAN];
#pragma unroll
    for (int j = 0; j < SPAN; j++) {
      const int i = place_of<Team, N>(j);
      if (i >= dim) continue;
      dys[j] = pack_at<N>(doutput + at + i);
      values[j] = pack_at<N>(x + at + i);
      if (dresidual) residuals[j] = pack_at<N>(dresidual + at + i);
    }
    float dot = 0.0f;
#pragma unroll
    for (int j = 0; j < SPAN; j++) {
      const int i = place_of<Team, N>(j);
      if (i >= dim) continue;
      float g[N];
      load(g, gain + i);
#pragma unroll
      for (int k = 0; k < N; k++) {
        const float dy = to_float(dys[j].values[k]), v = to_float(values[j].values[k]);
        dgain[j][k] += dy * v * scale;
        dot += dy * g[k] * v;
      }
      forget(dys[j]);
      forget(values[j]);
    }
#pragma unroll 1
    for (int i = first_read_again<Team, N, SPAN>(dim); i < dim; i += Team::SIZE * N) {
      float dy[N], v[N], g[N], sums[N] = {};
      load(dy, doutput + at + i);
      load(v, x + at + i);
      load(g, gain + i);
      if (row > begin) load(sums, own + i);
#pragma unroll
      for (int k = 0; k < N; k++) {
        sums[k] += dy[k] * v[k] * scale;
        dot += dy[k] * g[k] * v[k];
      }
      store(own + i, sums);
    }
    // Two places in turn: a thread may still read one while the next row's sum begins.
    const float slope = scale * scale * scale * (Team::sum(dot, scratch[row & 1]) / static_cast<float>(dim));

    const auto write_dx = [&](const Packs& dy, const Packs& v, const Packs& residual, int i) {
      float g[N], dx[N];
      load(g, gain + i);
#pragma unroll
      for (int k = 0; k < N; k++) {
        dx[k] = to_float(dy.values[k]) * g[k] * scale - to_float(v.values[k]) * slope;
        if (dresidual) dx[k] += to_float(residual.values[k]);
      }
      store(dinput + at + i, dx);
    };
#pragma unroll
    for (int j = 0; j < SPAN; j++)
      if (place_of<Team, N>(j) < dim) write_dx(dys[j], values[j], residuals[j], place_of<Team, N>(j));
#pragma unroll 1
    for (int i = first_read_again<Team, N, SPAN>(dim); i < dim; i += Team::SIZE * N) {
      // Copies: through references, elements would be loaded one by one.
      const Packs dy = pack_at<N>(doutput + at + i), v = pack_at<N>(x + at + i);
      const Packs residual = dresidual ? pack_at<N>(dresidual + at + i) : Packs{};
      write_dx(dy, v, residual, i);
    }
  }
#pragma unroll
  for (int j = 0; j < SPAN; j++)
    if (place_of<Team, N>(j) < dim) store(own + place_of<Team, N>(j), dgain[j]);
}

// A block adds up ACROSS columns, 32 bytes of every part: few, so that many multiprocessors share what is soon done. Its
// DEEP groups of threads take every DEEP-th part each, and their sums are added in order.
constexpr int ACROSS = 8, DEEP = 128;

GLOBAL void LAUNCH_BOUNDS(ACROSS* DEEP) add_parts(int64_t parts, int64_t dim, const float* partial, float* dgain) {
  SHARED_ARRAY(float, sums, [ACROSS][DEEP + 4]);
  const int thread = static_cast<int>(threadIdx.x), across = thread % ACROSS, deep = thread / ACROSS;
  const int64_t column = int64_t{blockIdx.x} * ACROSS + across;
  float sum = 0.0f;
  if (column < dim) {
#pragma unroll 8
    for (int64_t part = deep; part < parts; part += DEEP) sum += partial[part * dim + column];
  }
  sums[across][deep] = sum;
  __syncthreads();
  const int64_t own = int64_t{blockIdx.x} * ACROSS + warp_of_thread();
  if (warp_of_thread() >= ACROSS || own >= dim) return;
  float total = 0.0f;
#pragma unroll
  for (int i = 0; i < DEEP; i += WARP) total += sums[warp_of_thread()][i + lane_of_thread()];
  total = warp_sum(total);
  if (lane_of_thread() == 0) dgain[own] += total;
}

}  // namespace

int64_t mantou_rmsnorm_backward_workspace(int64_t rows, int64_t dim) {
  return parts_of(rows, dim) * dim * static_cast<int64_t>(sizeof(float));
}

int32_t mantou_rmsnorm_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, const void* doutput,
                                const void* x, const void* gain, const float* rstd, const void* dresidual, void* dinput,
                                float* dgain, void* workspace) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, dim);
  CHECK(dim < 1 << 30, "%s: dim is %lld; it must be below 2^30", __func__, static_cast<long long>(dim));
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(doutput, x, gain, rstd, dinput, dgain, workspace);
  const char* const name = __func__;
  const bool vectors = in_vectors(dtype, dim, doutput, x, gain, dresidual, dinput, workspace);
  const int64_t parts = parts_of(rows, dim);
  float* const partial = static_cast<float*>(workspace);
  RETURN_IF_FAILED(with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    return with_layout<T>(vectors, dim, [=](auto n, auto span, auto team) {
      using Team = decltype(team);
      return launch(name, backward<T, n, span, Team>, grid_of(Team::blocks(parts)), Team::THREADS, 0, context->stream,
                    rows / parts, rows % parts, static_cast<int>(dim), parts, static_cast<const T*>(doutput),
                    static_cast<const T*>(x), static_cast<const T*>(gain), rstd, static_cast<const T*>(dresidual),
                    static_cast<T*>(dinput), partial);
    });
  }));
  return launch(name, add_parts, grid_of(divide_up(dim, ACROSS)), ACROSS * DEEP, 0, context->stream, parts, dim, partial,
                dgain);
}
