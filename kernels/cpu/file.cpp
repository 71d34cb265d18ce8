// Token files: mapped read-only, read with 64-bit offsets.
//
// Touching a mapped page that the file no longer has kills the process (SIGBUS), so every read first asks the file
// system whether the file is still as long as it was when it was mapped.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <new>

#include "../errors.h"

struct mantou_file {
  char* path;
  int descriptor;
  const unsigned char* data;  // null where the file is empty
  int64_t size;               // when it was mapped
};

static void close_file(mantou_file* file) {
  if (file->data) munmap(const_cast<unsigned char*>(file->data), static_cast<size_t>(file->size));
  if (file->descriptor >= 0) close(file->descriptor);
  std::free(file->path);
  delete file;
}

static int32_t io_error(const char* function, const char* what, const char* path) {
  return mantou::fail(MANTOU_IO_ERROR, "%s: cannot %s '%s': %s", function, what, path, std::strerror(errno));
}

static int32_t open_file(const char* function, const char* path, mantou_file* file) {
  // O_NONBLOCK: opening a pipe without a writer would wait forever.
  do file->descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  while (file->descriptor < 0 && errno == EINTR);
  if (file->descriptor < 0) return io_error(function, "open", path);
  struct stat status;
  if (fstat(file->descriptor, &status) != 0) return io_error(function, "examine", path);
  if (!S_ISREG(status.st_mode))
    return mantou::fail(MANTOU_IO_ERROR, "%s: cannot map '%s': not a regular file", function, path);
  file->size = status.st_size;
  if (file->size == 0) return MANTOU_OK;
  void* data = mmap(nullptr, static_cast<size_t>(file->size), PROT_READ, MAP_SHARED, file->descriptor, 0);
  if (data == MAP_FAILED) return io_error(function, "map", path);
  file->data = static_cast<const unsigned char*>(data);
  return MANTOU_OK;
}

int32_t mantou_file_map(const char* path, mantou_file** file) {
  CHECK_NOT_NULL(path, file);
  *file = nullptr;
  mantou_file* opened = new (std::nothrow) mantou_file{strdup(path), -1, nullptr, 0};
  if (!opened || !opened->path) {
    delete opened;
    return mantou::fail(MANTOU_OUT_OF_MEMORY, "%s: no memory for the handle of '%s'", __func__, path);
  }
  const int32_t status = open_file(__func__, path, opened);
  if (status != MANTOU_OK) {
    close_file(opened);
    return status;
  }
  *file = opened;
  return MANTOU_OK;
}

int32_t mantou_file_unmap(mantou_file* file) {
  if (file) close_file(file);
  return MANTOU_OK;
}

static int32_t present_size(const char* function, const mantou_file* file, int64_t* bytes) {
  struct stat status;
  if (fstat(file->descriptor, &status) != 0) return io_error(function, "examine", file->path);
  *bytes = status.st_size;
  return MANTOU_OK;
}

static int32_t check_unshortened(const char* function, const mantou_file* file) {
  int64_t size = 0;
  const int32_t status = present_size(function, file, &size);
  if (status != MANTOU_OK) return status;
  if (size < file->size) {
    return mantou::fail(MANTOU_IO_ERROR, "%s: '%s' has shrunk from %lld to %lld bytes since it was opened", function,
                        file->path, static_cast<long long>(file->size), static_cast<long long>(size));
  }
  return MANTOU_OK;
}

int32_t mantou_file_size(mantou_file* file, int64_t* bytes) {
  CHECK_NOT_NULL(file, bytes);
  return present_size(__func__, file, bytes);
}

int32_t mantou_file_read(mantou_file* file, int64_t offset, int64_t bytes, void* destination) {
  CHECK_NOT_NULL(file);
  CHECK_NOT_NEGATIVE(offset, bytes);
  CHECK(offset <= file->size && bytes <= file->size - offset,
        "%s: %lld bytes at offset %lld reach past the end of '%s' (%lld bytes)", __func__,
        static_cast<long long>(bytes), static_cast<long long>(offset), file->path, static_cast<long long>(file->size));
  if (bytes == 0) return MANTOU_OK;
  CHECK_NOT_NULL(destination);
  const int32_t status = check_unshortened(__func__, file);
  if (status != MANTOU_OK) return status;
  std::memcpy(destination, file->data + offset, static_cast<size_t>(bytes));
  return MANTOU_OK;
}

// ---- gathering tokens --------------------------------------------------------------------------------------------

// The file is little-endian, as every machine that this runs on is.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token files are read as they lie");

template <typename Token>
static uint32_t token_at(const unsigned char* array, int64_t index) {
  Token token;
  std::memcpy(&token, array + index * static_cast<int64_t>(sizeof token), sizeof token);
  return token;
}

