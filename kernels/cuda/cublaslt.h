// Matrix products by NVIDIA's cuBLASLt, where the process finds that library.
#pragma once

#include "context.h"

namespace mantou {

// Looks for the library, as $MANTOU_MATMUL says: `auto` (the default) uses it where it is found, `cublaslt` fails where
// it is not, `untimed` is `cublaslt` without timing its algorithms, `own` leaves it alone. $MANTOU_CUBLASLT is the path
// of the library to use.
int32_t open_cublaslt(mantou_context* context);

// "cuBLASLt 13.1.0" or why not.
void describe_matmul(const mantou_context* context, char* text, size_t capacity);

// The arguments of mantou_matmul.
struct MatmulArguments {
  bool transpose_a, transpose_b;
  int64_t m, n, k;
  int32_t input_dtype;
  const void* a;
  int64_t lda;
  const void* b;
  int64_t ldb;
  int32_t output_dtype;
  void* c;
  int64_t ldc;
  bool accumulate;
};

// MANTOU_UNSUPPORTED, with nothing done and no error text, where the library is not there or does not take these
// operands.
int32_t multiply_with_cublaslt(mantou_context* context, const MatmulArguments& arguments);

}  // namespace mantou
