// The engine behind emulator.h: fibers, the scheduler of a block, operations of a warp, memory and the race checker.
//
// One block runs at a time, on one thread of the operating system. Blocks come in a random order; within a block, so do
// warps and lanes, as far as barriers and operations of a warp let them. The order follows from a seed
// ($MANTOU_EMULATOR_SEED) and the number of the launch, so a failure repeats, while the same call made twice runs in
// two orders.
#include "emulator.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

Position* current;
uint3 block_index;
dim3 block_size, grid_size;

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

constexpr size_t STACK_BYTES = size_t{256} << 10, PAGE = 4096, MAX_THREADS = 1024;

enum class State { Ready, AtBarrier, InWarp, Done };

struct Copy {
  void* destination;
  const void* source;
  int bytes;
  unsigned group;
};

struct Fiber {
  Position position;
  void* stack;  // where it stands
  State state;
  const char* waiting;  // for what, and where
  int line;
  unsigned committed;
  std::vector<Copy> copies;
  unsigned barriers;  // passed
};

struct Meeting {  // lanes of a warp on their way into one operation; free where none has arrived
  uint32_t mask, arrived;
  const char* operation;
  int line;
  void* brought[32];
};

struct Warp {
  std::vector<Meeting> meetings;
  unsigned time;           // counts __syncwarp
  unsigned known[32][32];  // [a][b]: until when lane a knows what lane b did
};

struct Random {
  uint64_t state;
  uint32_t next() {  // splitmix64 (Steele, Lea & Flood 2014)
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return static_cast<uint32_t>((z ^ z >> 31) >> 32);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>(uint64_t{next()} * n >> 32); }
};

std::mutex launching;
Fiber fibers[MAX_THREADS];
Warp warps[MAX_THREADS / 32];
Fiber* running;
void* scheduler_stack;
char* stacks;
unsigned thread_count, done_count, barrier_count, launches, blocks_run;
void (*kernel_body)(void*);
void* kernel_closure;
const char* kernel_name;
bool failed;
char message[1024];
Random random_numbers;

char* bottom_of(const Fiber* fiber) {
  return stacks + static_cast<size_t>(fiber - fibers) * (STACK_BYTES + PAGE) + PAGE;
}

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

#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_bottom;
size_t scheduler_size;

// The first thing on a stack that is switched to; `fake` is what it had when it was left.
void arrive(void* fake, bool from_scheduler) {
  const void* bottom;
  size_t size;
  __sanitizer_finish_switch_fiber(fake, &bottom, &size);
  if (from_scheduler) scheduler_bottom = bottom, scheduler_size = size;
}
bool from_scheduler;
#endif

// Leaves the running fiber, or the scheduler where none runs, for `next`, or the scheduler for null.
void switch_to(Fiber* next, bool forever = false) {
  void** const own = running ? &running->stack : &scheduler_stack;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  from_scheduler = !running;
  __sanitizer_start_switch_fiber(forever ? nullptr : &fake, next ? bottom_of(next) : scheduler_bottom,
                                 next ? STACK_BYTES : scheduler_size);
#endif
  (void)forever;
  running = next;
  if (next) current = &next->position;
  mantou_switch_stacks(own, next ? next->stack : scheduler_stack);
#if defined(__SANITIZE_ADDRESS__)
  arrive(fake, from_scheduler);
#endif
}

void wait_as(State state, const char* waiting, int line) {
  running->state = state;
  running->waiting = waiting;
  running->line = line;
  switch_to(next_lane());
}

void fiber_main() {
#if defined(__SANITIZE_ADDRESS__)
  arrive(nullptr, from_scheduler);
#endif
  kernel_body(kernel_closure);
  if (!running->copies.empty()) fail(0, "the thread ends with asynchronous copies that it has not waited for");
  running->state = State::Done;
  done_count++;
  switch_to(next_lane(), true);
}

