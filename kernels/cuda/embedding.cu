// Rows of a table chosen by token, and the sum of gradients back into the table.
//
// Backward sorts the rows by token, without comparing any (a counting sort), and then every token's sum has one owner:
//   count    how often each token occurs in each chunk of CHUNK rows
//   arrange  a place for each token that occurs, and within it for each chunk, in order
//   place    writes the rows' numbers to their places, in order
//   add_up   sums the gradients of each token's rows
// Tokens take their places in any order, but a token's rows always stand in theirs: the sums have the same bits each
// time.
#include "context.h"

using namespace mantou;

// ---- forward -----------------------------------------------------------------------------------------------------

namespace {

template <typename T>
struct Gather {
  int64_t vocab_size, dim;
  const int32_t* tokens;
  const T* weight;
  T* output;
  Fault* fault;

  template <int N>
  DEVICE void at(int64_t i) const {
    const RowColumn place = row_and_column(i / N, dim / N);
    const int32_t token = tokens[place.row];
    if (token < 0 || token >= vocab_size) {
      if (place.column == 0) report_fault(fault, TOKEN_FORWARD, token, place.row, vocab_size);
      return;
    }
    using Same = Pack<T, N>;
    *reinterpret_cast<Same*>(output + i) = *reinterpret_cast<const Same*>(weight + token * dim + place.column * N);
  }
};

}  // namespace

int32_t mantou_embedding_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size, int64_t dim,
                                 const int32_t* tokens, const void* weight, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, vocab_size, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(tokens, weight, output);
  const char* const name = __func__;
  const bool vectors = in_vectors(dtype, dim, weight, output);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    const Gather<T> gather{vocab_size,    dim, tokens, static_cast<const T*>(weight), static_cast<T*>(output),
                           context->fault};
    return for_elements<LANES<T>>(context, name, rows * dim, vectors, gather);
  });
}

// ---- backward ----------------------------------------------------------------------------------------------------

namespace {

constexpr int64_t CHUNK = 1024;
constexpr int THREADS = 256;
constexpr int32_t FEW = 32;  // rows of a token that one warp adds up

// The workspace. `counts` [chunks, vocab_size] becomes the place where a chunk's next row of that token goes.
struct Sorting {
  int32_t* counts;
  int32_t* totals;    // [3]: rows placed, tokens with more than FEW rows, others that occur
  int32_t* frequent;  // [vocab_size]: which these are
  int32_t* rare;      // [vocab_size]
  int32_t* starts;    // [vocab_size]: where their rows begin
  int32_t* sizes;     // [vocab_size]
  int32_t* order;     // [rows]

