// Matrix product, blocked as in Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (ACM TOMS
// 34, 2008), and BLIS.
//
// C is cut into one rectangle per thread (whole tiles; k is never divided among threads, so the bits of the result do
// not depend on their number). Within its rectangle a thread walks, from the outside in:
//   - blocks of KC steps of k: both operands shrink to panels of that depth;
//   - blocks of MC rows and of NC columns. The NC columns of op(B) are packed once per block into panels of NR columns
//     and stay in the second-level cache while all MC rows pass over them;
//   - strips of MR rows of op(A), which lie in the first-level cache while all panels of B stream past them. A strip of A^T
//     is packed when the first block of columns meets it, rows of A are read where they lie;
//   - tiles of MR x NR, which tile.h keeps in registers.
// Packing turns strided reads into streams and costs one pass over an operand. It goes to the thread's own scratch, so
// that threads never wait for each other. `reads_a_in_place` says where A is packed all the same, or A^T is not.
//
// A product of few rows with a transposed B (a step of generation: y = x W^T) would spend its time packing weights that
// it reads once: it takes inner products of the rows of x and W instead. So do the last columns of any such product where
// they fill no vector (a vocabulary of 65).
#include "matmul.h"

#include "matmul_bf16.h"

namespace mantou {
namespace {

// KC * NC floats of B: at most half of a usual second-level cache.
constexpr int64_t KC = LANES == 16 ? 384 : 256;
constexpr int64_t NC = LANES == 16 ? 512 : round_up(256, NR);
constexpr int64_t SCRATCH_FLOATS = SCRATCH_BYTES / 4;
// The rest of the scratch holds A; a strip may spill one vector past its end.
constexpr int64_t MC = (SCRATCH_FLOATS - KC * NC - LANES) / KC / MR * MR;

// The most rows of A that are multiplied by inner products.
constexpr int64_t FEW_ROWS = 4;

// ---- packing --------------------------------------------------------------------------------------------------------

// Writes `rows` rows of length k, transposed, to packed[p * WIDTH + row], `rows` <= WIDTH. Where WIDTH is not a
// multiple of LANES, step p spills into step p + 1, which is written after it.
template <int WIDTH, typename In>
void pack_rows(int64_t rows, int64_t k, const In* from, int64_t stride, float* packed) {
  static_assert(WIDTH < LANES || WIDTH % LANES == 0, "a spill must not hit another group of rows");
  constexpr int GROUP = WIDTH < LANES ? WIDTH : LANES;
  for (int64_t r = 0; r < rows; r += LANES) {
    const int64_t group = smaller(GROUP, rows - r);
    for (int64_t p = 0; p < k; p += LANES) {
      const int64_t steps = smaller(LANES, k - p);
      const In* corner = from + r * stride + p;
      Vector block[LANES];
      if (group == GROUP && steps == LANES) {
        MANTOU_UNROLL for (int i = 0; i < LANES; i++) block[i] = i < GROUP ? load(corner + i * stride) : Vector{};
      } else {
        for (int64_t i = 0; i < LANES; i++) block[i] = i < group ? load(corner + i * stride, Part{steps}) : Vector{};
      }
      transpose(block);
      float* to = packed + p * WIDTH + r;
      if (steps == LANES) {
        MANTOU_UNROLL for (int i = 0; i < LANES; i++) store(to + i * WIDTH, block[i]);
      } else {
        for (int64_t i = 0; i < steps; i++) store(to + i * WIDTH, block[i]);
      }
    }
  }
}

// Writes k rows of `columns` <= WIDTH elements to packed[p * WIDTH + column], zeros after them.
template <int WIDTH, typename In>
void pack_columns(int64_t columns, int64_t k, const In* from, int64_t stride, float* packed) {
  if (columns == WIDTH) {
    for (int64_t p = 0; p < k; p++, from += stride, packed += WIDTH) {
      if constexpr (std::is_same_v<In, float>) std::memcpy(packed, from, WIDTH * sizeof(float));
      else for_vectors(WIDTH, [=](int64_t j, auto part) { store(packed + j, load(from + j, part), part); });
    }
    return;
  }
  for (int64_t p = 0; p < k; p++)
    for (int64_t j = 0; j < WIDTH; j++) packed[p * WIDTH + j] = j < columns ? to_float(from[p * stride + j]) : 0;
}

template <typename Product>
void pack_a(const Product& product, int64_t row, int64_t rows, int64_t p, int64_t k, float* packed) {
  if (product.transpose_a) pack_columns<MR>(rows, k, product.a + p * product.lda + row, product.lda, packed);
  else pack_rows<MR>(rows, k, product.a + row * product.lda + p, product.lda, packed);
}

template <typename Product>
void pack_b(const Product& product, int64_t column, int64_t columns, int64_t p, int64_t k, float* packed) {
  if (product.transpose_b) pack_rows<NR>(columns, k, product.b + column * product.ldb + p, product.ldb, packed);
  else pack_columns<NR>(columns, k, product.b + p * product.ldb + column, product.ldb, packed);
}

// ---- inner products -------------------------------------------------------------------------------------------------

// c[i * ldc + j] (+)= x[i] . w[j] for ROWS rows of x and `count` <= LANES of w. Row after row of w, so that memory is
// read in one stream.
template <int ROWS, typename In, typename Out>
void inner_products(int64_t count, int64_t k, const In* x, int64_t ldx, const In* w, int64_t ldw, Out* c, int64_t ldc,
                    bool accumulate) {
  constexpr int CHAINS = 4;
  Vector sums[ROWS][LANES] = {};
  for (int64_t j = 0; j < count; j++, w += ldw) {
    Vector sum[ROWS][CHAINS] = {};
    int64_t p = 0;
    for (; p + CHAINS * LANES <= k; p += CHAINS * LANES)
      MANTOU_UNROLL for (int v = 0; v < CHAINS; v++) {
        const int64_t at = p + v * LANES;
        __builtin_prefetch(reinterpret_cast<const char*>(w + at) + AHEAD);
        const Vector weight = load(w + at);
        MANTOU_UNROLL for (int i = 0; i < ROWS; i++) sum[i][v] += load(x + i * ldx + at) * weight;
      }
    for_vectors(k - p, [&](int64_t rest, auto part) {
      const Vector weight = load(w + p + rest, part);
      MANTOU_UNROLL for (int i = 0; i < ROWS; i++) sum[i][0] += load(x + i * ldx + p + rest, part) * weight;
    });
    MANTOU_UNROLL for (int i = 0; i < ROWS; i++) sums[i][j] = (sum[i][0] + sum[i][1]) + (sum[i][2] + sum[i][3]);
  }
  write_inner_products(count, sums, c, ldc, accumulate);
}

// ---- one thread's rectangle -----------------------------------------------------------------------------------------

// Rows [m0, m1) and columns [n0, n1) of C.
template <typename In>
void multiply_rectangle(const Product<In, float>& product, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float* scratch) {
  float* const packed_b = scratch;
  float* const packed_a = scratch + KC * NC;
  // Blocks of k of nearly equal depth: a short last one would pay for the whole of C again.
  const int64_t blocks = (product.k + KC - 1) / KC;
  const int64_t rest = inner_product_columns(product, n1);
  multiply_few_columns(product, m0, m1, n1 - rest, n1, inner_products<1, In, float>);
  n1 -= rest;
  const bool in_place = std::is_same_v<In, float> && reads_a_in_place(product);
  const auto add_tile = in_place && !product.transpose_a ? tile<true> : tile<false>;
  for (int64_t block = 0; block < blocks; block++) {
    const int64_t p = product.k * block / blocks;
    const int64_t depth = product.k * (block + 1) / blocks - p;
    const bool accumulate = product.accumulate || block > 0;
    for (int64_t i0 = m0; i0 < m1; i0 += MC) {
      const int64_t i1 = smaller(i0 + MC, m1);
      for (int64_t j0 = n0; j0 < n1; j0 += NC) {
        const int64_t j1 = smaller(j0 + NC, n1);
        for (int64_t j = j0; j < j1; j += NR)
          pack_b(product, j, smaller(NR, j1 - j), p, depth, packed_b + (j - j0) * depth);
        for (int64_t i = i0; i < i1; i += MR) {
          const int64_t rows = smaller(MR, i1 - i);
          const float* strip = packed_a + (i - i0) * depth;
          int64_t stride = MR;
          if constexpr (std::is_same_v<In, float>) {
            if (in_place) {
              strip = product.a + (product.transpose_a ? p * product.lda + i : i * product.lda + p);
              stride = product.lda;
            }
          }
          if (!in_place && j0 == n0) pack_a(product, i, rows, p, depth, packed_a + (i - i0) * depth);
          for (int64_t j = j0; j < j1; j += NR) {
            const float* const panel = packed_b + (j - j0) * depth;
            float* const c = product.c + i * product.ldc + j;
            prefetch_tile(rows, smaller(NR, j1 - j), c, product.ldc);
            add_tile(rows, smaller(NR, j1 - j), depth, strip, stride, panel, NR, c, product.ldc, accumulate);
          }
        }
      }
    }
  }
}

// The same where C is bfloat16: blocks of at most EDGE x EDGE are multiplied in float32 and rounded as they are done.
template <typename In>
void multiply_rectangle(const Product<In, bfloat16>& product, int64_t m0, int64_t m1, int64_t n0, int64_t n1,
                        float* scratch) {
  constexpr int64_t EDGE = 256;
  static_assert(KC * NC + EDGE * KC + LANES + EDGE * EDGE <= SCRATCH_FLOATS, "the block lies behind what is packed");
  float* const block = scratch + SCRATCH_FLOATS - EDGE * EDGE;
  for (int64_t j = n0; j < n1; j += EDGE)
    for (int64_t i = m0; i < m1; i += EDGE) {
      const int64_t rows = smaller(EDGE, m1 - i), columns = smaller(EDGE, n1 - j);
      multiply_rectangle<In>({product.transpose_a, product.transpose_b, rows, columns, product.k,
                              product.a + (product.transpose_a ? i : i * product.lda), product.lda,
                              product.b + (product.transpose_b ? j * product.ldb : j), product.ldb, block, EDGE, false},
                             0, rows, 0, columns, scratch);
      for (int64_t r = 0; r < rows; r++) {
        bfloat16* const to = product.c + (i + r) * product.ldc + j;
        for_vectors(columns, [&](int64_t c, auto part) {
          const Vector value = load(block + r * EDGE + c, part);
          store(to + c, product.accumulate ? load(to + c, part) + value : value, part);
        });
      }
    }
}

template <typename In, typename Out>
void multiply(const mantou_context* context, const Product<In, Out>& product) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<In, bfloat16>) {
    const bool done = with_pairs(context, [&](auto unit) {
      multiply_in_pairs<typename decltype(unit)::type>(context, product);
    });
    if (done) return;
  }
#endif
  for_rectangles<1, NR>(context, product, [&](int64_t m0, int64_t m1, int64_t n0, int64_t n1, int thread) {
    multiply_rectangle(product, m0, m1, n0, n1, context->thread_scratch<float>(thread));
  });
}