void prepare(unsigned index) {
  Fiber* fiber = &fibers[index];
  const unsigned x = index % block_size.x, rest = index / block_size.x;
  fiber->position = {{x, rest % block_size.y, rest / block_size.y}, index};
  fiber->state = State::Ready;
  fiber->committed = fiber->barriers = 0;
  fiber->copies.clear();
  // Stacks that all begin at one offset of a page would share a few sets of the first-level cache.
  char* const end = bottom_of(fiber) + STACK_BYTES - index % 32 * 128;
  void** top = reinterpret_cast<void**>(end) - SAVED_WORDS;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(end - PAGE, PAGE);  // the last fiber_main never returned
#endif
  for (size_t i = 0; i < SAVED_WORDS; i++) top[i] = nullptr;
  top[RETURN_WORD] = reinterpret_cast<void*>(fiber_main);
  fiber->stack = top;
}

void record(const char* format, va_list arguments, int line) {
  if (failed) return;
  failed = true;
  int length = std::snprintf(message, sizeof message, "kernel of %s, block (%u, %u, %u)", kernel_name, block_index.x,
                             block_index.y, block_index.z);
  const auto append = [&](const char* text, auto... values) {
    length += std::snprintf(message + length, sizeof message - static_cast<size_t>(length), text, values...);
  };
  if (running) append(", thread %u", running->position.linear);
  if (line > 0) append(", line %d", line);
  append("%s", ": ");
  std::vsnprintf(message + length, sizeof message - static_cast<size_t>(length), format, arguments);
}

// ---- memory ------------------------------------------------------------------------------------------------------

// Device memory is a range of addresses; allocations lie GAP bytes apart, so that one can run into nothing.
constexpr size_t REGION = size_t{8} << 30, GAP = 4096, SHARED_LIMIT = 227 << 10, STATIC_LIMIT = 48 << 10;
char* region;
std::map<size_t, size_t> used;  // offset, size
char* arena;                    // shared memory
size_t arena_end, dynamic_bytes, static_bytes;

struct SharedArray {
  const void* key;
  void* memory;
  size_t bytes;
};
std::vector<SharedArray> shared_arrays;

enum : uint8_t { OUTSIDE, UNWRITTEN, COPYING, WRITTEN };  // what memory is

#if defined(MANTOU_RACE_CHECKER)
// The race checker keeps the state and the last accesses of every two bytes of device memory.
struct Access {
  uint32_t launch, block, barriers, time;
  uint32_t lanes;  // of the warp
  uint16_t warp;
  bool atomic;
};
constexpr uint16_t MANY_WARPS = 0xffff;
constexpr uint32_t MANY_BLOCKS = 0xffffffff;
struct Cell {
  Access write, read;
};
uint8_t* states;
Cell* cells;
uint32_t block_number;
#endif

void mark(const void* memory, size_t bytes, uint8_t state) {
  (void)memory, (void)bytes, (void)state;
#if defined(MANTOU_RACE_CHECKER)
  const size_t at = static_cast<size_t>(static_cast<const char*>(memory) - region);
  std::memset(states + at / 2, state, (at + bytes + 1) / 2 - at / 2);
#elif defined(__SANITIZE_ADDRESS__)
  if (state == OUTSIDE)
    __asan_poison_memory_region(memory, bytes);
  else
    __asan_unpoison_memory_region(memory, bytes);
#endif
}
void* reserve(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::fprintf(stderr, "emulator: cannot reserve %zu bytes of addresses\n", bytes);
    std::abort();
  }
  return memory;
}

void* allocate(size_t bytes) {
  size_t at = GAP;
  for (const auto& [offset, size] : used) {  // the first place that is large enough
    if (offset >= at + bytes + GAP) break;
    at = (offset + size + GAP + 1023) / 1024 * 1024;
  }
  if (at + bytes + GAP > REGION) return nullptr;
  used[at] = bytes;
  char* memory = region + at;
  mark(memory - GAP, GAP, OUTSIDE);
  mark(memory + bytes, GAP, OUTSIDE);
  mark(memory, bytes, UNWRITTEN);
  std::memset(memory, 0xff, bytes);
  return memory;
}

