// What every file of the CPU backend shares: the context, error reporting, argument checks and parallel loops.
//
// Shape of an operation's file: a kernel (static, plain loops over one row or block), then the exported entry, which
// checks its arguments with CHECK and splits the work with parallel_for. Work is split by a rule that does not depend
// on the number of threads wherever floating-point sums are involved, so results have the same bits on any machine
// with the same instruction set.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>

#include "dispatch.h"  // before mantou.h is included elsewhere

#include "../errors.h"

// Bytes of scratch memory that each thread owns (packed blocks of matrices, attention tiles).
constexpr int64_t SCRATCH_BYTES = int64_t{4} << 20;

struct mantou_context {
  int threads;
  char* scratch;  // threads * SCRATCH_BYTES, aligned to LARGE_PAGE
  const mantou::InstructionSet* instructions;
  mantou_graph* capture;  // what operations are recorded in instead of being done, or null
  std::chrono::steady_clock::time_point marks[2];

  template <typename T>
  __attribute__((always_inline)) T* thread_scratch(int thread) const {
    return reinterpret_cast<T*>(scratch + thread * SCRATCH_BYTES);
  }
};

namespace mantou {

// The usual size of the large pages that an operating system may back memory with.
constexpr int64_t LARGE_PAGE = int64_t{2} << 20;

// Advises the system to back this memory, aligned to LARGE_PAGE, with large pages.
void advise_large_pages(void* memory, int64_t bytes);

}  // namespace mantou

MANTOU_NAMESPACE

// Floats that a thread should have to pass over before it is worth waking: entering a parallel region costs 2 to 5
// microseconds.
constexpr int64_t GRAIN = 16384;

// The same in rows of `dim` floats.
constexpr int64_t grain_rows(int64_t dim) { return dim < GRAIN ? GRAIN / (dim > 0 ? dim : 1) : 1; }

// Runs body(begin, end, thread) over [0, count) in contiguous pieces of at least `grain`, on the context's threads.
// Threads take the pieces statically: piece t goes to thread t.
template <typename Body>
void parallel_for(const mantou_context* context, int64_t count, int64_t grain, const Body& body);

// The same for loops over single elements: runs body(begin, end) over blocks of GRAIN elements. Blocks do not depend
// on the number of threads, so neither do an element's place in its vector and the instructions that compute it.
template <typename Body>
void parallel_elements(const mantou_context* context, int64_t count, const Body& body);

}
}  // namespace mantou

#include <omp.h>
#if defined(__SANITIZE_THREAD__)
#include <thread>
#include <vector>
#endif

template <typename Body>
void mantou::MANTOU_TARGET::parallel_for(const mantou_context* context, int64_t count, int64_t grain, const Body& body) {
  if (count <= 0) return;
  const int64_t most = (count + grain - 1) / grain;
  const int threads = static_cast<int>(most < context->threads ? most : context->threads);
  if (threads <= 1) {
    body(int64_t{0}, count, 0);
    return;
  }
#if defined(__SANITIZE_THREAD__)
  // ThreadSanitizer does not know how GNU OpenMP's threads wait for each other; these it knows.
  const auto piece = [&](int thread) { body(count * thread / threads, count * (thread + 1) / threads, thread); };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; thread++) others.emplace_back(piece, thread);
  piece(0);
  for (std::thread& other : others) other.join();
  return;
#endif
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
    const int64_t team = omp_get_num_threads();
    body(count * thread / team, count * (thread + 1) / team, thread);
  }
}

template <typename Body>
void mantou::MANTOU_TARGET::parallel_elements(const mantou_context* context, int64_t count, const Body& body) {
  parallel_for(context, count / GRAIN + (count % GRAIN != 0), 1, [&](int64_t first, int64_t last, int) {
    for (int64_t begin = first * GRAIN; first < last; first++, begin += GRAIN)
      body(begin, count - begin < GRAIN ? count : begin + GRAIN);
  });
}
