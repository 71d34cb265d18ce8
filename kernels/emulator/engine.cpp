// Threads: fibers, the scheduler of a block, barriers and the operations of a warp (mma and ldmatrix among them).
//
// One block runs at a time, on one thread of the operating system. Blocks come in a random order; within a block, so do
// warps and lanes, as far as barriers and operations of a warp let them. The order follows from a seed
// ($MANTOU_EMULATOR_SEED) and from what ran before, so a failure repeats, while the same call made twice runs in two
// orders.
#include "engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>

namespace emulator {

uint3 thread_index, block_index;
dim3 block_size, grid_size;
Fiber* running;
unsigned launches, blocks_run;
uint32_t block_number;

namespace {

// ---- fibers ------------------------------------------------------------------------------------------------------

// Keeps on its stack the registers that a function must keep, and takes up the stack that `next` points to.
extern "C" void mantou_switch_stacks(void** own, void* next);

#if defined(__x86_64__)
asm(R"(
.text
mantou_switch_stacks:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
constexpr size_t SAVED_WORDS = 8;  // six registers, the return address, and one to align the stack
constexpr size_t RETURN_WORD = 6;
#elif defined(__aarch64__)
asm(R"(
.text
mantou_switch_stacks:
  stp d14, d15, [sp, #-16]!; stp d12, d13, [sp, #-16]!; stp d10, d11, [sp, #-16]!; stp d8, d9, [sp, #-16]!
  stp x29, x30, [sp, #-16]!; stp x27, x28, [sp, #-16]!; stp x25, x26, [sp, #-16]!
  stp x23, x24, [sp, #-16]!; stp x21, x22, [sp, #-16]!; stp x19, x20, [sp, #-16]!
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp], #16; ldp x21, x22, [sp], #16; ldp x23, x24, [sp], #16
  ldp x25, x26, [sp], #16; ldp x27, x28, [sp], #16; ldp x29, x30, [sp], #16
  ldp d8, d9, [sp], #16; ldp d10, d11, [sp], #16; ldp d12, d13, [sp], #16; ldp d14, d15, [sp], #16
  ret
)");
constexpr size_t SAVED_WORDS = 20;
constexpr size_t RETURN_WORD = 11;
#else
#error "the emulator has no stack switch for this processor"
#endif

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t PAGE = 4096, STACK_BYTES = size_t{256} << 10;

Fiber fibers[MAX_THREADS];
struct Wait {  // of a fiber: in what, with which lanes of its warp (none: with the block), and with what in its hands
  const char* operation;
  int line;
  uint32_t mask;
  void* brought;
} waits[MAX_THREADS];
void* scheduler_stack;
// Each with a page below that cannot be touched.
char* const stacks = [] {
  char* const memory = static_cast<char*>(reserve(MAX_THREADS * (STACK_BYTES + PAGE)));
  for (size_t i = 0; i < MAX_THREADS; i++) mprotect(memory + i * (STACK_BYTES + PAGE), PAGE, PROT_NONE);
  return memory;
}();
unsigned thread_count, done_count, barrier_count;
uint32_t arrivals[MAX_THREADS / 32];  // the lanes of each warp that wait in an operation, with whatever mask
const std::function<void()>* kernel_thread;
const char* kernel_name;
bool failed;
char failure[1024];

std::mt19937 random_number([] {
  const char* given = std::getenv("MANTOU_EMULATOR_SEED");
  return given ? static_cast<uint32_t>(std::strtoull(given, nullptr, 10)) : 1u;
}());

unsigned number_of(const Fiber* fiber) { return static_cast<unsigned>(fiber - fibers); }

// The walk over the lanes of the warp whose turn it is.
unsigned first_of_warp, lane_at;
uint32_t lane_start, lane_step;

// The next lane in the walk that can run; null at its end.
Fiber* next_lane() {
  while (lane_at < 32) {
    const unsigned index = first_of_warp + ((lane_start + lane_at++ * lane_step) & 31u);
    if (index < thread_count && fibers[index].state == State::Ready) return &fibers[index];
  }
  return nullptr;
}

// Leaves the running fiber, or the scheduler where none runs, for `next`, or the scheduler for null.
void switch_to(Fiber* next) {
  void** const own = running ? &running->stack : &scheduler_stack;
  running = next;
  if (next) thread_index.x = number_of(next);
  mantou_switch_stacks(own, next ? next->stack : scheduler_stack);
}

void wait_in(const char* operation, int line, uint32_t mask = 0, void* brought = nullptr) {
  running->state = State::Waiting;
  waits[thread_index.x] = {operation, line, mask, brought};
  switch_to(next_lane());
}

void fiber_main() {
  (*kernel_thread)();
  if (!running->copies.empty()) fail(0, "the thread ends with asynchronous copies that it has not waited for");
  running->state = State::Done;
  done_count++;
  switch_to(next_lane());
}

void prepare(Fiber* fiber) {
  fiber->state = State::Ready;
  fiber->committed = fiber->barriers = fiber->syncs = 0;
  fiber->copies.clear();
  // Stacks that all begin at one offset of a page would share a few sets of the first-level cache.
  const unsigned number = number_of(fiber);
  char* const end = stacks + (number + 1) * (STACK_BYTES + PAGE) - number % 32 * 128;
  ASAN_UNPOISON_MEMORY_REGION(end - PAGE, PAGE);  // the last fiber_main never returned
  void** const top = reinterpret_cast<void**>(end) - SAVED_WORDS;
  std::fill_n(top, SAVED_WORDS, nullptr);
  top[RETURN_WORD] = reinterpret_cast<void*>(fiber_main);
  fiber->stack = top;
}

// Ends the launch; its first mistake is kept.
void record(unsigned thread, int line, const char* what) {
  if (failed) return;
  failed = true;
  char at[24] = "";
  if (line > 0) std::snprintf(at, sizeof at, ", line %d", line);
  std::snprintf(failure, sizeof failure, "kernel of %s, block (%u, %u, %u), thread %u%s: %s", kernel_name,
                block_index.x, block_index.y, block_index.z, thread, at, what);
}

// ---- a block -----------------------------------------------------------------------------------------------------

void report_deadlock() {
  unsigned thread = 0;
  while (fibers[thread].state == State::Done) thread++;
  char what[256];
  std::snprintf(what, sizeof what, "waits in a %s that others never reach (%u of %u threads have ended)",
                waits[thread].operation, done_count, thread_count);
  record(thread, waits[thread].line, what);
}

void run_block(size_t shared) {
  done_count = barrier_count = 0;
  blocks_run++;
  for (unsigned i = 0; i < thread_count; i++) prepare(&fibers[i]);
  unsigned order[MAX_THREADS / 32];
  unsigned* const end = order + (thread_count + 31) / 32;
  std::iota(order, end, 0u);
  std::fill(std::begin(arrivals), std::end(arrivals), 0u);
  open_shared(shared);
  while (done_count < thread_count && !failed) {
    bool progress = false;
    std::shuffle(order, end, random_number);
    for (const unsigned* warp = order; warp < end && !failed; warp++) {
      first_of_warp = *warp * 32;
      do {
        lane_start = static_cast<uint32_t>(random_number()), lane_step = lane_start >> 8 | 1u, lane_at = 0;
        Fiber* const first = next_lane();
        if (!first) break;
        progress = true;
        switch_to(first);
      } while (!failed && lane_start >> 29 != 0);  // now and then another warp overtakes
    }
    if (!progress && !failed) report_deadlock();
  }
  if (failed) ASAN_UNPOISON_MEMORY_REGION(stacks, MAX_THREADS * (STACK_BYTES + PAGE));
}

}  // namespace

void fail(int line, const char* format, ...) {
  char what[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  record(thread_index.x, line, what);
  switch_to(nullptr);
}

cudaError_t run(const char* name, dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread) {
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  if (block.x < 1 || block.x > MAX_THREADS || block.y != 1 || block.z != 1 || blocks < 1 || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535 || shared > SHARED_LIMIT) {
    std::snprintf(failure, sizeof failure,
                  "invalid launch of %s: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes of shared memory", name,
                  grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
    return failure;
  }
  kernel_name = name;
  kernel_thread = &thread;
  block_size = block;
  grid_size = grid;
  thread_count = block.x;
  failed = false;
  launches++;
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random_number);
  for (size_t i = 0; i < blocks && !failed; i++) {
    block_number = order[i];
    block_index = {block_number % grid.x, block_number / grid.x % grid.y, block_number / grid.x / grid.y};
    run_block(shared);
  }
  return failed ? failure : cudaSuccess;
}

void barrier(int line) {
  static int first_line;
  if (done_count > 0) fail(line, "a barrier, but %u of %u threads have ended", done_count, thread_count);
  if (barrier_count == 0) first_line = line;
  if (line != first_line) fail(line, "a barrier, while others wait at the barrier of line %d", first_line);
  if (++barrier_count < thread_count) return wait_in("barrier", line);
  barrier_count = 0;
  for (unsigned i = 0; i < thread_count; i++) {
    fibers[i].state = State::Ready;
    fibers[i].barriers++;
  }
}

void collective(uint32_t mask, const char* operation, int line, void* mine, Compute compute) {
  const unsigned own = lane(), first = thread_index.x - own;
  if (!(mask >> own & 1u)) fail(line, "%s: the mask %08x does not have the calling lane, %u", operation, mask, own);
  if (first + 31u - static_cast<unsigned>(__builtin_clz(mask)) >= thread_count)
    fail(line, "%s: the mask %08x has lanes that do not exist", operation, mask);
  uint32_t& arrived = arrivals[thread_index.x / 32u];
  arrived |= 1u << own;
  if (~arrived & mask) return wait_in(operation, line, mask, mine);
  static void* brought[32];  // by lane; on the stack it would only push what waits out of the cache
  for (uint32_t rest = mask & ~(1u << own); rest; rest &= rest - 1) {
    const unsigned i = static_cast<unsigned>(__builtin_ctz(rest));
    const Wait& other = waits[first + i];
    if (other.mask != mask) return wait_in(operation, line, mask, mine);
    if (other.line != line || (other.operation != operation && std::strcmp(other.operation, operation) != 0))
      fail(line, "%s, while other lanes of the mask are in the %s of line %d", operation, other.operation, other.line);
    brought[i] = other.brought;
  }
  brought[own] = mine;
  compute(brought, mask);
  arrived &= ~mask;
  for (uint32_t rest = mask; rest; rest &= rest - 1)
    fibers[first + static_cast<unsigned>(__builtin_ctz(rest))].state = State::Ready;
}

}  // namespace emulator

using namespace emulator;

void __syncwarp(uint32_t mask, int line) {
  if (mask != 0xffffffffu) fail(line, "__syncwarp: the mask is %08x; the emulator orders whole warps only", mask);
  collective(mask, "__syncwarp", line, &running->syncs, [](void* const* syncs, uint32_t) {
    for (int i = 0; i < 32; i++) ++*static_cast<unsigned*>(syncs[i]);
  });
}

// ---- tensor cores ------------------------------------------------------------------------------------------------

// Lane l brings the address of row l % 8 of matrix l / 8; lane 4 g + t receives the elements 2 t and 2 t + 1 of row g
// of each matrix, or of its transpose.
static void ldmatrix(const char* name, bool transposed, uint32_t (&registers)[4], const void* address, int line) {
  check_row(name, address, line);
  check(address, 16, How::Read);
  const unsigned g = lane() / 4, t = lane() % 4;
  exchange(0xffffffffu, name, line, static_cast<const uint16_t*>(address), [&](auto row) {
    for (unsigned m = 0; m < 4; m++) {
      if (transposed) registers[m] = row(m * 8 + 2 * t)[g] | uint32_t{row(m * 8 + 2 * t + 1)[g]} << 16;
      else std::memcpy(&registers[m], row(m * 8 + g) + 2 * t, sizeof registers[m]);
    }
  });
}

void ldmatrix_x4(uint32_t (&registers)[4], SharedAddress row, int line) {
  ldmatrix("ldmatrix", false, registers, reinterpret_cast<const void*>(row), line);
}
void ldmatrix_x4_trans(uint32_t (&registers)[4], SharedAddress row, int line) {
  ldmatrix("transposed ldmatrix", true, registers, reinterpret_cast<const void*>(row), line);
}

// Fragments as in the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
  struct Own {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } own{d, a, {b0, b1}};
  collective(0xffffffffu, "mma", line, &own, [](void* const* lanes, uint32_t) {
    float left[16][16], right[16][8];
    const auto low = [](uint32_t pair) { return __uint_as_float(pair << 16); };
    const auto high = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
    for (unsigned lane = 0; lane < 32; lane++) {
      const unsigned g = lane / 4, t = lane % 4;
      const Own* from = static_cast<const Own*>(lanes[lane]);
      for (unsigned i = 0; i < 4; i++) {
        const unsigned row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
        left[row][column] = low(from->a[i]);
        left[row][column + 1] = high(from->a[i]);
      }
      for (unsigned i = 0; i < 2; i++) {
        right[2 * t + i * 8][g] = low(from->b[i]);
        right[2 * t + i * 8 + 1][g] = high(from->b[i]);
      }
    }
    for (unsigned row = 0; row < 16; row++) {
      float sums[8] = {};
      for (unsigned k = 0; k < 16; k++)
        for (unsigned column = 0; column < 8; column++) sums[column] += left[row][k] * right[k][column];
      for (unsigned column = 0; column < 8; column++)
        static_cast<Own*>(lanes[row % 8 * 4 + column / 2])->d[row / 8 * 2 + column % 2] += sums[column];
    }
  });
}