void start_up() {
  if (region) return;
  region = static_cast<char*>(reserve(REGION));
#if defined(MANTOU_RACE_CHECKER)
  states = static_cast<uint8_t*>(reserve(REGION / 2));
  cells = static_cast<Cell*>(reserve(REGION / 2 * sizeof(Cell)));
#endif
  arena = static_cast<char*>(allocate(SHARED_LIMIT + STATIC_LIMIT));
  mark(arena, SHARED_LIMIT + STATIC_LIMIT, OUTSIDE);
  stacks = static_cast<char*>(reserve(MAX_THREADS * (STACK_BYTES + PAGE)));
  for (const Fiber& fiber : fibers) mprotect(bottom_of(&fiber) - PAGE, PAGE, PROT_NONE);
  const char* seed = std::getenv("MANTOU_EMULATOR_SEED");
  random_numbers.state = seed ? std::strtoull(seed, nullptr, 10) : 1;
}

void open_shared(size_t at, size_t bytes) {
  mark(arena + at, bytes, UNWRITTEN);
  std::memset(arena + at, 0xff, bytes);
}

// ---- races -------------------------------------------------------------------------------------------------------

enum class How { Read, Write, Atomic };

#if defined(MANTOU_RACE_CHECKER)
// Whether what `before` did is over, for the running thread: by a launch, a barrier or a __syncwarp in between.
bool is_ordered(const Access& before, const Access& own) {
  if (before.launch != own.launch) return true;
  if (before.block != own.block) return false;
  if (before.barriers < own.barriers) return true;
  if (before.warp != own.warp) return false;
  const unsigned* known = warps[own.warp].known[running->position.linear & 31u];
  for (uint32_t rest = before.lanes & ~own.lanes; rest; rest &= rest - 1)
    if (before.time >= known[__builtin_ctz(rest)]) return false;
  return true;
}

// A block's shared memory is new, so there the block's number in time takes the launch's place.
Access access_now(bool shared, bool atomic) {
  const unsigned linear = running->position.linear, warp = linear / 32u;
  return {shared ? 0x80000000u | blocks_run : launches,
          block_number,
          running->barriers,
          warps[warp].time,
          1u << (linear & 31u),
          static_cast<uint16_t>(warp),
          atomic};
}

// `before` and the running thread's access in one: both of them stay unordered with what follows.
void join(Access& before, const Access& own) {
  if (before.block != own.block) before.block = MANY_BLOCKS;
  if (before.warp != own.warp) before.warp = MANY_WARPS;
  before.lanes |= own.lanes;
  before.time = before.time > own.time ? before.time : own.time;
}

bool is_shared(size_t at) { return at - static_cast<size_t>(arena - region) < SHARED_LIMIT + STATIC_LIMIT; }

[[noreturn]] void report(const char* what, size_t at, const Access* other) {
  const bool shared = is_shared(at);
  size_t from = at;
  if (shared) {
    from = at - static_cast<size_t>(arena - region);
  } else {
    auto next = used.upper_bound(at);
    if (next != used.begin()) from = at - std::prev(next)->first;
  }
  char who[96] = "";
  if (other && other->block == MANY_BLOCKS)
    std::snprintf(who, sizeof who, " (several blocks)");
  else if (other && other->warp == MANY_WARPS)
    std::snprintf(who, sizeof who, " (several warps of block %u)", other->block);
  else if (other)
    std::snprintf(who, sizeof who, " (block %u, warp %u, lanes %08x)", other->block, other->warp, other->lanes);
  fail(0, "%s%s: byte %zu of %s", what, who, from, shared ? "shared memory" : "an allocation");
}