// ---- few rows -------------------------------------------------------------------------------------------------------

template <int ROWS, typename In, typename Out>
void multiply_few_rows(const mantou_context* context, const Product<In, Out>& product) {
  auto multiply = inner_products<ROWS, In, Out>;
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<In, bfloat16>) {
    if (context->instructions->unit == ProductUnit::DOTS) multiply = Dots::inner_products<ROWS, Out>;
  }
#endif
  const int64_t grain = larger(LANES, THREAD_WORK / larger(1, ROWS * product.k));
  parallel_for(context, product.n, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t j = begin; j < end; j += LANES)
      multiply(smaller(LANES, end - j), product.k, product.a, product.lda, product.b + j * product.ldb, product.ldb,
               product.c + j, product.ldc, product.accumulate);
  });
}

template <typename In, typename Out>
void multiply_any(const mantou_context* context, const Product<In, Out>& product) {
  if (product.m > FEW_ROWS || !product.transpose_b || product.transpose_a) return multiply(context, product);
  switch (product.m) {
    case 1: return multiply_few_rows<1>(context, product);
    case 2: return multiply_few_rows<2>(context, product);
    case 3: return multiply_few_rows<3>(context, product);
    default: return multiply_few_rows<4>(context, product);
  }
}

}  // namespace
}  // namespace mantou

