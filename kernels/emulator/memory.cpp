// Memory: device memory and a block's shared memory, full of NaN until something is written, what may be touched and by
// whom (the race checker), atomics, and asynchronous copies.
#include "engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>

namespace emulator {
namespace {

// Device memory is a range of addresses; allocations lie GAP bytes apart, so that one can run into nothing.
constexpr size_t GAP = 4096;
char* const region = static_cast<char*>(reserve(DEVICE_BYTES));
std::map<size_t, size_t> used;  // offset, size

size_t offset_of(const void* address) { return static_cast<size_t>(static_cast<const char*>(address) - region); }

#if defined(MANTOU_RACE_CHECKER)
// The race checker keeps the state and the last accesses of every two bytes of device memory.
struct Access {
  uint32_t launch, block, barriers, syncs;
  uint32_t lanes;  // of the warp
  uint16_t warp;
  bool atomic;
};
constexpr uint16_t MANY_WARPS = 0xffff;
constexpr uint32_t MANY_BLOCKS = 0xffffffff;
struct Cell {
  Access write, read;
};
uint8_t* const states = static_cast<uint8_t*>(reserve(DEVICE_BYTES / 2));
Cell* const cells = static_cast<Cell*>(reserve(DEVICE_BYTES / 2 * sizeof(Cell)));
#endif

// Whether it is memory of the host, or all of it within one allocation.
bool is_allocated(const void* memory, size_t bytes) {
  if (!is_device_memory(memory)) return true;
  const auto after = used.upper_bound(offset_of(memory));
  return after != used.begin() && offset_of(memory) + bytes <= std::prev(after)->first + std::prev(after)->second;
}

// Shared memory: a block's dynamic array first, then the static ones.
constexpr size_t STATIC_LIMIT = 48 << 10, ARENA = SHARED_LIMIT + STATIC_LIMIT, BETWEEN = 64;
char* const arena = [] {
  char* const memory = static_cast<char*>(allocate(ARENA));
  mark(memory, ARENA, OUTSIDE);
  return memory;
}();
size_t arena_end, dynamic_bytes, static_bytes;
std::vector<std::pair<const void*, void*>> static_arrays;  // by key

void* open_array(size_t at, size_t bytes) {
  mark(arena + at, bytes, UNWRITTEN);
  std::memset(arena + at, 0xff, bytes);
  arena_end = (at + bytes + 15) / 16 * 16;
  return arena + at;
}

}  // namespace

void* reserve(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory != MAP_FAILED) return memory;
  std::fprintf(stderr, "emulator: cannot reserve %zu bytes of addresses\n", bytes);
  std::abort();
}

void mark(const void* memory, size_t bytes, uint8_t state) {
#if defined(MANTOU_RACE_CHECKER)
  const size_t at = offset_of(memory);
  std::memset(states + at / 2, state, (at + bytes + 1) / 2 - at / 2);
#endif
  if (state == OUTSIDE)
    ASAN_POISON_MEMORY_REGION(memory, bytes);
  else
    ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
}

void* allocate(size_t bytes) {
  size_t at = GAP;
  for (const auto& [offset, size] : used) {  // the first place that is large enough
    if (offset >= at + bytes + GAP) break;
    at = (offset + size + GAP + 1023) / 1024 * 1024;
  }
  if (at + bytes + GAP > DEVICE_BYTES) return nullptr;
  used[at] = bytes;
  char* memory = region + at;
  mark(memory - GAP, GAP, OUTSIDE);
  mark(memory + bytes, GAP, OUTSIDE);
  mark(memory, bytes, UNWRITTEN);
  std::memset(memory, 0xff, bytes);
  return memory;
}

bool release(void* memory) {
  const auto found = used.find(offset_of(memory));
  if (found == used.end()) return false;
  mark(memory, found->second, OUTSIDE);
  madvise(memory, found->second, MADV_DONTNEED);
  used.erase(found);
  return true;
}

