// What the files of the engine share: the thread that runs, and what memory is.
#pragma once

#include "runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace emulator {

enum class State { Ready, Waiting, Done };

struct Copy {
  void* destination;
  const void* source;
  int bytes;
  unsigned group;
};

struct Fiber {
  void* stack;  // where it stands
  State state;
  unsigned barriers, syncs;  // passed: __syncthreads, __syncwarp
  unsigned committed;        // groups of copies
  std::vector<Copy> copies;
};

extern Fiber* running;
extern unsigned launches, blocks_run;
extern uint32_t block_number;

enum : uint8_t { OUTSIDE, UNWRITTEN, COPYING, WRITTEN };  // what memory is
enum class How { Read, Write, Atomic };

void* reserve(size_t bytes);  // addresses; memory where it is touched
void mark(const void* memory, size_t bytes, uint8_t state);
void open_shared(size_t dynamic_bytes);  // a block starts with shared memory of its own
// That it is a multiple of 16 in shared memory.
void check_row(const char* what, const void* address, int line);
#if defined(MANTOU_RACE_CHECKER)
void check(const void* address, size_t bytes, How how);
#else
inline void check(const void*, size_t, How) {}
#endif

}  // namespace emulator
