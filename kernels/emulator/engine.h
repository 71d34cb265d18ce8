// What the files of the engine share: the threads that run, and what memory is.
#pragma once

#include <string>
#include <vector>

#include "emulator.h"

namespace emulator {

// ---- engine.cpp: threads -------------------------------------------------------------------------------------------

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t SHARED_LIMIT = 227 << 10, STATIC_LIMIT = 48 << 10, REGION = size_t{8} << 30;  // of all device memory

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
  const char* waiting;  // for what, and where
  int line;
  unsigned barriers;   // passed
  unsigned committed;  // groups of copies
  std::vector<Copy> copies;
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

extern Fiber* running;
extern Warp warps[MAX_THREADS / 32];
extern unsigned launches, blocks_run;
extern uint32_t block_number;
extern bool failed;

// ---- memory.cpp: memory and its checks -----------------------------------------------------------------------------

enum : uint8_t { OUTSIDE, UNWRITTEN, COPYING, WRITTEN };  // what memory is
enum class How { Read, Write, Atomic };

void* reserve(size_t bytes);  // addresses; memory where it is touched

void* allocate(size_t bytes);  // null where there is not enough
bool release(void* memory);    // false where nothing was allocated

// Of the host, or of device memory that is allocated. Null, or what is wrong.
const char* copy(void* destination, const void* source, size_t bytes);
const char* fill(void* memory, int value, size_t bytes);

void open_shared(size_t dynamic_bytes);  // a block starts with shared memory of its own
bool is_shared_memory(const void* address);

void mark(const void* memory, size_t bytes, uint8_t state);
#if defined(MANTOU_RACE_CHECKER)
void check(const void* address, size_t bytes, How how);
#else
inline void check(const void*, size_t, How) {}
#endif

}  // namespace emulator
