// Device memory, which is ordinary memory here, and streams, which have nothing to do: every operation has finished
// when its call returns.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

#include "graph.h"

using mantou::LARGE_PAGE;

constexpr int64_t ALIGNMENT = 256;
constexpr int64_t MIB = int64_t{1} << 20;

void mantou::advise_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  madvise(memory, static_cast<size_t>(bytes), MADV_HUGEPAGE);  // may be refused
#else
  (void)memory, (void)bytes;
#endif
}

// calloc takes large blocks as untouched zero pages, so they cost nothing before they are used. It aligns to 16 bytes
// only: the block begins at the next multiple of its alignment, with calloc's own address in the eight bytes before it.
// What can fill a large page is aligned to one: fewer pages mean fewer misses in the address translation.
static int32_t allocate(const char* function, int64_t bytes, void** memory) {
  *memory = nullptr;
  CHECK(bytes >= 0, "%s: bytes is %lld; it must not be negative", function, static_cast<long long>(bytes));
  // Systems that overcommit promise any size and kill the process when it is used; what can never fit is refused.
  const int64_t page = sysconf(_SC_PAGESIZE), pages = sysconf(_SC_PHYS_PAGES);
  const bool fits = pages <= 0 || bytes / page <= pages;
  const int64_t alignment = bytes < LARGE_PAGE ? ALIGNMENT : LARGE_PAGE;
  char* block = fits ? static_cast<char*>(std::calloc(1, static_cast<size_t>(bytes + alignment))) : nullptr;
  if (!block) {
    return mantou::fail(MANTOU_OUT_OF_MEMORY, "%s: no memory for %lld bytes (the machine has %lld MiB)", function,
                        static_cast<long long>(bytes), static_cast<long long>(page * pages / MIB));
  }
  const int64_t past = reinterpret_cast<intptr_t>(block) % alignment;
  char* aligned = block + (alignment - past);  // a multiple of 16 bytes on, and at least 16
  std::memcpy(aligned - sizeof block, &block, sizeof block);
  if (alignment == LARGE_PAGE) mantou::advise_large_pages(aligned, bytes / LARGE_PAGE * LARGE_PAGE);
  *memory = aligned;
  return MANTOU_OK;
}

static void release(void* memory) {
  if (!memory) return;
  char* block;
  std::memcpy(&block, static_cast<char*>(memory) - sizeof block, sizeof block);
  std::free(block);
}

int32_t mantou_malloc(mantou_context* context, int64_t bytes, void** memory) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(memory);
  return allocate(__func__, bytes, memory);
}

int32_t mantou_free(mantou_context* context, void* memory) {
  CHECK_NOT_NULL(context);
  release(memory);
  return MANTOU_OK;
}

int32_t mantou_malloc_host(mantou_context* context, int64_t bytes, void** memory) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(memory);
  return allocate(__func__, bytes, memory);
}

int32_t mantou_free_host(mantou_context* context, void* memory) {
  CHECK_NOT_NULL(context);
  release(memory);
  return MANTOU_OK;
}

// ---- copies ------------------------------------------------------------------------------------------------------

static int32_t copy(const mantou_context* context, void* destination, const void* source, int64_t bytes) {
  char* to = static_cast<char*>(destination);
  const char* from = static_cast<const char*>(source);
  if (to < from + bytes && from < to + bytes) {
    std::memmove(to, from, static_cast<size_t>(bytes));
    return MANTOU_OK;
  }
  mantou::parallel_for(context, bytes, MIB, [=](int64_t begin, int64_t end, int) {
    std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
  });
  return MANTOU_OK;
}

int32_t mantou_copy(mantou_context* context, void* destination, const void* source, int64_t bytes) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_NOT_NEGATIVE(bytes);
  if (bytes == 0) return MANTOU_OK;
  CHECK_NOT_NULL(destination, source);
  return copy(context, destination, source, bytes);
}

#define CHECK_STREAM(stream)                                                                   \
  CHECK((stream) == MANTOU_COMPUTE_STREAM || (stream) == MANTOU_COPY_STREAM,                   \
        "%s: " #stream " is %d; streams are 0 (compute) and 1 (copy)", __func__, (stream))

int32_t mantou_copy_async(mantou_context* context, void* destination, const void* source, int64_t bytes,
                          int32_t stream) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(bytes);
  CHECK_STREAM(stream);
  if (bytes > 0) CHECK_NOT_NULL(destination, source);
  return mantou::run_or_record(__func__, context, [=] { return copy(context, destination, source, bytes); });
}

int32_t mantou_fill(mantou_context* context, void* memory, int32_t value, int64_t bytes) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(bytes);
  CHECK(value >= 0 && value <= 255, "%s: value is %d; a byte is 0 to 255", __func__, value);
  if (bytes > 0) CHECK_NOT_NULL(memory);
  return mantou::run_or_record(__func__, context, [=] {
    mantou::parallel_for(context, bytes, MIB, [=](int64_t begin, int64_t end, int) {
      std::memset(static_cast<char*>(memory) + begin, value, static_cast<size_t>(end - begin));
    });
    return MANTOU_OK;
  });
}

// ---- streams -----------------------------------------------------------------------------------------------------

int32_t mantou_stream_wait(mantou_context* context, int32_t waiting, int32_t signalling) {
  CHECK_NOT_NULL(context);
  CHECK_STREAM(waiting);
  CHECK_STREAM(signalling);
  return MANTOU_OK;
}

int32_t mantou_synchronize(mantou_context* context) {
  CHECK_NOT_NULL(context);
  return MANTOU_OK;
}

int32_t mantou_mark(mantou_context* context, int32_t mark) {
  CHECK_NOT_NULL(context);
  CHECK(mark == 0 || mark == 1, "%s: mark is %d; it must be 0 or 1", __func__, mark);
  context->marks[mark] = std::chrono::steady_clock::now();
  return MANTOU_OK;
}

int32_t mantou_time_between_marks(mantou_context* context, double* milliseconds) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(milliseconds);
  *milliseconds = std::chrono::duration<double, std::milli>(context->marks[1] - context->marks[0]).count();
  return MANTOU_OK;
}

int32_t mantou_wait_for_mark(mantou_context* context, int32_t mark) {
  CHECK_NOT_NULL(context);
  CHECK(mark == 0 || mark == 1, "%s: mark is %d; it must be 0 or 1", __func__, mark);
  return MANTOU_OK;
}