  static int64_t counts_of(int64_t rows, int64_t vocab_size) { return divide_up(rows, CHUNK) * vocab_size; }
  static int64_t elements(int64_t rows, int64_t vocab_size) {
    return counts_of(rows, vocab_size) + 3 + 4 * vocab_size + rows;
  }
  Sorting(void* workspace, int64_t rows, int64_t vocab_size)
      : counts(static_cast<int32_t*>(workspace)),
        totals(counts + counts_of(rows, vocab_size)),
        frequent(totals + 3),
        rare(frequent + vocab_size),
        starts(rare + vocab_size),
        sizes(starts + vocab_size),
        order(sizes + vocab_size) {}
};

GLOBAL void LAUNCH_BOUNDS(THREADS)
    count(int64_t rows, int64_t vocab_size, const int32_t* tokens, Sorting sorting, Fault* fault) {
  const int64_t row = thread_index();
  if (row >= rows) return;
  const int32_t token = tokens[row];
  if (token < 0 || token >= vocab_size) {
    report_fault(fault, TOKEN_BACKWARD, token, row, vocab_size);
    return;
  }
  atomicAdd(&sorting.counts[row / CHUNK * vocab_size + token], 1);
}

GLOBAL void LAUNCH_BOUNDS(THREADS) arrange(int64_t chunks, int64_t vocab_size, Sorting sorting) {
  const int64_t token = thread_index();
  int32_t size = 0;
  if (token < vocab_size) {
#pragma unroll 16
    for (int64_t chunk = 0; chunk < chunks; chunk++) size += sorting.counts[chunk * vocab_size + token];
  }
  // A warp takes places for its tokens together.
  int32_t before = size;  // rows of this token and of those of the lanes below
#pragma unroll
  for (unsigned step = 1; step < WARP; step *= 2) {
    const int32_t lower = __shfl_up_sync(ALL_LANES, before, step);
    if (static_cast<unsigned>(lane_of_thread()) >= step) before += lower;
  }
  const unsigned are_frequent = __ballot_sync(ALL_LANES, size > FEW);
  const unsigned are_rare = __ballot_sync(ALL_LANES, size > 0) & ~are_frequent;
  int32_t first_place = 0, first_frequent = 0, first_rare = 0;
  if (lane_of_thread() == WARP - 1) {
    first_place = atomicAdd(&sorting.totals[0], before);
    first_frequent = atomicAdd(&sorting.totals[1], __popc(are_frequent));
    first_rare = atomicAdd(&sorting.totals[2], __popc(are_rare));
  }
  first_place = __shfl_sync(ALL_LANES, first_place, WARP - 1);
  first_frequent = __shfl_sync(ALL_LANES, first_frequent, WARP - 1);
  first_rare = __shfl_sync(ALL_LANES, first_rare, WARP - 1);
  if (size == 0) return;
  int32_t place = first_place + before - size;
  const unsigned lower_lanes = (1u << lane_of_thread()) - 1u;
  if (size > FEW) sorting.frequent[first_frequent + __popc(are_frequent & lower_lanes)] = static_cast<int32_t>(token);
  else sorting.rare[first_rare + __popc(are_rare & lower_lanes)] = static_cast<int32_t>(token);
  sorting.starts[token] = place;
  sorting.sizes[token] = size;
  // Many loads before the first store, which the next load might depend on for all that the compiler knows.
  constexpr int AT_ONCE = 16;
  for (int64_t first = 0; first < chunks; first += AT_ONCE) {
    int32_t own[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) own[i] = first + i < chunks ? sorting.counts[(first + i) * vocab_size + token] : 0;
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      if (first + i < chunks) sorting.counts[(first + i) * vocab_size + token] = place;
      place += own[i];
    }
  }
}

// A thread per row. It counts the rows of its token that come earlier in the chunk, of which this block and those before it
// have a part.
GLOBAL void LAUNCH_BOUNDS(THREADS) place(int64_t rows, int64_t vocab_size, const int32_t* tokens, Sorting sorting) {
  SHARED_ARRAY(int32_t, chunk, [CHUNK]);
  const int64_t row = thread_index(), begin = row / CHUNK * CHUNK;
  const int own = static_cast<int>(row - begin), before = own - static_cast<int>(threadIdx.x);
  for (int i = static_cast<int>(threadIdx.x); i < before; i += THREADS) chunk[i] = tokens[begin + i];
  const int32_t token = row < rows ? tokens[row] : -1;
  chunk[own] = token;
  const bool valid = token >= 0 && token < vocab_size;
  int32_t place = valid ? sorting.counts[row / CHUNK * vocab_size + token] : 0;
  __syncthreads();
  for (int i = 0; i < own / WARP * WARP; i += 4) {
    const Pack<int32_t, 4> earlier = pack_at<4>(&chunk[i]);
#pragma unroll
    for (int k = 0; k < 4; k++) place += earlier.values[k] == token;
  }
  place += __popc(__match_any_sync(ALL_LANES, token) & ((1u << lane_of_thread()) - 1u));
  if (valid) sorting.order[place] = static_cast<int32_t>(row);
}

// The sum of doutput at `column` of N columns over every step-th of `size` rows, AT_ONCE of which are on their way together.
template <typename T, int N>
DEVICE void sum_rows(float (&sum)[N], const T* doutput, int64_t dim, int column, const int32_t* order, int32_t first,
                     int32_t size, int32_t step) {
  constexpr int AT_ONCE = 8;
#pragma unroll
  for (int k = 0; k < N; k++) sum[k] = 0.0f;
#pragma unroll 1
  for (int32_t i = first; i < size; i += AT_ONCE * step) {
    // Their numbers first, without a condition: no load of a row waits for another's number.
    int32_t rows[AT_ONCE];
    Pack<T, N> some[AT_ONCE];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++) rows[j] = order[i + j * step < size ? i + j * step : i];
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++)
      some[j] = i + j * step < size ? pack_at<N>(doutput + rows[j] * dim + column) : Pack<T, N>{};
#pragma unroll
    for (int j = 0; j < AT_ONCE; j++)
#pragma unroll
      for (int k = 0; k < N; k++) sum[k] += to_float(some[j].values[k]);
  }
}