// Copies the runs, whose bounds have been checked, or nothing if a token is >= vocab_size.
template <typename Token>
static int32_t gather(const char* function, const mantou_file* file, int64_t offset, int64_t count, int64_t length,
                      const double* starts, int64_t vocab_size, int32_t* tokens) {
  const unsigned char* array = file->data + offset;
  for (int64_t run = 0; run < count; run++) {
    const int64_t start = static_cast<int64_t>(starts[run]);
    uint32_t largest = 0;
    for (int64_t i = start; i < start + length; i++) {
      const uint32_t token = token_at<Token>(array, i);
      largest = token > largest ? token : largest;
    }
    if (largest < vocab_size) continue;
    int64_t bad = start;
    while (token_at<Token>(array, bad) != largest) bad++;
    return mantou::fail(MANTOU_INVALID_ARGUMENT, "%s: token %u at position %lld of '%s' is not below vocab_size, %lld",
                        function, largest, static_cast<long long>(bad), file->path, static_cast<long long>(vocab_size));
  }
  for (int64_t run = 0; run < count; run++) {
    const int64_t start = static_cast<int64_t>(starts[run]);
    for (int64_t i = 0; i < length; i++)
      tokens[run * length + i] = static_cast<int32_t>(token_at<Token>(array, start + i));
  }
  return MANTOU_OK;
}

// What gather and prefetch have in common: runs within the file.
static int32_t check_runs(const char* function, const mantou_file* file, int64_t offset, int32_t width, int64_t count,
                          int64_t length, const double* starts) {
  const auto refuse = [&](auto... arguments) { return mantou::fail(MANTOU_INVALID_ARGUMENT, arguments...); };
  if (width != 2 && width != 4) return refuse("%s: width is %d; tokens are 2 or 4 bytes wide", function, width);
  if (offset < 0 || offset > file->size)
    return refuse("%s: offset %lld is not within '%s' (%lld bytes)", function, static_cast<long long>(offset),
                  file->path, static_cast<long long>(file->size));
  const int64_t total = (file->size - offset) / width;
  for (int64_t i = 0; i < count; i++) {
    // Compared as doubles first: a conversion of NaN or of what does not fit is undefined.
    const bool whole = starts[i] >= 0 && starts[i] <= 9007199254740992.0 &&
                       static_cast<double>(static_cast<int64_t>(starts[i])) == starts[i];
    if (!whole)
      return refuse("%s: starts[%lld] is %g; it must be a whole number from 0", function, static_cast<long long>(i),
                    starts[i]);
    if (length > total || static_cast<int64_t>(starts[i]) > total - length)
      return refuse("%s: run %lld, %lld tokens from token %.0f, reaches past the end of '%s' (%lld tokens)", function,
                    static_cast<long long>(i), static_cast<long long>(length), starts[i], file->path,
                    static_cast<long long>(total));
  }
  return MANTOU_OK;
}

int32_t mantou_file_gather(mantou_file* file, int64_t offset, int32_t width, int64_t count, int64_t length,
                           const double* starts, int64_t vocab_size, int32_t* tokens) {
  CHECK_NOT_NULL(file);
  CHECK_NOT_NEGATIVE(count, length);
  CHECK(vocab_size >= 1 && vocab_size <= int64_t{1} << 31, "%s: vocab_size is %lld; it must be 1 to 2^31", __func__,
        static_cast<long long>(vocab_size));
  if (count > 0) CHECK_NOT_NULL(starts);
  int32_t status = check_runs(__func__, file, offset, width, length == 0 ? 0 : count, length, starts);
  if (status != MANTOU_OK || count == 0 || length == 0) return status;
  CHECK_NOT_NULL(tokens);
  status = check_unshortened(__func__, file);
  if (status != MANTOU_OK) return status;
  return width == 2 ? gather<uint16_t>(__func__, file, offset, count, length, starts, vocab_size, tokens)
                    : gather<uint32_t>(__func__, file, offset, count, length, starts, vocab_size, tokens);
}

int32_t mantou_file_prefetch(mantou_file* file, int64_t offset, int32_t width, int64_t count, int64_t length,
                             const double* starts) {
  CHECK_NOT_NULL(file);
  CHECK_NOT_NEGATIVE(count, length);
  if (count > 0) CHECK_NOT_NULL(starts);
  const int32_t status = check_runs(__func__, file, offset, width, length == 0 ? 0 : count, length, starts);
  if (status != MANTOU_OK || length == 0) return status;
  const int64_t page = sysconf(_SC_PAGESIZE);
  for (int64_t i = 0; i < count; i++) {
    const int64_t first = offset + static_cast<int64_t>(starts[i]) * width;
    const int64_t begin = first / page * page;
    // Advice may be ignored; what is not read ahead is read by gather.
    (void)madvise(const_cast<unsigned char*>(file->data) + begin, static_cast<size_t>(first + length * width - begin),
                  MADV_WILLNEED);
  }
  return MANTOU_OK;
}
