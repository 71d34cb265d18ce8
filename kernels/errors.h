// Error texts and argument checks, for every backend.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>

#include "mantou.h"

namespace mantou {

// Keeps the text for mantou_last_error and returns `status`.
__attribute__((format(printf, 2, 3))) int32_t fail(int32_t status, const char* format, ...);

// Both take what they check with its text, "a, b, c", to name the first that is wrong.
inline int32_t check_not_null(const char* function, const char* names, std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    const int length = static_cast<int>(std::strcspn(names, ","));
    if (!pointer) return fail(MANTOU_INVALID_ARGUMENT, "%s: %.*s is null", function, length, names);
    names += length + 2;
  }
  return MANTOU_OK;
}

inline int32_t check_not_negative(const char* function, const char* names, std::initializer_list<int64_t> sizes) {
  for (const int64_t size : sizes) {
    const int length = static_cast<int>(std::strcspn(names, ","));
    if (size < 0)
      return fail(MANTOU_INVALID_ARGUMENT, "%s: %.*s is %lld; it must not be negative", function, length, names,
                  static_cast<long long>(size));
    names += length + 2;
  }
  return MANTOU_OK;
}

// What every operation of causal attention asks of its sizes.
constexpr int64_t MAX_HEAD_DIM = 256;

inline int32_t check_attention(const char* function, int64_t batch, int64_t length, int64_t heads, int64_t kv_heads,
                               int64_t head_dim, int64_t q_stride, int64_t kv_stride) {
  const auto number = [](int64_t value) { return static_cast<long long>(value); };
  if (const int32_t status = check_not_negative(function, "batch, length", {batch, length})) return status;
  if (heads <= 0 || kv_heads <= 0 || heads % kv_heads != 0)
    return fail(MANTOU_INVALID_ARGUMENT, "%s: heads must be a multiple of kv_heads, got %lld and %lld", function,
                number(heads), number(kv_heads));
  if (head_dim <= 0 || head_dim % 2 != 0 || head_dim > MAX_HEAD_DIM)
    return fail(MANTOU_INVALID_ARGUMENT, "%s: head_dim must be even and from 2 to %lld, got %lld", function,
                number(MAX_HEAD_DIM), number(head_dim));
  if (q_stride < heads * head_dim || kv_stride < kv_heads * head_dim)
    return fail(MANTOU_INVALID_ARGUMENT,
                "%s: q_stride = %lld and kv_stride = %lld must be at least a row of %lld and %lld", function,
                number(q_stride), number(kv_stride), number(heads * head_dim), number(kv_heads * head_dim));
  return MANTOU_OK;
}

}  // namespace mantou

// Returns MANTOU_INVALID_ARGUMENT from the calling function, naming it and what was wrong, unless `condition` holds.
#define CHECK(condition, ...)                                                     \
  do {                                                                            \
    if (!(condition)) return mantou::fail(MANTOU_INVALID_ARGUMENT, __VA_ARGS__); \
  } while (0)

// Returns the status of a call that failed from the calling function.
#define RETURN_IF_FAILED(call)                \
  do {                                        \
    const int32_t status_ = (call);           \
    if (status_ != MANTOU_OK) return status_; \
  } while (0)

#define CHECK_NOT_NULL(...) RETURN_IF_FAILED(mantou::check_not_null(__func__, #__VA_ARGS__, {__VA_ARGS__}))

#define CHECK_NOT_NEGATIVE(...) RETURN_IF_FAILED(mantou::check_not_negative(__func__, #__VA_ARGS__, {__VA_ARGS__}))

// Of row strides, which must hold a row.
#define CHECK_AT_LEAST(value, least)                                                                      \
  CHECK((value) >= (least), "%s: " #value " is %lld; it must be at least " #least ", %lld", __func__, \
        static_cast<long long>(value), static_cast<long long>(least))

#define CHECK_DTYPE(dtype) \
  CHECK((dtype) == MANTOU_FLOAT32 || (dtype) == MANTOU_BFLOAT16, "%s: unknown " #dtype " %d", __func__, (dtype))
