// Rows of a table chosen by token, and the sum of gradients back into the table.
#include <cstring>

#include "context.h"
#include "vector.h"

using namespace mantou;

static int32_t check_tokens(const char* function, int64_t rows, int64_t vocab_size, const int32_t* tokens) {
  for (int64_t row = 0; row < rows; row++)
    CHECK(tokens[row] >= 0 && tokens[row] < vocab_size,
          "%s: token %d in row %lld is not within the vocabulary (0 to %lld)", function, tokens[row],
          static_cast<long long>(row), static_cast<long long>(vocab_size - 1));
  return MANTOU_OK;
}

int32_t mantou_embedding_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size, int64_t dim,
                                 const int32_t* tokens, const void* weight, void* output) {
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, vocab_size, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(tokens, weight, output);
  const int32_t status = check_tokens(__func__, rows, vocab_size, tokens);
  if (status != MANTOU_OK) return status;
  const int64_t bytes = dim * (dtype == MANTOU_FLOAT32 ? 4 : 2);
  const char* from = static_cast<const char*>(weight);
  char* to = static_cast<char*>(output);
  parallel_for(context, rows, grain_rows(dim), [=](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; row++)
      std::memcpy(to + row * bytes, from + tokens[row] * bytes, static_cast<size_t>(bytes));
  });
  return MANTOU_OK;
}

int64_t mantou_embedding_backward_workspace(int64_t, int64_t, int64_t) { return 0; }

// Each thread walks over all rows in order and adds up its own columns: no two threads write to one place, and every
// element's sum has the same order on any number of threads.
int32_t mantou_embedding_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size,
                                  int64_t dim, const int32_t* tokens, const void* doutput, float* dweight,
                                  void* workspace) {
  (void)workspace;
  CHECK_NOT_NULL(context);
  CHECK_DTYPE(dtype);
  CHECK_NOT_NEGATIVE(rows, vocab_size, dim);
  if (rows == 0 || dim == 0) return MANTOU_OK;
  CHECK_NOT_NULL(tokens, doutput, dweight);
  const int32_t status = check_tokens(__func__, rows, vocab_size, tokens);
  if (status != MANTOU_OK) return status;
  constexpr int64_t LINE = 16;  // floats in a cache line, which two threads must not share
  const int64_t lines = (dim + LINE - 1) / LINE;
  for_dtype(dtype, [=](auto element) {
    using T = decltype(element);
    const T* from = static_cast<const T*>(doutput);
    parallel_for(context, lines, (grain_rows(rows) + LINE - 1) / LINE, [=](int64_t first, int64_t last, int) {
      const int64_t begin = first * LINE, end = last * LINE < dim ? last * LINE : dim;
      for (int64_t row = 0; row < rows; row++) {
        const T* gradient = from + row * dim + begin;
        float* sum = dweight + tokens[row] * dim + begin;
        for_vectors(end - begin, [=](int64_t i, auto lanes) {
          store(sum + i, load(sum + i, lanes) + load(gradient + i, lanes), lanes);
        });
      }
    });
  });
  return MANTOU_OK;
}