void check(const void* address, size_t bytes, How how) {
  const size_t at = static_cast<size_t>(static_cast<const char*>(address) - region);
  if (at >= REGION || !running || failed) return;
  const Access own = access_now(is_shared(at), how == How::Atomic);
  for (size_t i = at / 2; i <= (at + bytes - 1) / 2; i++) {
    if (states[i] == OUTSIDE)
      report(how == How::Read ? "reads outside of any array" : "writes outside of any array", i * 2, nullptr);
    if (states[i] == COPYING)
      report("touches the destination of an asynchronous copy before waiting for it", i * 2, nullptr);
    if (states[i] == UNWRITTEN && how != How::Write) report("reads what nothing has written", i * 2, nullptr);
    Cell& cell = cells[i];
    const bool after_write = is_ordered(cell.write, own) || (cell.write.atomic && own.atomic);
    if (!after_write)
      report(how == How::Read ? "race: reads what another thread writes" : "race: writes what another thread writes",
             i * 2, &cell.write);
    if (how == How::Read) {
      if (is_ordered(cell.read, own))
        cell.read = own;
      else
        join(cell.read, own);
      continue;
    }
    if (!is_ordered(cell.read, own)) report("race: writes what another thread reads", i * 2, &cell.read);
    if (own.atomic && !is_ordered(cell.write, own))
      join(cell.write, own);
    else
      cell.write = own;
    cell.read.launch = 0;
    states[i] = WRITTEN;
  }
}

void check_aligned(const void* address, size_t bytes, How how) {
  if (static_cast<size_t>(static_cast<const char*>(address) - region) >= REGION) return;
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    report("accesses a misaligned address", static_cast<size_t>(static_cast<const char*>(address) - region), nullptr);
  check(address, bytes, how);
}
#else
void check(const void*, size_t, How) {}
#endif

// ---- a block -----------------------------------------------------------------------------------------------------

void report_deadlock() {
  for (unsigned i = 0; i < thread_count; i++) {
    Fiber* fiber = &fibers[i];
    if (fiber->state == State::Done) continue;
    running = fiber;
    va_list none{};
    char text[256];
    std::snprintf(text, sizeof text, "waits in a %s that %s never reach (%u of %u threads have ended)", fiber->waiting,
                  fiber->state == State::AtBarrier ? "other threads of the block" : "other lanes of its mask",
                  done_count, thread_count);
    record(text, none, fiber->line);
    running = nullptr;
    return;
  }
}

void run_block() {
  const unsigned warp_count = (thread_count + 31) / 32;
  done_count = barrier_count = 0;
  blocks_run++;
  for (unsigned i = 0; i < thread_count; i++) prepare(i);
  unsigned order[MAX_THREADS / 32];
  for (unsigned w = 0; w < warp_count; w++) {
    warps[w].meetings.clear();
    warps[w].time = 0;
    std::memset(warps[w].known, 0, sizeof warps[w].known);
    order[w] = w;
  }
  if (dynamic_bytes) open_shared(0, dynamic_bytes);
  arena_end = (dynamic_bytes + 15) / 16 * 16;
  static_bytes = 0;
  shared_arrays.clear();
  while (done_count < thread_count && !failed) {
    bool progress = false;
    for (unsigned w = warp_count; w > 1; w--) std::swap(order[w - 1], order[random_numbers.below(w)]);
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
  mark(arena, arena_end + 16, OUTSIDE);
#if defined(__SANITIZE_ADDRESS__)
  if (failed) __asan_unpoison_memory_region(stacks, MAX_THREADS * (STACK_BYTES + PAGE));
#endif
}

Warp& own_warp() { return warps[running->position.linear / 32u]; }

}  // namespace

void fail(int line, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record(format, arguments, line);
  va_end(arguments);
  switch_to(nullptr, true);
  __builtin_unreachable();
}

