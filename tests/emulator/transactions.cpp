// Counts what the kernels ask of a GPU's memory (bench/gpu/transactions.ts): for every access of a warp, the sectors of 32
// bytes of device memory that it touches, or how many times over shared memory has to answer it.
//
// Linked with the emulator and with kernels that are compiled with -fsanitize=thread, it takes the calls of the
// instrumentation, and by the linker's --wrap those of copies, ldmatrix, atomics and launches. Lanes make an access together
// that stands at the same place of the code and is for each of them the n-th there since its block began.
#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <set>
#include <tuple>
#include <unordered_map>

#include "../../kernels/emulator/engine.h"

using namespace emulator;

namespace {

enum Kind : uint8_t { LOAD, STORE, ATOMIC, SHARED_LOAD, SHARED_STORE };
constexpr const char* NAMES[] = {"load", "store", "atomic", "shared load", "shared store"};
constexpr uintptr_t SECTOR = 32, BANK = 4, BANKS = 32;

struct Access {
  uintptr_t code;
  Kind kind;
  uint8_t lane, bytes;
  uint32_t warp, time;
  uintptr_t address;
  auto together() const { return std::tie(code, kind, warp, time); }
};

// Bytes of sectors for device memory, answers for shared memory; at least: if lanes' accesses lay side by side.
struct Count {
  long long requests, asked, moved, least;
};

unsigned block;
std::vector<Access> accesses;                               // of the block
std::unordered_map<uintptr_t, uint32_t> times[1024];        // by thread, then code and kind
std::map<std::pair<uintptr_t, Kind>, Count> counts;         // of the launch
std::set<uintptr_t> touched[3];                             // sectors, by kind

uintptr_t number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

// The pieces of `size` bytes that lanes [first, end) of an access touch.
std::set<uintptr_t> pieces(const Access* from, const Access* to, uintptr_t size, unsigned first = 0, unsigned end = 32) {
  std::set<uintptr_t> found;
  for (; from < to; from++)
    for (uintptr_t i = from->address / size; first <= from->lane && from->lane < end && i * size < from->address + from->bytes; i++)
      found.insert(i);
  return found;
}

void add_up(const Access* from, const Access* to) {
  Count& count = counts[{from->code, from->kind}];
  count.requests++;
  if (from->kind < SHARED_LOAD) {
    const std::set<uintptr_t> sectors = pieces(from, to, SECTOR);
    const uintptr_t asked = pieces(from, to, 1).size();
    count.asked += static_cast<long long>(asked);
    count.moved += static_cast<long long>(sectors.size() * SECTOR);
    count.least += static_cast<long long>((asked + SECTOR - 1) / SECTOR * SECTOR);
    touched[from->kind].insert(sectors.begin(), sectors.end());
    return;
  }
  // As many lanes at a time as can use all banks. A word that several want is read once.
  const unsigned lanes = from->bytes <= 4 ? 32 : from->bytes == 8 ? 16 : 8;
  for (unsigned lane = 0; lane < 32; lane += lanes) {
    long long words[BANKS] = {};
    for (uintptr_t word : pieces(from, to, BANK, lane, lane + lanes)) words[word % BANKS]++;
    const long long most = *std::max_element(words, words + BANKS);
    count.moved += most;
    count.least += most > 0;
  }
  for (; from < to; from++) count.asked += from->bytes;
}

void finish_block() {
  std::sort(accesses.begin(), accesses.end(),
            [](const Access& a, const Access& b) { return a.together() < b.together(); });
  for (size_t i = 0, end; i < accesses.size(); i = end) {
    for (end = i; end < accesses.size() && accesses[end].together() == accesses[i].together();) end++;
    add_up(&accesses[i], accesses.data() + end);
  }
  accesses.clear();
  for (auto& of_thread : times) of_thread.clear();
}

void note(const void* code, const void* address, size_t bytes, Kind kind) {
  if (!running || bytes == 0 || !is_device_memory(address)) return;
  if (block != blocks_run) finish_block(), block = blocks_run;
  const uintptr_t shared_at = number(address) - number(shared_dynamic());
  const bool shared = shared_at < SHARED_LIMIT + (48 << 10);
  if (shared) kind = kind == LOAD ? SHARED_LOAD : SHARED_STORE;
  const unsigned thread = thread_index.x;
  for (size_t at = 0; at < bytes; at += 16) {  // no access is larger than 16 bytes
    const uint32_t time = times[thread][number(code) * 8 + kind]++;
    accesses.push_back({number(code), kind, static_cast<uint8_t>(thread % 32),
                        static_cast<uint8_t>(std::min<size_t>(bytes - at, 16)), thread / 32, time,
                        (shared ? shared_at : number(address)) + at});
  }
}

// The launch that has ended, and its accesses by their place in the file that they were compiled to.
void write(const char* name, dim3 grid, dim3 threads) {
  const char* const path = std::getenv("MANTOU_TRANSACTIONS");
  std::FILE* const file = path ? std::fopen(path, "a") : nullptr;
  if (file) {
    const auto bytes = [](Kind kind) { return touched[kind].size() * SECTOR; };
    std::fprintf(file, "launch\t%s\t%u\t%u\t%zu\t%zu\n", name, grid.x * grid.y, threads.x, bytes(LOAD),
                 bytes(STORE) + bytes(ATOMIC));
    for (const auto& [of, c] : counts) {
      Dl_info place;
      dladdr(reinterpret_cast<void*>(of.first), &place);
      std::fprintf(file, "%s\t%zx\t%lld\t%lld\t%lld\t%lld\n", NAMES[of.second], of.first - 1 - number(place.dli_fbase),
                   c.requests, c.asked, c.moved, c.least);
    }
    std::fclose(file);
  }
  counts.clear();
  for (auto& sectors : touched) sectors.clear();
}

}  // namespace

