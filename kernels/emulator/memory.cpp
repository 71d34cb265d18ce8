// Memory: device memory and a block's shared memory, full of NaN until something is written, what may be touched and by
// whom (the race checker), atomics, and the functions of the run time that allocate and copy.
#include "engine.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <map>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace emulator {
namespace {

// Device memory is a range of addresses; allocations lie GAP bytes apart, so that one can run into nothing.
constexpr size_t REGION = size_t{8} << 30, GAP = 4096;
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
#endif

// ---- allocation --------------------------------------------------------------------------------------------------

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

void open_array(size_t at, size_t bytes) {
  mark(arena + at, bytes, UNWRITTEN);
  std::memset(arena + at, 0xff, bytes);
}

}  // namespace

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

void start_memory() {
  if (region) return;
  region = static_cast<char*>(reserve(REGION));
#if defined(MANTOU_RACE_CHECKER)
  states = static_cast<uint8_t*>(reserve(REGION / 2));
  cells = static_cast<Cell*>(reserve(REGION / 2 * sizeof(Cell)));
#endif
  arena = static_cast<char*>(allocate(SHARED_LIMIT + STATIC_LIMIT));
  mark(arena, SHARED_LIMIT + STATIC_LIMIT, OUTSIDE);
}

void open_shared(size_t bytes) {
  dynamic_bytes = bytes;
  if (bytes) open_array(0, bytes);
  arena_end = (bytes + 15) / 16 * 16;
  static_bytes = 0;
  shared_arrays.clear();
}

void close_shared() { mark(arena, arena_end + 16, OUTSIDE); }

void* shared_array(const void* key, size_t bytes, size_t alignment) {
  for (const SharedArray& array : shared_arrays)
    if (array.key == key) return array.memory;
  constexpr size_t BETWEEN = 64;
  const size_t at = (arena_end + BETWEEN + alignment - 1) / alignment * alignment;
  static_bytes += bytes;
  if (static_bytes > STATIC_LIMIT || static_bytes + dynamic_bytes > SHARED_LIMIT)
    fail(0, "%zu bytes of static and %zu of dynamic shared memory are too much", static_bytes, dynamic_bytes);
  open_array(at, bytes);
  arena_end = at + bytes;
  shared_arrays.push_back({key, arena + at, bytes});
  return arena + at;
}

void* shared_dynamic() { return arena; }

bool is_device_memory(const void* address) {
  return region && static_cast<size_t>(static_cast<const char*>(address) - region) < REGION;
}

bool is_shared_memory(const void* address) {
  return static_cast<size_t>(static_cast<const char*>(address) - arena) < arena_end;
}

// ---- races -------------------------------------------------------------------------------------------------------

#if defined(MANTOU_RACE_CHECKER)
namespace {

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

}  // namespace

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

static void check_aligned(const void* address, size_t bytes, How how) {
  if (static_cast<size_t>(static_cast<const char*>(address) - region) >= REGION) return;
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    report("accesses a misaligned address", static_cast<size_t>(static_cast<const char*>(address) - region), nullptr);
  check(address, bytes, how);
}
#endif

// ---- atomics -----------------------------------------------------------------------------------------------------

template <typename T>
T atomic_add(T* address, T value) {
  check(address, sizeof(T), How::Atomic);
  const T before = *address;
  *address = before + value;
  return before;
}
template int atomic_add(int*, int);
template float atomic_add(float*, float);

int atomic_cas(int* address, int expected, int value) {
  check(address, sizeof(int), How::Atomic);
  const int before = *address;
  if (before == expected) *address = value;
  return before;
}

}  // namespace emulator

using namespace emulator;

// ---- runtime -----------------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const std::lock_guard<std::mutex> lock(launching);
  start_memory();
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
