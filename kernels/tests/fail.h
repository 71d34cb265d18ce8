// What the backend reports a failure with, for a program without the library: it prints it.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "../cuda/context.h"

int32_t mantou::fail(int32_t status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
  return status;
}