using namespace mantou;

int32_t mantou_matmul(mantou_context* context, int32_t transpose_a, int32_t transpose_b, int64_t m, int64_t n,
                      int64_t k, int32_t input_dtype, const void* a, int64_t lda, const void* b, int64_t ldb,
                      int32_t output_dtype, void* c, int64_t ldc, int32_t accumulate) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(input_dtype);
  CHECK_DTYPE(output_dtype);
  CHECK_NOT_NEGATIVE(m, n, k);
  if (m == 0 || n == 0) return MANTOU_OK;
  CHECK_NOT_NULL(c);
  CHECK_AT_LEAST(ldc, n);
  const int64_t size = output_dtype == MANTOU_FLOAT32 ? 4 : 2;
  if (k == 0) {
    if (!accumulate)
      for (int64_t i = 0; i < m; i++) std::memset(static_cast<char*>(c) + i * ldc * size, 0, static_cast<size_t>(n * size));
    return MANTOU_OK;
  }
  CHECK_NOT_NULL(a, b);
  const int64_t a_row = transpose_a ? m : k, b_row = transpose_b ? k : n;
  CHECK_AT_LEAST(lda, a_row);
  CHECK_AT_LEAST(ldb, b_row);
  for_dtype(input_dtype, [=](auto in) {
    for_dtype(output_dtype, [=](auto out) {
      using In = decltype(in);
      using Out = decltype(out);
      multiply_any<In, Out>(context, {transpose_a != 0, transpose_b != 0, m, n, k, static_cast<const In*>(a), lda,
                                      static_cast<const In*>(b), ldb, static_cast<Out*>(c), ldc, accumulate != 0});
    });
  });
  return MANTOU_OK;
}
