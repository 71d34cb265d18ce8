// What this processor can do at most, measured: multiply-adds from registers, and a sum over memory that no cache holds.
// Benchmarks and profiles are shares of these figures.
#include <chrono>

#include "matmul_bf16.h"
#include "matmul.h"

namespace mantou {
namespace {

// The best run of `work`, per second. Other programs only make a run slower, and threads that have slept may share a
// processor for the first tens of milliseconds.
template <typename Work>
double most_per_second(double amount, const Work& work) {
  constexpr double LEAST_SECONDS = 0.15;
  double least = 1e30, spent = 0;
  for (int run = 0; run < 5 || spent < LEAST_SECONDS; run++) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (seconds.count() < least) least = seconds.count();
    spent += seconds.count();
  }
  return amount / least;
}

// The compiler must take a vector as used and as changed.
#if defined(__x86_64__)
#define MANTOU_OPAQUE(vector) __asm__ volatile("" : "+v"(vector))
#else
#define MANTOU_OPAQUE(vector) __asm__ volatile("" : "+w"(vector))
#endif

// Independent sums: latency times throughput of multiply-add units (12 for Zen 5's pairs, and some slack), as far as
// there are registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int CHAINS = 16;
#else
constexpr int CHAINS = 12;
#endif
constexpr int64_t STEPS = 1 << 17;

void multiply_add_floats() {
  Vector sum[CHAINS] = {}, a = splat(0.5f), b = splat(0.25f);
  for (int64_t step = 0; step < STEPS; step++) {
    MANTOU_OPAQUE(a);
    MANTOU_UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = sum[i] * a + b;
    MANTOU_UNROLL for (int i = 0; i < CHAINS; i++) MANTOU_OPAQUE(sum[i]);
  }
}

#if defined(__AVX512F__)
__attribute__((target("avx512bf16"))) void multiply_add_pairs() {
  __m512 sum[CHAINS] = {}, a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
  for (int64_t step = 0; step < STEPS; step++) {
    MANTOU_OPAQUE(a);
    MANTOU_UNROLL for (int i = 0; i < CHAINS; i++) sum[i] = _mm512_dpbf16_ps(sum[i], (__m512bh)a, (__m512bh)b);
    MANTOU_UNROLL for (int i = 0; i < CHAINS; i++) MANTOU_OPAQUE(sum[i]);
  }
}

void multiply_tiles_of_zeros() {
  HardwareTiles tiles;
  tiles.zero<4>();
  tiles.zero<5>();
  for (int64_t step = 0; step < STEPS / 16; step++) {
    tiles.multiply<0, 4, 5>();
    tiles.multiply<1, 4, 5>();
    tiles.multiply<2, 4, 5>();
    tiles.multiply<3, 4, 5>();
  }
}
#endif

template <typename Work>
double on_all_threads(const mantou_context* context, double amount, const Work& work) {
  return most_per_second(amount * context->threads, [&] {
    parallel_for(context, context->threads, 1, [&](int64_t begin, int64_t end, int) {
      for (; begin < end; begin++) work();
    });
  });
}

double bfloat16_peak(const mantou_context* context, double float32_peak) {
  (void)context;
#if defined(__AVX512F__)
  constexpr double PAIRS = CHAINS * STEPS * 64.0, TILES = STEPS / 16 * 4 * (16 * 16 * 32 * 2.0);
  switch (context->instructions->unit) {
    case ProductUnit::DOTS: return on_all_threads(context, PAIRS, multiply_add_pairs);
    case ProductUnit::TILES: return on_all_threads(context, TILES, multiply_tiles_of_zeros);
    default: break;
  }
#endif
  return float32_peak;  // converted first
}

double read_peak(const mantou_context* context, int64_t bytes, const float* memory) {
  const int64_t lines = bytes / 64;
  return most_per_second(static_cast<double>(lines * 64), [&] {
    parallel_for(context, lines, 1 << 12, [&](int64_t begin, int64_t end, int) {
      constexpr int VECTORS = 16 / LANES;
      Vector sum[4][VECTORS] = {};
      int64_t line = begin;
      for (; line + 4 <= end; line += 4)
        MANTOU_UNROLL for (int i = 0; i < 4; i++) MANTOU_UNROLL for (int v = 0; v < VECTORS; v++)
          sum[i][v] += load(memory + (line + i) * 16 + v * LANES);
      for (int i = 0; i < 4; i++)
        for (int v = 0; v < VECTORS; v++) MANTOU_OPAQUE(sum[i][v]);
    });
  });
}

}  // namespace
}  // namespace mantou

using namespace mantou;

int32_t mantou_measure_peaks(mantou_context* context, int64_t bytes, const void* memory, double* peaks) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(peaks);
  CHECK(bytes >= 64, "%s: bytes is %lld; at least a cache line must be read", __func__, static_cast<long long>(bytes));
  CHECK_NOT_NULL(memory);
  peaks[0] = on_all_threads(context, CHAINS * STEPS * 2.0 * LANES, multiply_add_floats);
  peaks[1] = bfloat16_peak(context, peaks[0]);
  peaks[2] = read_peak(context, bytes, static_cast<const float*>(memory));
  return MANTOU_OK;
}