const char* run(const char* name, dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* closure) {
  const std::lock_guard<std::mutex> lock(launching);
  start_up();
  static char refusal[256];
  const size_t threads = size_t{block.x} * block.y * block.z, blocks = size_t{grid.x} * grid.y * grid.z;
  if (threads < 1 || threads > MAX_THREADS || blocks < 1 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 ||
      block.z > 64 || shared > SHARED_LIMIT) {
    std::snprintf(refusal, sizeof refusal,
                  "invalid launch of %s: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes of shared memory", name,
                  grid.x, grid.y, grid.z, block.x, block.y, block.z, shared);
    return refusal;
  }
  kernel_name = name;
  kernel_body = body;
  kernel_closure = closure;
  block_size = block;
  grid_size = grid;
  thread_count = static_cast<unsigned>(threads);
  dynamic_bytes = shared;
  failed = false;
  launches++;
  // Every block once, in a random order: steps of a length that has no divisor in common with their number.
  size_t step = random_numbers.below(static_cast<uint32_t>(blocks)) + 1;
  const auto divisor = [](size_t a, size_t b) {
    while (b) std::swap(a %= b, b);
    return a;
  };
  while (divisor(step, blocks) != 1) step++;
  size_t number = random_numbers.below(static_cast<uint32_t>(blocks));
  for (size_t i = 0; i < blocks && !failed; i++, number = (number + step) % blocks) {
    block_index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                   static_cast<unsigned>(number / grid.x / grid.y)};
#if defined(MANTOU_RACE_CHECKER)
    block_number = static_cast<uint32_t>(number);
#endif
    run_block();
  }
  return failed ? message : nullptr;
}

void barrier(int line) {
  static int first_line;
  if (done_count > 0) fail(line, "a barrier, but %u of %u threads have ended", done_count, thread_count);
  if (barrier_count == 0) first_line = line;
  if (line != first_line) fail(line, "a barrier, while others wait at the barrier of line %d", first_line);
  if (++barrier_count < thread_count) return wait_as(State::AtBarrier, "barrier", line);
  barrier_count = 0;
  for (unsigned i = 0; i < thread_count; i++) {
    fibers[i].state = State::Ready;
    fibers[i].barriers++;
  }
}

void collective(uint32_t mask, const char* operation, int line, void* mine, Compute compute) {
  const unsigned lane = running->position.linear & 31u, first = running->position.linear - lane;
  if (!(mask >> lane & 1u)) fail(line, "%s: the mask %08x does not have the calling lane, %u", operation, mask, lane);
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
  meeting->arrived |= 1u << lane;
  meeting->brought[lane] = mine;
  if (meeting->arrived != mask) return wait_as(State::InWarp, operation, line);
  meeting->arrived = 0;
  compute(meeting->brought, mask, line);
  for (uint32_t rest = mask; rest; rest &= rest - 1)
    fibers[first + static_cast<unsigned>(__builtin_ctz(rest))].state = State::Ready;
}

uint32_t ballot(uint32_t mask, bool predicate, int line) {
  struct Own {
    bool predicate;
    uint32_t result;
  } own{predicate, 0};
  collective(mask, "vote", line, &own, [](void* const* lanes, uint32_t all, int) {
    uint32_t result = 0;
    for (unsigned i = 0; i < 32; i++)
      if (all >> i & 1u && static_cast<Own*>(lanes[i])->predicate) result |= 1u << i;
    for (unsigned i = 0; i < 32; i++)
      if (all >> i & 1u) static_cast<Own*>(lanes[i])->result = result;
  });
  return own.result;
}

uint32_t match_any(uint32_t mask, uint64_t value, int line) {
  struct Own {
    uint64_t value;
    uint32_t result;
  } own{value, 0};
  collective(mask, "match", line, &own, [](void* const* lanes, uint32_t all, int) {
    for (unsigned i = 0; i < 32; i++)
      for (unsigned k = 0; k < 32 && all >> i & 1u; k++)
        if (all >> k & 1u && static_cast<Own*>(lanes[k])->value == static_cast<Own*>(lanes[i])->value)
          static_cast<Own*>(lanes[i])->result |= 1u << k;
  });
  return own.result;
}

// ---- shared memory -----------------------------------------------------------------------------------------------