cudaError_t copy(void* destination, const void* source, size_t bytes) {
  if (!is_allocated(destination, bytes) || !is_allocated(source, bytes)) return "a copy outside of any allocation";
  std::memmove(destination, source, bytes);
#if defined(MANTOU_RACE_CHECKER)
  if (!is_device_memory(destination)) return cudaSuccess;
  mark(destination, bytes, WRITTEN);
  if (is_device_memory(source))
    std::memmove(states + offset_of(destination) / 2, states + offset_of(source) / 2, bytes / 2);
#endif
  return cudaSuccess;
}

// Memory filled with 0xff counts as not written: so tests poison it.
cudaError_t fill(void* memory, int value, size_t bytes) {
  if (!is_device_memory(memory) || !is_allocated(memory, bytes)) return "a fill outside of any allocation";
  std::memset(memory, value, bytes);
  mark(memory, bytes, value == 0xff ? UNWRITTEN : WRITTEN);
  return cudaSuccess;
}

// ---- shared memory -------------------------------------------------------------------------------------------------

void open_shared(size_t bytes) {
  mark(arena, arena_end, OUTSIDE);  // of the block before
  static_arrays.clear();
  static_bytes = 0;
  dynamic_bytes = bytes;
  open_array(0, bytes);
}

void* shared_array(const void* key, size_t bytes) {
  for (const auto& [known, memory] : static_arrays)
    if (known == key) return memory;
  static_bytes += bytes;
  if (static_bytes > STATIC_LIMIT || static_bytes + dynamic_bytes > SHARED_LIMIT)
    fail(0, "%zu bytes of static and %zu of dynamic shared memory are too much", static_bytes, dynamic_bytes);
  return static_arrays.emplace_back(key, open_array(arena_end + BETWEEN, bytes)).second;
}

void* shared_dynamic() { return arena; }
bool is_device_memory(const void* address) { return offset_of(address) < DEVICE_BYTES; }

// ---- races -------------------------------------------------------------------------------------------------------

#if defined(MANTOU_RACE_CHECKER)
namespace {

// Whether what `before` did is over, for the running thread: by a launch, a barrier or a __syncwarp in between.
bool is_ordered(const Access& before, const Access& own) {
  if (before.launch != own.launch) return true;
  if (before.block != own.block) return false;
  if (before.barriers < own.barriers) return true;
  if (before.warp != own.warp) return false;
  return before.syncs < own.syncs || before.lanes == own.lanes;
}

// A block's shared memory is new, so there the block's number in time takes the launch's place.
Access access_now(bool shared, bool atomic) {
  return {shared ? 0x80000000u | blocks_run : launches,
          block_number,
          running->barriers,
          running->syncs,
          1u << lane(),
          static_cast<uint16_t>(thread_index.x / 32u),
          atomic};
}

// Two accesses in one, which what follows has to be in order with.
Access both(Access before, const Access& own) {
  if (before.block != own.block) before.block = MANY_BLOCKS;
  if (before.warp != own.warp) before.warp = MANY_WARPS;
  before.lanes |= own.lanes;
  before.syncs = std::max(before.syncs, own.syncs);
  return before;
}

void report(const char* what, size_t at, const Access* other = nullptr) {
  const auto [start, size] = *std::prev(used.upper_bound(std::max(at, GAP)));  // what begins there or before it
  char who[96] = "";
  if (other && (other->block == MANY_BLOCKS || other->warp == MANY_WARPS))
    std::snprintf(who, sizeof who, " (several warps)");
  else if (other)
    std::snprintf(who, sizeof who, " (block %u, warp %u, lanes %08x)", other->block, other->warp, other->lanes);
  fail(0, "%s%s: byte %zu of %s", what, who, at - start, region + start == arena ? "shared memory" : "an allocation");
}

}  // namespace