// Blocks take slices of WARP * N columns of frequent tokens, whose rows their warps share: the warps' sums are added in
// order. Then warps take rare ones. A thread has 4 columns, of bfloat16 too: the 16 bytes of dweight that it adds to lie
// next to its neighbours'.
template <typename T, int N>
GLOBAL void LAUNCH_BOUNDS(THREADS, 4) add_up(int dim, const T* doutput, float* dweight, Sorting sorting) {
  constexpr int WARPS = THREADS / WARP;
  SHARED_ARRAY(float, sums, [WARPS][WARP * N]);
  const int warp = warp_of_thread(), lane = lane_of_thread(), own = static_cast<int>(threadIdx.x);
  const int slices = (dim - 1) / (WARP * N) + 1;
  const int64_t items = int64_t{sorting.totals[1]} * slices;
  float sum[N];
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const RowColumn at = row_and_column(item, slices);
    const int32_t token = sorting.frequent[at.row];
    const int base = static_cast<int>(at.column) * WARP * N, column = base + lane * N;
    if (column < dim) {
      sum_rows<T, N>(sum, doutput, dim, column, sorting.order + sorting.starts[token], warp, sorting.sizes[token], WARPS);
      store(&sums[warp][lane * N], sum);
    }
    __syncthreads();
    if (own < WARP * N && base + own < dim) {
      float total = 0.0f;
      for (int i = 0; i < WARPS; i++) total += sums[i][own];
      dweight[int64_t{token} * dim + base + own] += total;
    }
    __syncthreads();
  }
  const int32_t rare = sorting.totals[2], warps = static_cast<int32_t>(gridDim.x) * WARPS;
  for (int32_t t = static_cast<int32_t>(blockIdx.x) * WARPS + warp; t < rare; t += warps) {
    const int32_t token = sorting.rare[t], size = sorting.sizes[token];
    const int32_t* const order = sorting.order + sorting.starts[token];
    float* const to = dweight + int64_t{token} * dim;
    for (int column = lane * N; column < dim; column += WARP * N) {
      float before[N];
      load(before, to + column);
      sum_rows<T, N>(sum, doutput, dim, column, order, 0, size, 1);
#pragma unroll
      for (int k = 0; k < N; k++) sum[k] += before[k];
      store(to + column, sum);
    }
  }
}

}  // namespace

int64_t mantou_embedding_backward_workspace(int64_t rows, int64_t vocab_size, int64_t) {
  return Sorting::elements(rows, vocab_size) * static_cast<int64_t>(sizeof(int32_t));
}

int32_t mantou_embedding_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size, int64_t dim,
                                  const int32_t* tokens, const void* doutput, float* dweight, void* workspace) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, vocab_size, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(tokens, doutput, dweight, workspace);
  constexpr int64_t MOST = 1 << 30;
  CHECK(rows < MOST && vocab_size < MOST && dim < MOST, "%s: %lld rows into [%lld, %lld]; each must be below 2^30",
        __func__, static_cast<long long>(rows), static_cast<long long>(vocab_size), static_cast<long long>(dim));
  const char* const name = __func__;
  const cudaStream_t stream = context->stream;
  const Sorting sorting(workspace, rows, vocab_size);
  const int64_t chunks = divide_up(rows, CHUNK), counters = Sorting::counts_of(rows, vocab_size) + 3;
  CHECK_CUDA(cudaMemsetAsync(workspace, 0, static_cast<size_t>(counters) * sizeof(int32_t), stream));
  RETURN_IF_FAILED(launch(name, count, grid_of(divide_up(rows, THREADS)), THREADS, 0, stream, rows, vocab_size, tokens,
                          sorting, context->fault));
  RETURN_IF_FAILED(
      launch(name, arrange, grid_of(divide_up(vocab_size, THREADS)), THREADS, 0, stream, chunks, vocab_size, sorting));
  RETURN_IF_FAILED(
      launch(name, place, grid_of(divide_up(rows, THREADS)), THREADS, 0, stream, rows, vocab_size, tokens, sorting));
  const bool vectors = in_vectors(dtype, dim, doutput, dweight);
  return with_type(dtype, [=](auto zero) {
    using T = decltype(zero);
    const auto kernel = vectors ? add_up<T, 4> : add_up<T, 1>;
    return launch(name, kernel, grid_for(context, smaller(rows, vocab_size), 8), THREADS, 0, stream,
                  static_cast<int>(dim), static_cast<const T*>(doutput), dweight, sorting);
  });
}