void* shared_array(const void* key, size_t bytes, size_t alignment) {
  for (const SharedArray& array : shared_arrays)
    if (array.key == key) return array.memory;
  constexpr size_t BETWEEN = 64;
  const size_t at = (arena_end + BETWEEN + alignment - 1) / alignment * alignment;
  static_bytes += bytes;
  if (static_bytes > STATIC_LIMIT || static_bytes + dynamic_bytes > SHARED_LIMIT)
    fail(0, "%zu bytes of static and %zu of dynamic shared memory are too much", static_bytes, dynamic_bytes);
  open_shared(at, bytes);
  arena_end = at + bytes;
  shared_arrays.push_back({key, arena + at, bytes});
  return arena + at;
}

void* shared_dynamic() { return arena; }

// ---- atomics -----------------------------------------------------------------------------------------------------

template <typename T>
T atomic_add(T* address, T value) {
  check(address, sizeof(T), How::Atomic);
  const T before = *address;
  *address = before + value;
  return before;
}
template int atomic_add(int*, int);
template unsigned atomic_add(unsigned*, unsigned);
template unsigned long long atomic_add(unsigned long long*, unsigned long long);
template float atomic_add(float*, float);

template <typename T>
T atomic_max(T* address, T value) {
  check(address, sizeof(T), How::Atomic);
  const T before = *address;
  if (value > before) *address = value;
  return before;
}
template int atomic_max(int*, int);
template unsigned atomic_max(unsigned*, unsigned);

template <typename T>
T atomic_cas(T* address, T expected, T value) {
  check(address, sizeof(T), How::Atomic);
  const T before = *address;
  if (before == expected) *address = value;
  return before;
}
template int atomic_cas(int*, int, int);
template unsigned atomic_cas(unsigned*, unsigned, unsigned);
template unsigned long long atomic_cas(unsigned long long*, unsigned long long, unsigned long long);

bool is_device_memory(const void* address) {
  return region && static_cast<size_t>(static_cast<const char*>(address) - region) < REGION;
}

}  // namespace emulator

using namespace emulator;

void __syncwarp(uint32_t mask, int line) {
  collective(mask, "__syncwarp", line, nullptr, [](void* const*, uint32_t all, int) {
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

// ---- wrappers of PTX -----------------------------------------------------------------------------------------------

static bool in_shared_memory(const void* address) {
  return static_cast<size_t>(static_cast<const char*>(address) - arena) < arena_end;
}

static void check_row(const char* what, const void* address, int line) {
  if (!in_shared_memory(address)) fail(line, "%s: the address is not in shared memory", what);
  if (reinterpret_cast<uintptr_t>(address) % 16)
    fail(line, "%s: the address in shared memory is not a multiple of 16", what);
}

void cp_async16(void* destination, const void* source, int bytes, int line) {
  check_row("cp_async16", destination, line);
  if (bytes < 0 || bytes > 16) fail(line, "cp_async16: %d bytes", bytes);
  if (reinterpret_cast<uintptr_t>(source) % 16) fail(line, "cp_async16: the source is not at a multiple of 16");
  if (bytes > 0 && (!is_device_memory(source) || in_shared_memory(source)))
    fail(line, "cp_async16: the source is not in device memory");
  if (bytes > 0) check(source, static_cast<size_t>(bytes), How::Read);
  check(destination, 16, How::Write);
  std::memset(destination, 0xff, 16);
#if defined(MANTOU_RACE_CHECKER)
  mark(destination, 16, COPYING);
#endif
  running->copies.push_back({destination, source, bytes, running->committed});
}

void cp_async_commit() { running->committed++; }

void cp_async_wait_groups(int pending) {
  std::vector<Copy>& copies = running->copies;
  size_t kept = 0;
  for (const Copy& copy : copies) {
    if (copy.group + static_cast<unsigned>(pending) >= running->committed) {
      copies[kept++] = copy;
      continue;
    }
#if defined(MANTOU_RACE_CHECKER)
    mark(copy.destination, 16, UNWRITTEN);
#endif
    check(copy.destination, 16, How::Write);
    std::memset(copy.destination, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.bytes));
  }
  copies.resize(kept);
}

struct Rows {
  uint32_t* registers;
  const uint16_t* row;
};

// Lane l brings the address of row l % 8 of matrix l / 8; lane 4 g + t receives the elements 2 t and 2 t + 1 of row g
// of each matrix, or of its transpose.
template <bool transposed>
static void load_matrices(void* const* lanes, uint32_t, int) {
  for (unsigned lane = 0; lane < 32; lane++) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned m = 0; m < 4; m++) {
      const auto element = [&](unsigned row, unsigned column) {
        return static_cast<uint32_t>(static_cast<const Rows*>(lanes[m * 8 + row])->row[column]);
      };
      static_cast<Rows*>(lanes[lane])->registers[m] = transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                                                                 : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
    }
  }
}