void check(const void* address, size_t bytes, How how) {
  const size_t first = offset_of(address);
  if (first >= DEVICE_BYTES || bytes == 0 || !running) return;
  const Access own = access_now(first - offset_of(arena) < ARENA, how == How::Atomic);
  for (size_t i = first / 2; i <= (first + bytes - 1) / 2; i++) {
    const size_t at = i * 2;
    if (states[i] == OUTSIDE)
      report(how == How::Read ? "reads outside of any array" : "writes outside of any array", at);
    if (states[i] == COPYING) report("touches the destination of an asynchronous copy before waiting for it", at);
    if (states[i] == UNWRITTEN && how != How::Write) report("reads what nothing has written", at);
    Access &write = cells[i].write, &read = cells[i].read;
    const bool after_write = is_ordered(write, own);
    if (!after_write && !(write.atomic && own.atomic))
      report(how == How::Read ? "race: reads what another thread writes" : "race: writes what another thread writes",
             at, &write);
    const bool after_read = is_ordered(read, own);
    if (how == How::Read) {
      read = after_read ? own : both(read, own);
      continue;
    }
    if (!after_read) report("race: writes what another thread reads", at, &read);
    write = after_write ? own : both(write, own);
    read.launch = 0;
    states[i] = WRITTEN;
  }
}

static void check_aligned(const void* address, size_t bytes, How how) {
  if (is_device_memory(address) && reinterpret_cast<uintptr_t>(address) % bytes != 0)
    report("accesses a misaligned address", offset_of(address));
  check(address, bytes, how);
}
#endif

template <typename T>
T atomic_add(T* address, T value) {
  check(address, sizeof(T), How::Atomic);
  return std::exchange(*address, *address + value);
}
template int atomic_add(int*, int);
template float atomic_add(float*, float);

}  // namespace emulator

using namespace emulator;

int atomicCAS(int* address, int expected, int value) {
  check(address, sizeof(int), How::Atomic);
  return std::exchange(*address, *address == expected ? value : *address);
}

// ---- asynchronous copies ------------------------------------------------------------------------------------------

static bool is_shared_memory(const void* address) { return offset_of(address) - offset_of(arena) < arena_end; }

void emulator::check_row(const char* what, const void* address, int line) {
  if (!is_shared_memory(address) || reinterpret_cast<uintptr_t>(address) % 16)
    fail(line, "%s: the address is not a multiple of 16 in shared memory", what);
}

void cp_async16(void* destination, const void* source, int bytes, int line) {
  check_row("cp_async16", destination, line);
  if (bytes < 0 || bytes > 16) fail(line, "cp_async16: %d bytes", bytes);
  const bool in_device_memory = is_device_memory(source) && !is_shared_memory(source);
  if (reinterpret_cast<uintptr_t>(source) % 16 || (bytes > 0 && !in_device_memory))
    fail(line, "cp_async16: the source is not a multiple of 16 in device memory");
  check(source, static_cast<size_t>(bytes), How::Read);
  check(destination, 16, How::Write);
  std::memset(destination, 0xff, 16);
  mark(destination, 16, COPYING);
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
    mark(copy.destination, 16, UNWRITTEN);
    check(copy.destination, 16, How::Write);
    std::memset(copy.destination, 0, 16);
    std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.bytes));
  }
  copies.resize(kept);
}

// ---- what the compiler's instrumentation calls ---------------------------------------------------------------------

#if defined(MANTOU_RACE_CHECKER)
#define HOOKS(size)                                                                   \
  extern "C" void __tsan_read##size(void* p) { check_aligned(p, size, How::Read); }   \
  extern "C" void __tsan_write##size(void* p) { check_aligned(p, size, How::Write); } \
  extern "C" void __tsan_unaligned_read##size(void* p) { check(p, size, How::Read); } \
  extern "C" void __tsan_unaligned_write##size(void* p) { check(p, size, How::Write); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t bytes) { check(p, bytes, How::Read); }
extern "C" void __tsan_write_range(void* p, size_t bytes) { check(p, bytes, How::Write); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
#endif
