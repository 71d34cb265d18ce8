// Threads: fibers, the scheduler of a block, barriers and the operations of a warp.
//
// One block runs at a time, on one thread of the operating system. Blocks come in a random order; within a block, so do
// warps and lanes, as far as barriers and operations of a warp let them. The order follows from a seed
// ($MANTOU_EMULATOR_SEED) and from what ran before, so a failure repeats, while the same call made twice runs in two
// orders.
#include "engine.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

uint3 thread_index, block_index;
dim3 block_size, grid_size;
Fiber* running;
Warp warps[MAX_THREADS / 32];
unsigned launches, blocks_run;
uint32_t block_number;
bool failed;

namespace {

// ---- fibers ------------------------------------------------------------------------------------------------------

// Keeps the caller's registers on its stack and takes up the stack that `next` points to.
extern "C" void mantou_switch_stacks(void** own, void* next);

#if defined(__x86_64__)
asm(R"(
.text
.globl mantou_switch_stacks
.hidden mantou_switch_stacks
.type mantou_switch_stacks, @function
mantou_switch_stacks:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
)");
constexpr size_t SAVED_WORDS = 8;  // six registers, the return address, and one to align the stack
constexpr size_t RETURN_WORD = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl mantou_switch_stacks
.hidden mantou_switch_stacks
.type mantou_switch_stacks, %function
mantou_switch_stacks:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr size_t SAVED_WORDS = 20;
constexpr size_t RETURN_WORD = 11;
#else
#error "the emulator has no stack switch for this processor"
#endif

constexpr size_t STACK_BYTES = size_t{256} << 10, PAGE = 4096;

struct Random {
  uint64_t state;
  uint32_t next() {  // splitmix64 (Steele, Lea & Flood 2014)
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ z >> 31) >> 32);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(uint64_t{next()} * n >> 32); }
  template <typename T>
  void shuffle(T* items, size_t count) {
    for (; count > 1; count--) std::swap(items[count - 1], items[below(static_cast<uint32_t>(count))]);
  }
};

uint64_t seed() {
  const char* given = std::getenv("MANTOU_EMULATOR_SEED");
  return given ? std::strtoull(given, nullptr, 10) : 1;
}

Random random_numbers{seed()};
Fiber fibers[MAX_THREADS];
void* scheduler_stack;
char* const stacks = [] {
  char* const memory = static_cast<char*>(reserve(MAX_THREADS * (STACK_BYTES + PAGE)));
  for (size_t i = 0; i < MAX_THREADS; i++) mprotect(memory + i * (STACK_BYTES + PAGE), PAGE, PROT_NONE);
  return memory;
}();
unsigned thread_count, done_count, barrier_count;
const std::function<void()>* kernel_thread;
const char* kernel_name;
char message[1024];

unsigned number_of(const Fiber* fiber) { return static_cast<unsigned>(fiber - fibers); }
char* bottom_of(const Fiber* fiber) { return stacks + number_of(fiber) * (STACK_BYTES + PAGE) + PAGE; }

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

// AddressSanitizer is told of every switch: before it, where the next stack lies, and after it.
#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_bottom;
size_t scheduler_size;
bool from_scheduler;

void leave_for(const Fiber* next) {
  from_scheduler = !running;
  void* no_fake_stacks;  // detect_stack_use_after_return is off
  __sanitizer_start_switch_fiber(&no_fake_stacks, next ? bottom_of(next) : scheduler_bottom,
                                 next ? STACK_BYTES : scheduler_size);
}
void arrive() {
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(nullptr, &bottom, &size);
  if (from_scheduler) scheduler_bottom = bottom, scheduler_size = size;
}
void unpoison(char* memory, size_t bytes) { __asan_unpoison_memory_region(memory, bytes); }
#else
void leave_for(const Fiber*) {}
void arrive() {}
void unpoison(char*, size_t) {}
#endif

// Leaves the running fiber, or the scheduler where none runs, for `next`, or the scheduler for null.
void switch_to(Fiber* next) {
  void** const own = running ? &running->stack : &scheduler_stack;
  leave_for(next);
  running = next;
  if (next) thread_index.x = number_of(next);
  mantou_switch_stacks(own, next ? next->stack : scheduler_stack);
  arrive();
}

void wait_in(const char* what, int line) {
  running->state = State::Waiting;
  running->waiting = what;
  running->line = line;
  switch_to(next_lane());
}

void fiber_main() {
  arrive();
  (*kernel_thread)();
  if (!running->copies.empty()) fail(0, "the thread ends with asynchronous copies that it has not waited for");
  running->state = State::Done;
  done_count++;
  switch_to(next_lane());
}

void prepare(Fiber* fiber) {
  fiber->state = State::Ready;
  fiber->committed = fiber->barriers = 0;
  fiber->copies.clear();
  // Stacks that all begin at one offset of a page would share a few sets of the first-level cache.
  char* const end = bottom_of(fiber) + STACK_BYTES - number_of(fiber) % 32 * 128;
  unpoison(end - PAGE, PAGE);  // the last fiber_main never returned
  void** const top = reinterpret_cast<void**>(end) - SAVED_WORDS;
  for (size_t i = 0; i < SAVED_WORDS; i++) top[i] = nullptr;
  top[RETURN_WORD] = reinterpret_cast<void*>(fiber_main);
  fiber->stack = top;
}