template <bool transposed>
static void ldmatrix(uint32_t (&registers)[4], const void* row, int line) {
  check_row("ldmatrix", row, line);
  check(row, 16, How::Read);
  Rows own{registers, static_cast<const uint16_t*>(row)};
  collective(0xffffffffu, transposed ? "transposed ldmatrix" : "ldmatrix", line, &own, load_matrices<transposed>);
}

void ldmatrix_x4(uint32_t (&registers)[4], const void* row, int line) { ldmatrix<false>(registers, row, line); }
void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row, int line) { ldmatrix<true>(registers, row, line); }

// Fragments as in the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
  struct Own {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } own{d, a, {b0, b1}};
  collective(0xffffffffu, "mma", line, &own, [](void* const* lanes, uint32_t, int) {
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

// ---- runtime -----------------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const std::lock_guard<std::mutex> lock(launching);
  start_up();
  *memory = allocate(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFree(void* memory) {
  if (!memory) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(launching);
  const auto found = used.find(static_cast<size_t>(static_cast<char*>(memory) - region));
  if (found == used.end()) return cudaErrorInvalidValue;
  mark(memory, found->second, OUTSIDE);
#if !defined(__SANITIZE_ADDRESS__)
  madvise(memory, found->second, MADV_DONTNEED);
#endif
  used.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t) {
#if defined(MANTOU_RACE_CHECKER)
  if (is_device_memory(destination)) {
    mark(destination, bytes, WRITTEN);
    if (is_device_memory(source))
      std::memcpy(states + (static_cast<char*>(destination) - region) / 2,
                  states + (static_cast<const char*>(source) - region) / 2, bytes / 2);
  }
#endif
  std::memmove(destination, source, bytes);
  return cudaSuccess;
}

// Memory filled with 0xff counts as not written: so tests poison it.
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  mark(memory, bytes, value == 0xff ? UNWRITTEN : WRITTEN);
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated GPU", 9, 0, 4, REGION, SHARED_LIMIT, 48 << 10};
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = REGION;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : error == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}

// ---- what the compiler's instrumentation calls ---------------------------------------------------------------------

#if defined(MANTOU_RACE_CHECKER)
#define HOOKS(size)                                                                   \
  extern "C" void __tsan_read##size(void* p) { check_aligned(p, size, How::Read); }   \
  extern "C" void __tsan_write##size(void* p) { check_aligned(p, size, How::Write); } \
  extern "C" void __tsan_unaligned_read##size(void* p) { check(p, size, How::Read); } \
  extern "C" void __tsan_unaligned_write##size(void* p) { check(p, size, How::Write); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16) extern "C" void __tsan_read_range(void* p, size_t bytes) {
  if (bytes) check(p, bytes, How::Read);
}
extern "C" void __tsan_write_range(void* p, size_t bytes) {
  if (bytes) check(p, bytes, How::Write);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void**, void*) {}
extern "C" void __tsan_vptr_read(void**) {}
#endif