#define CODE __builtin_return_address(0)
#define HOOKS(size)                                                                   \
  extern "C" void __tsan_read##size(void* p) { note(CODE, p, size, LOAD); }             \
  extern "C" void __tsan_write##size(void* p) { note(CODE, p, size, STORE); }           \
  extern "C" void __tsan_unaligned_read##size(void* p) { note(CODE, p, size, LOAD); }   \
  extern "C" void __tsan_unaligned_write##size(void* p) { note(CODE, p, size, STORE); }
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
extern "C" void __tsan_read_range(void* p, size_t bytes) { note(CODE, p, bytes, LOAD); }
extern "C" void __tsan_write_range(void* p, size_t bytes) { note(CODE, p, bytes, STORE); }
extern "C" void __tsan_init() {}
extern "C" void __tsan_vptr_update(void*, void*) {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

// The functions that the linker wraps, by their mangled names: what calls one comes here first.
#define WRAP(result, symbol, parameters, arguments, before)           \
  result real_##symbol parameters asm("__real_" #symbol);             \
  result wrap_##symbol parameters asm("__wrap_" #symbol);             \
  result wrap_##symbol parameters {                                   \
    before;                                                           \
    return real_##symbol arguments;                                   \
  }
WRAP(void, _Z10cp_async16PvPKvii, (void* to, const void* from, int bytes, int line), (to, from, bytes, line),
     (note(CODE, from, static_cast<size_t>(bytes), LOAD), note(CODE, to, 16, STORE)))
WRAP(void, _Z11ldmatrix_x4RA4_jmi, (uint32_t (&registers)[4], SharedAddress row, int line), (registers, row, line),
     note(CODE, reinterpret_cast<const void*>(row), 16, LOAD))
WRAP(void, _Z17ldmatrix_x4_transRA4_jmi, (uint32_t (&registers)[4], SharedAddress row, int line), (registers, row, line),
     note(CODE, reinterpret_cast<const void*>(row), 16, LOAD))
WRAP(int, _ZN8emulator10atomic_addIiEET_PS1_S1_, (int* to, int value), (to, value), note(CODE, to, 4, ATOMIC))
WRAP(float, _ZN8emulator10atomic_addIfEET_PS1_S1_, (float* to, float value), (to, value), note(CODE, to, 4, ATOMIC))

using Thread = const std::function<void()>&;
cudaError_t real_run(const char*, dim3, dim3, size_t, Thread) asm("__real__ZN8emulator3runEPKc4dim3S2_mRKSt8functionIFvvEE");
cudaError_t wrap_run(const char*, dim3, dim3, size_t, Thread) asm("__wrap__ZN8emulator3runEPKc4dim3S2_mRKSt8functionIFvvEE");
cudaError_t wrap_run(const char* name, dim3 grid, dim3 threads, size_t shared, Thread thread) {
  const cudaError_t error = real_run(name, grid, threads, shared, thread);
  finish_block();
  write(name, grid, threads);
  return error;
}