// Ends the launch; its first mistake is kept.
void record(unsigned thread, int line, const char* what) {
  char at[24] = "";
  if (line > 0) std::snprintf(at, sizeof at, ", line %d", line);
  if (!failed)
    std::snprintf(message, sizeof message, "kernel of %s, block (%u, %u, %u), thread %u%s: %s", kernel_name,
                  block_index.x, block_index.y, block_index.z, thread, at, what);
  failed = true;
}

// ---- a block -----------------------------------------------------------------------------------------------------

void report_deadlock() {
  const Fiber* fiber = fibers;
  while (fiber->state == State::Done) fiber++;
  char what[256];
  std::snprintf(what, sizeof what, "waits in a %s that others never reach (%u of %u threads have ended)", fiber->waiting,
                done_count, thread_count);
  record(number_of(fiber), fiber->line, what);
}

void run_block(size_t shared) {
  const unsigned warp_count = (thread_count + 31) / 32;
  done_count = barrier_count = 0;
  blocks_run++;
  for (unsigned i = 0; i < thread_count; i++) prepare(&fibers[i]);
  unsigned order[MAX_THREADS / 32];
  for (unsigned w = 0; w < warp_count; w++) {
    warps[w].meetings.clear();
    warps[w].time = 0;
    std::memset(warps[w].known, 0, sizeof warps[w].known);
    order[w] = w;
  }
  open_shared(shared);
  while (done_count < thread_count && !failed) {
    bool progress = false;
    random_numbers.shuffle(order, warp_count);
    for (unsigned w = 0; w < warp_count && !failed; w++) {
      first_of_warp = order[w] * 32;
      do {
        lane_start = random_numbers.next(), lane_step = lane_start >> 8 | 1u, lane_at = 0;
        Fiber* const first = next_lane();
        if (!first) break;
        progress = true;
        switch_to(first);
      } while (!failed && lane_start >> 29 != 0);  // now and then another warp overtakes
    }
    if (!progress && !failed) report_deadlock();
  }
  if (failed) unpoison(stacks, MAX_THREADS * (STACK_BYTES + PAGE));
}

Warp& own_warp() { return warps[thread_index.x / 32u]; }

}  // namespace

void fail(int line, const char* format, ...) {
  char what[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(what, sizeof what, format, arguments);
  va_end(arguments);
  record(thread_index.x, line, what);
  switch_to(nullptr);
  __builtin_unreachable();
}

const char* run(const char* name, dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread) {
  const size_t blocks = size_t{grid.x} * grid.y * grid.z;
  if (block.x < 1 || block.x > MAX_THREADS || block.y != 1 || block.z != 1 || blocks < 1 || grid.x > 0x7fffffffu ||
      grid.y > 65535 || grid.z > 65535 || shared > SHARED_LIMIT) {
    std::snprintf(message, sizeof message,
                  "invalid launch of %s: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes of shared memory", name,
                  grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
    return message;
  }
  kernel_name = name;
  kernel_thread = &thread;
  block_size = block;
  grid_size = grid;
  thread_count = block.x;
  failed = false;
  launches++;
  std::vector<uint32_t> order(blocks);
  for (size_t i = 0; i < blocks; i++) order[i] = static_cast<uint32_t>(i);
  random_numbers.shuffle(order.data(), blocks);
  for (size_t i = 0; i < blocks && !failed; i++) {
    block_number = order[i];
    block_index = {block_number % grid.x, block_number / grid.x % grid.y, block_number / grid.x / grid.y};
    run_block(shared);
  }
  return failed ? message : nullptr;
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
  if (thread_count - first < 32 && mask >> (thread_count - first))
    fail(line, "%s: the mask %08x has lanes that do not exist", operation, mask);
  std::vector<Meeting>& meetings = own_warp().meetings;
  Meeting* meeting = nullptr;
  for (Meeting& open : meetings)
    if (open.arrived ? open.mask == mask : !meeting) meeting = &open;
  if (!meeting) meeting = &meetings.emplace_back();
  if (!meeting->arrived) {
    meeting->mask = mask;
    meeting->operation = operation;
    meeting->line = line;
  }
  if (meeting->line != line || (meeting->operation != operation && std::strcmp(meeting->operation, operation) != 0))
    fail(line, "%s, while other lanes of the mask are in the %s of line %d", operation, meeting->operation,
         meeting->line);
  meeting->arrived |= 1u << own;
  meeting->brought[own] = mine;
  if (meeting->arrived != mask) return wait_in(operation, line);
  meeting->arrived = 0;
  compute(meeting->brought, mask);
  for (uint32_t rest = mask; rest; rest &= rest - 1)
    fibers[first + static_cast<unsigned>(__builtin_ctz(rest))].state = State::Ready;
}

}  // namespace emulator

using namespace emulator;

void __syncwarp(uint32_t mask, int line) {
  collective(mask, "__syncwarp", line, nullptr, [](void* const*, uint32_t all) {
    (void)all;
#if defined(MANTOU_RACE_CHECKER)
    Warp& warp = own_warp();
    unsigned latest[32] = {};
    warp.time++;
    for (unsigned a = 0; a < 32; a++)
      for (unsigned b = 0; b < 32 && all >> a & 1u; b++)
        if (warp.known[a][b] > latest[b]) latest[b] = warp.known[a][b];
    for (unsigned b = 0; b < 32; b++)
      if (all >> b & 1u) latest[b] = warp.time;
    for (unsigned a = 0; a < 32; a++)
      if (all >> a & 1u) std::memcpy(warp.known[a], latest, sizeof latest);
#endif
  });
}
