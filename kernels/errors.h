// Error texts and argument checks, for every backend.
#pragma once

#include <cstdint>

#include "mantou.h"

namespace mantou {

// Keeps the text for mantou_last_error and returns `status`.
__attribute__((format(printf, 2, 3))) int32_t fail(int32_t status, const char* format, ...);

}  // namespace mantou

// Returns MANTOU_INVALID_ARGUMENT from the calling function, naming it and what was wrong, unless `condition` holds.
#define CHECK(condition, ...)                                                     \
  do {                                                                            \
    if (!(condition)) return mantou::fail(MANTOU_INVALID_ARGUMENT, __VA_ARGS__); \
  } while (0)

#define CHECK_NOT_NULL(pointer) CHECK((pointer) != nullptr, "%s: " #pointer " is null", __func__)

#define CHECK_NOT_NEGATIVE(size) \
  CHECK((size) >= 0, "%s: " #size " is %lld; it must not be negative", __func__, static_cast<long long>(size))

#define CHECK_DTYPE(dtype) \
  CHECK((dtype) == MANTOU_FLOAT32 || (dtype) == MANTOU_BFLOAT16, "%s: unknown " #dtype " %d", __func__, (dtype))
