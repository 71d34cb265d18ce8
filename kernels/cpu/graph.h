// Work that is recorded with its arguments instead of being done: mantou_capture_begin and what follows it.
#pragma once

#include <functional>
#include <new>
#include <vector>

#include "context.h"

struct mantou_graph {
  std::vector<std::function<int32_t()>> operations;
};

namespace mantou {

// Runs an operation, or records it where the context captures.
template <typename Operation>
int32_t run_or_record(const char* function, mantou_context* context, const Operation& operation) {
  if (!context->capture) return operation();
  try {
    context->capture->operations.emplace_back(operation);
  } catch (const std::bad_alloc&) {
    return fail(MANTOU_OUT_OF_MEMORY, "%s: no memory to record it", function);
  }
  return MANTOU_OK;
}

}  // namespace mantou

// For an operation that is done when its call returns, and cannot be put off.
#define CHECK_NOT_CAPTURED(context) CHECK(!(context)->capture, "%s: called during a capture", __func__)
