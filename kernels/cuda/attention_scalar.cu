// Causal attention, forward and backward, for what the kernels on tensor cores do not take: float32, any even head size
// up to 256, any alignment. The same algorithms (see attention.cu and attention_backward.cu) in float32 fused
// multiply-adds: a block of 256 threads, seen as 16 x 16, computes tiles of TILE x TILE scores, of which thread (ty, tx)
// holds rows ty, ty + 16, ... and columns tx, tx + 16, ...; so the two halves of a warp hold whole rows.
#include "attention.h"

namespace mantou {
namespace {

constexpr int THREADS = 256;
constexpr int SIDE = 16;

// Tiles for heads of up to DIM; five of them fit the 99 KB that a block has on GPUs of compute capability 8.6, 8.9 and 12.
// Rows lie an odd number of floats apart, so a column is read without bank conflicts.
template <int DIM>
struct Scalar {
  static constexpr int TILE = DIM > 128 ? 16 : DIM > 64 ? 32 : 64;
  static constexpr int OWN = TILE / SIDE;  // rows, and columns of scores, of a thread
  static constexpr int WIDE = DIM / SIDE;  // columns of a head of a thread
  static constexpr int STRIDE = DIM + 1;
  static constexpr int WEIGHT_STRIDE = TILE + 1;
  static constexpr size_t shared_bytes(int tiles) { return static_cast<size_t>(tiles * TILE * STRIDE + TILE * WEIGHT_STRIDE) * 4; }
};

DEVICE int ty() { return static_cast<int>(threadIdx.x) / SIDE; }
DEVICE int tx() { return static_cast<int>(threadIdx.x) % SIDE; }

// Loads `count` rows of `dim` elements, rotated, into a tile, zeros around them. `first`: the first row's place in its
// sequence.
template <int DIM, typename T>
DEVICE void load_rows(float* tile, const T* rows, int64_t stride, int count, int dim, const Rotation& rotation,
                          int first) {
  using S = Scalar<DIM>;
  for (int i = static_cast<int>(threadIdx.x); i < S::TILE * DIM / 2; i += THREADS) {
    const int r = i / (DIM / 2), c = i % (DIM / 2) * 2;
    float2 pair = make_float2(0, 0);
    if (r < count && c < dim) {
      pair = load_pair(rows + r * stride + c);
      if (rotation.table) pair = rotate(pair, load_pair(rotation.row(first + r, dim) + c));
    }
    tile[r * S::STRIDE + c] = pair.x;
    tile[r * S::STRIDE + c + 1] = pair.y;
  }
}

// scores = A B^T over the first `dim` columns.
template <int DIM, int OWN>
DEVICE void multiply_rows(float (&scores)[OWN][OWN], const float* a, const float* b, int dim) {
  constexpr int STRIDE = Scalar<DIM>::STRIDE;
#pragma unroll
  for (int i = 0; i < OWN; i++)
#pragma unroll
    for (int j = 0; j < OWN; j++) scores[i][j] = 0;
  for (int c = 0; c < dim; c++) {
    float left[OWN], right[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) left[i] = a[(ty() + i * SIDE) * STRIDE + c];
#pragma unroll
    for (int j = 0; j < OWN; j++) right[j] = b[(tx() + j * SIDE) * STRIDE + c];
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
      for (int j = 0; j < OWN; j++) scores[i][j] = fmaf(left[i], right[j], scores[i][j]);
  }
}

// sums += W B, where W are the weights that this warp's threads hold; they pass through `shared`.
template <int DIM, int OWN, int WIDE>
DEVICE void multiply_weights(float (&sums)[OWN][WIDE], const float (&weights)[OWN][OWN], float* shared,
                                 const float* b) {
  using S = Scalar<DIM>;
  __syncwarp();
#pragma unroll
  for (int i = 0; i < OWN; i++)
#pragma unroll
    for (int j = 0; j < OWN; j++) shared[(ty() + i * SIDE) * S::WEIGHT_STRIDE + tx() + j * SIDE] = weights[i][j];
  __syncwarp();
  for (int key = 0; key < S::TILE; key++) {
    float weight[OWN];
#pragma unroll
    for (int i = 0; i < OWN; i++) weight[i] = shared[(ty() + i * SIDE) * S::WEIGHT_STRIDE + key];
#pragma unroll
    for (int n = 0; n < WIDE; n++) {
      const float value = b[key * S::STRIDE + tx() + n * SIDE];
#pragma unroll
      for (int i = 0; i < OWN; i++) sums[i][n] = fmaf(weight[i], value, sums[i][n]);
    }
  }
}

// Sum, or maximum, over the 16 threads that hold a row.
DEVICE float row_sum(float x) {
#pragma unroll
  for (int step = 1; step < SIDE; step *= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
  return x;
}

DEVICE float row_max(float x) {
#pragma unroll
  for (int step = 1; step < SIDE; step *= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
  return x;
}

// Writes this thread's part of `count` rows, turned back. Pairs lie in neighbouring threads.
template <int OWN, int WIDE, typename T>
DEVICE void write_back(const float (&sums)[OWN][WIDE], float factor, T* to, int64_t stride, int count, int dim,
                           const Rotation& rotation, int first) {
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    const int r = ty() + i * SIDE;
#pragma unroll
    for (int n = 0; n < WIDE; n++) {
      const int c = tx() + n * SIDE;
      float value = sums[i][n] * factor;
      const float other = __shfl_xor_sync(ALL_LANES, value, 1);
      if (r >= count || c >= dim) continue;
      if (rotation.table) {
        const float2 angle = load_pair(rotation.row(first + r, dim) + c / 2 * 2);
        const float2 pair = c % 2 ? make_float2(other, value) : make_float2(value, other);
        const float2 turned = rotate_back(pair, angle);
        value = c % 2 ? turned.y : turned.x;
      }
      to[r * stride + c] = from_float<T>(value);
    }
  }
}

template <typename T, int DIM>
GLOBAL void LAUNCH_BOUNDS(THREADS, 1) attend(Attention p, Order order) {
  using S = Scalar<DIM>;
  constexpr int TILE = S::TILE, OWN = S::OWN, WIDE = S::WIDE;
  SHARED_DYNAMIC(memory);
  auto* const queries = reinterpret_cast<float*>(memory);
  float* const keys = queries + TILE * S::STRIDE;
  float* const values = keys + TILE * S::STRIDE;
  float* const shared_weights = values + TILE * S::STRIDE;

  const Work work = order.at(blockIdx.x, p.heads);
  if (!p.places.slot_exists(work.sequence) || !p.places.rows_fit(work.sequence, p.queries)) return;
  const int start = p.places.start(work.sequence);
  const int first = work.block * TILE;
  const int count = p.queries - first < TILE ? p.queries - first : TILE;
  const int64_t row = int64_t{work.sequence} * p.queries + first;
  const int64_t kv_offset =
      p.places.slot(work.sequence) * p.places.capacity * p.kv_stride + work.head / (p.heads / p.kv_heads) * p.dim;
  const int32_t* const positions = p.positions ? p.positions + int64_t{work.sequence} * p.queries : nullptr;
  load_rows<DIM>(queries, static_cast<const T*>(p.q) + row * p.q_stride + work.head * p.dim, p.q_stride, count, p.dim,
                 {p.q_rope, positions, start}, first);

  float sums[OWN][WIDE] = {}, maxima[OWN], totals[OWN];
#pragma unroll
  for (int i = 0; i < OWN; i++) maxima[i] = -INFINITY, totals[i] = 0;
  const int key_count = start + first + count;
  for (int key = 0; key < key_count; key += TILE) {
    const int64_t from = kv_offset + key * p.kv_stride;
    load_rows<DIM>(keys, static_cast<const T*>(p.k) + from, p.kv_stride, key_count - key, p.dim,
                   {p.k_rope, positions, 0}, key);
    load_rows<DIM>(values, static_cast<const T*>(p.v) + from, p.kv_stride, key_count - key, p.dim, Rotation{}, 0);
    __syncthreads();
    float weights[OWN][OWN];
    multiply_rows<DIM>(weights, queries, keys, p.dim);
#pragma unroll
    for (int i = 0; i < OWN; i++) {
      const int last = start + first + ty() + i * SIDE - key;  // the last key of the tile that the row sees
      float most = maxima[i];
#pragma unroll
      for (int j = 0; j < OWN; j++) {
        weights[i][j] = tx() + j * SIDE <= last ? weights[i][j] * p.scale : -INFINITY;
        most = fmaxf(most, weights[i][j]);
      }
      most = row_max(most);  // finite: every row sees the first key
      const float correction = expf(maxima[i] - most);
      float total = 0;
#pragma unroll
      for (int j = 0; j < OWN; j++) {
        weights[i][j] = expf(weights[i][j] - most);
        total += weights[i][j];
      }
      maxima[i] = most;
      totals[i] = totals[i] * correction + row_sum(total);
#pragma unroll
      for (int n = 0; n < WIDE; n++) sums[i][n] *= correction;
    }
    multiply_weights<DIM>(sums, weights, shared_weights, values);
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < OWN; i++) {
    const int r = ty() + i * SIDE;
#pragma unroll
    for (int n = 0; n < WIDE; n++) sums[i][n] /= totals[i];
    if (p.lse && tx() == 0 && r < count)
      p.lse[(int64_t{work.sequence} * p.heads + work.head) * p.queries + first + r] = maxima[i] + logf(totals[i]);
  }
  const int64_t width = static_cast<int64_t>(p.heads) * p.dim;
  write_back(sums, 1, static_cast<T*>(p.output) + row * width + work.head * p.dim, width, count, p.dim, Rotation{}, 0);
}

// A score becomes a weight exp(score - lse), and a dweight becomes a dscore; both 0 where not seen.
template <int OWN>
DEVICE void differentiate(float (&weights)[OWN][OWN], float (&dweights)[OWN][OWN], int i, int j, bool seen,
                              float scale, float lse, float delta) {
  weights[i][j] = seen ? expf(weights[i][j] * scale - lse) : 0.0f;
  dweights[i][j] = weights[i][j] * (dweights[i][j] - delta);
}

template <typename T, int DIM>
GLOBAL void LAUNCH_BOUNDS(THREADS, 1) differentiate_queries(AttentionBackward p, Order order) {
  using S = Scalar<DIM>;
  constexpr int TILE = S::TILE, OWN = S::OWN, WIDE = S::WIDE;
  SHARED_DYNAMIC(memory);
  auto* const queries = reinterpret_cast<float*>(memory);
  float* const doutputs = queries + TILE * S::STRIDE;
  float* const keys = doutputs + TILE * S::STRIDE;
  float* const values = keys + TILE * S::STRIDE;
  float* const shared_weights = values + TILE * S::STRIDE;

  const Work work = order.at(blockIdx.x, p.heads);
  const int first = work.block * TILE;
  const int count = p.length - first < TILE ? p.length - first : TILE;
  const int64_t row = int64_t{work.sequence} * p.length + first;
  const int64_t width = static_cast<int64_t>(p.heads) * p.dim;
  const int64_t offset = row * width + work.head * p.dim;
  const int64_t kv_offset =
      int64_t{work.sequence} * p.length * p.kv_stride + work.head / (p.heads / p.kv_heads) * p.dim;
  const int32_t* const positions = p.positions ? p.positions + int64_t{work.sequence} * p.length : nullptr;
  const Rotation rotation = {p.rope, positions, 0};
  load_rows<DIM>(queries, static_cast<const T*>(p.q) + row * p.q_stride + work.head * p.dim, p.q_stride, count, p.dim,
                 rotation, first);
  load_rows<DIM>(doutputs, static_cast<const T*>(p.doutput) + offset, width, count, p.dim, Rotation{}, 0);
  __syncthreads();

  const int64_t statistics = (int64_t{work.sequence} * p.heads + work.head) * p.length + first;
  float sums[OWN][WIDE] = {}, lse[OWN], delta[OWN];
#pragma unroll
  for (int i = 0; i < OWN; i++) {
    const int r = ty() + i * SIDE;
    float sum = 0;
    if (r < count)
      for (int c = tx(); c < p.dim; c += SIDE)
        sum = fmaf(doutputs[r * S::STRIDE + c], to_float(static_cast<const T*>(p.output)[offset + r * width + c]), sum);
    delta[i] = row_sum(sum);
    lse[i] = r < count ? p.lse[statistics + r] : INFINITY;
    if (tx() == 0 && r < count) p.delta[statistics + r] = delta[i];
  }

  const int key_count = first + count;
  for (int key = 0; key < key_count; key += TILE) {
    const int64_t from = kv_offset + key * p.kv_stride;
    load_rows<DIM>(keys, static_cast<const T*>(p.k) + from, p.kv_stride, key_count - key, p.dim, rotation, key);
    load_rows<DIM>(values, static_cast<const T*>(p.v) + from, p.kv_stride, key_count - key, p.dim, Rotation{}, 0);
    __syncthreads();
    float weights[OWN][OWN], dweights[OWN][OWN];
    multiply_rows<DIM>(weights, queries, keys, p.dim);
    multiply_rows<DIM>(dweights, doutputs, values, p.dim);
#pragma unroll
    for (int i = 0; i < OWN; i++)
#pragma unroll
      for (int j = 0; j < OWN; j++)
        differentiate(weights, dweights, i, j, key + tx() + j * SIDE <= first + ty() + i * SIDE, p.scale, lse[i],
                      delta[i]);
    multiply_weights<DIM>(sums, dweights, shared_weights, keys);
    __syncthreads();
  }
  write_back(sums, p.scale, static_cast<T*>(p.dq) + row * p.q_stride + work.head * p.dim, p.q_stride, count, p.dim,
             {p.gradient_rope, positions, 0}, first);
}

template <typename T, int DIM>
GLOBAL void LAUNCH_BOUNDS(THREADS, 1) differentiate_keys(AttentionBackward p, Order order) {
  using S = Scalar<DIM>;
  constexpr int TILE = S::TILE, OWN = S::OWN, WIDE = S::WIDE;
  SHARED_DYNAMIC(memory);
  auto* const keys = reinterpret_cast<float*>(memory);
  float* const values = keys + TILE * S::STRIDE;
  float* const queries = values + TILE * S::STRIDE;
  float* const doutputs = queries + TILE * S::STRIDE;
  float* const shared_weights = doutputs + TILE * S::STRIDE;

  const Work work = order.at(blockIdx.x, p.kv_heads);
  const int first = work.block * TILE;
  const int count = p.length - first < TILE ? p.length - first : TILE;
  const int64_t row = int64_t{work.sequence} * p.length;
  const int64_t width = static_cast<int64_t>(p.heads) * p.dim;
  const int64_t kv_offset = (row + first) * p.kv_stride + work.head * p.dim;
  const int32_t* const positions = p.positions ? p.positions + row : nullptr;
  const Rotation rotation = {p.rope, positions, 0};
  load_rows<DIM>(keys, static_cast<const T*>(p.k) + kv_offset, p.kv_stride, count, p.dim, rotation, first);
  load_rows<DIM>(values, static_cast<const T*>(p.v) + kv_offset, p.kv_stride, count, p.dim, Rotation{}, 0);

  float dk[OWN][WIDE] = {}, dv[OWN][WIDE] = {};
  const int group = p.heads / p.kv_heads;
  for (int head = work.head * group; head < (work.head + 1) * group; head++) {
    const int64_t statistics = (int64_t{work.sequence} * p.heads + head) * p.length;
    for (int query = first; query < p.length; query += TILE) {
      const int queries_left = p.length - query;
      load_rows<DIM>(queries, static_cast<const T*>(p.q) + (row + query) * p.q_stride + head * p.dim, p.q_stride,
                     queries_left, p.dim, rotation, query);
      load_rows<DIM>(doutputs, static_cast<const T*>(p.doutput) + (row + query) * width + head * p.dim, width,
                     queries_left, p.dim, Rotation{}, 0);
      __syncthreads();
      // Rows are keys, columns queries.
      float weights[OWN][OWN], dweights[OWN][OWN];
      multiply_rows<DIM>(weights, keys, queries, p.dim);
      multiply_rows<DIM>(dweights, values, doutputs, p.dim);
#pragma unroll
      for (int j = 0; j < OWN; j++) {
        const int column = tx() + j * SIDE;
        const bool exists = column < queries_left;
        const float lse = exists ? p.lse[statistics + query + column] : 0.0f;
        const float delta = exists ? p.delta[statistics + query + column] : 0.0f;
#pragma unroll
        for (int i = 0; i < OWN; i++)
          differentiate(weights, dweights, i, j, exists && first + ty() + i * SIDE <= query + column, p.scale, lse,
                        delta);
      }
      multiply_weights<DIM>(dv, weights, shared_weights, doutputs);
      multiply_weights<DIM>(dk, dweights, shared_weights, queries);
      __syncthreads();
    }
  }
  write_back(dk, p.scale, static_cast<T*>(p.dk) + kv_offset, p.kv_stride, count, p.dim, {p.gradient_rope, positions, 0},
             first);
  write_back(dv, 1, static_cast<T*>(p.dv) + kv_offset, p.kv_stride, count, p.dim, Rotation{}, 0);
}

template <typename T, int DIM>
int32_t launch_forward(const mantou_context* context, const char* name, const Attention& p) {
  using S = Scalar<DIM>;
  const int blocks = (p.queries - 1) / S::TILE + 1;
  const Order order = order_of(context, p.batch * p.heads, blocks, int64_t{8} * p.places.capacity * p.dim, true);
  return launch(name, attend<T, DIM>, grid_of(order.heads * blocks), THREADS, S::shared_bytes(3), context->stream, p,
                order);
}

template <typename T, int DIM>
int32_t launch_backward(const mantou_context* context, const AttentionBackward& p) {
  using S = Scalar<DIM>;
  constexpr const char* NAME = "mantou_attention_backward";
  const int blocks = (p.length - 1) / S::TILE + 1;
  const int64_t bytes = int64_t{8} * p.length * p.dim;
  const Order queries = order_of(context, p.batch * p.heads, blocks, bytes, true);
  RETURN_IF_FAILED(launch(NAME, differentiate_queries<T, DIM>, grid_of(queries.heads * blocks), THREADS, S::shared_bytes(4),
                          context->stream, p, queries));
  const Order keys = order_of(context, p.batch * p.kv_heads, blocks, bytes * (p.heads / p.kv_heads), false);
  return launch(NAME, differentiate_keys<T, DIM>, grid_of(keys.heads * blocks), THREADS, S::shared_bytes(4),
                context->stream, p, keys);
}

// Calls run with the narrowest of the widths that kernels are made for.
template <typename Run>
int32_t with_width(int dim, const Run& run) {
  if (dim <= 16) return run(std::integral_constant<int, 16>{});
  if (dim <= 32) return run(std::integral_constant<int, 32>{});
  if (dim <= 64) return run(std::integral_constant<int, 64>{});
  if (dim <= 128) return run(std::integral_constant<int, 128>{});
  return run(std::integral_constant<int, 256>{});
}

}  // namespace

int32_t attend_scalar(const mantou_context* context, const char* name, int32_t dtype, const Attention& problem) {
  return with_type(dtype, [&](auto type) {
    return with_width(problem.dim, [&](auto width) {
      return launch_forward<decltype(type), decltype(width)::value>(context, name, problem);
    });
  });
}

int32_t attend_scalar_backward(const mantou_context* context, int32_t dtype, const AttentionBackward& problem) {
  return with_type(dtype, [&](auto type) {
    return with_width(problem.dim, [&](auto width) {
      return launch_backward<decltype(type), decltype(width)::value>(context, problem);
    });
  });
}

}  // namespace mantou
