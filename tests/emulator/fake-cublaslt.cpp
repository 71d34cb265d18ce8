// A stand-in for cuBLASLt with the fourteen functions that kernels/cuda/cublaslt.cu calls, column-major as the real one
// is, on the emulator's streams. It proposes an algorithm that is not usable, one that fails, and one that works.
#include <cstdio>
#include <cstdlib>
#include <set>

#include "../../kernels/emulator/runtime.h"

namespace {

constexpr int SUCCESS = 0, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15;

std::set<void*> alive;  // descriptors
long products = 0;

template <typename T>
int make(void** made, T* value) {
  alive.insert(*made = value);
  return SUCCESS;
}

struct Desc {
  int compute_type, scale_type, transpose_a, transpose_b;
};
struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t stride;
};
struct Preference {
  uint64_t workspace;
  uint32_t reduction, alignments[4];
};
struct Algorithm {
  uint64_t data[8];
};
struct Proposal {
  Algorithm algorithm;
  size_t workspace;
  int status;
  float waves;
  int reserved[4];
};

double load(const void* matrix, const Layout& layout, uint64_t row, uint64_t column) {
  const auto at = row + column * static_cast<uint64_t>(layout.stride);
  if (layout.type == 0) return static_cast<const float*>(matrix)[at];
  const uint32_t bits = static_cast<uint32_t>(static_cast<const uint16_t*>(matrix)[at]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void store(void* matrix, const Layout& layout, uint64_t row, uint64_t column, double value) {
  const auto at = row + column * static_cast<uint64_t>(layout.stride);
  const auto rounded = static_cast<float>(value);
  if (layout.type == 0) {
    static_cast<float*>(matrix)[at] = rounded;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  static_cast<uint16_t*>(matrix)[at] = static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace

extern "C" {

int cublasLtCreate(void** handle) { return make(handle, new int); }

int cublasLtDestroy(void* handle) {
  // Everything else must be gone, and something must have been computed or nothing was tested.
  alive.erase(handle);
  if (const char* path = std::getenv("FAKE_CUBLASLT_REPORT")) {
    std::FILE* file = std::fopen(path, "a");
    std::fprintf(file, "%ld products, %zu left\n", products, alive.size());
    std::fclose(file);
  }
  return SUCCESS;
}

size_t cublasLtGetVersion() { return 990102; }

const char* cublasLtGetStatusString(int) { return "the stand-in failed"; }

int cublasLtMatmulDescCreate(void** desc, int compute_type, int scale_type) {
  return make(desc, new Desc{compute_type, scale_type, 0, 0});
}

int cublasLtMatmulDescDestroy(void* desc) { return alive.erase(desc) ? SUCCESS : INVALID_VALUE; }

int cublasLtMatmulDescSetAttribute(void* desc, int attribute, const void* value, size_t bytes) {
  if (bytes != 4 || (attribute != 3 && attribute != 4)) return INVALID_VALUE;
  std::memcpy(attribute == 3 ? &static_cast<Desc*>(desc)->transpose_a : &static_cast<Desc*>(desc)->transpose_b, value, 4);
  return SUCCESS;
}

int cublasLtMatrixLayoutCreate(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
  if ((type != 0 && type != 14) || stride < static_cast<int64_t>(rows)) return INVALID_VALUE;
  return make(layout, new Layout{type, rows, columns, stride});
}

int cublasLtMatrixLayoutDestroy(void* layout) { return alive.erase(layout) ? SUCCESS : INVALID_VALUE; }

int cublasLtMatmulPreferenceCreate(void** preference) { return make(preference, new Preference{}); }

int cublasLtMatmulPreferenceDestroy(void* preference) { return alive.erase(preference) ? SUCCESS : INVALID_VALUE; }

int cublasLtMatmulPreferenceSetAttribute(void* preference, int attribute, const void* value, size_t bytes) {
  auto* const own = static_cast<Preference*>(preference);
  if (attribute == 1 && bytes == 8) std::memcpy(&own->workspace, value, 8);
  else if (attribute == 3 && bytes == 4) std::memcpy(&own->reduction, value, 4);
  else if (attribute >= 5 && attribute <= 8 && bytes == 4) std::memcpy(&own->alignments[attribute - 5], value, 4);
  else return INVALID_VALUE;
  return SUCCESS;
}

int cublasLtMatmulAlgoGetHeuristic(void*, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted,
                                   Proposal* proposals, int* found) {
  const auto* const of = static_cast<Desc*>(desc);
  const auto *first = static_cast<Layout*>(a), *second = static_cast<Layout*>(b), *result = static_cast<Layout*>(c);
  if (of->compute_type != 68 || of->scale_type != 0 || c != d || wanted < 3) return INVALID_VALUE;
  for (const uint32_t alignment : static_cast<Preference*>(preference)->alignments)
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) return INVALID_VALUE;
  const uint64_t m = of->transpose_a ? first->columns : first->rows, k = of->transpose_a ? first->rows : first->columns;
  const uint64_t n = of->transpose_b ? second->rows : second->columns;
  if ((of->transpose_b ? second->columns : second->rows) != k || result->rows != m || result->columns != n)
    return INVALID_VALUE;
  *found = m == 3 ? 0 : m == 5 ? 2 : 3;  // a success without a result is allowed
  for (int i = 0; i < *found; i++) {
    proposals[i] = {};
    proposals[i].algorithm.data[0] = static_cast<uint64_t>(i);
    proposals[i].status = i == 0 ? NOT_SUPPORTED : SUCCESS;
    proposals[i].workspace = 1024;
  }
  return SUCCESS;
}

int cublasLtMatmul(void*, void* desc, const float* alpha, const void* a, void* a_layout, const void* b, void* b_layout,
                   const float* beta, const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, emulated_stream* stream) {
  if (algorithm->data[0] == 0 || !workspace || workspace_bytes != 1024 || c != d || c_layout != d_layout)
    return INVALID_VALUE;
  if (algorithm->data[0] == 1) return EXECUTION_FAILED;
  // What belongs to the host is read now; the rest when the stream comes to it.
  const auto work = [=, of = *static_cast<Desc*>(desc), first = *static_cast<Layout*>(a_layout),
                     second = *static_cast<Layout*>(b_layout), result = *static_cast<Layout*>(d_layout), scale = *alpha,
                     kept = *beta] {
    const uint64_t k = of.transpose_a ? first.rows : first.columns;
    for (uint64_t column = 0; column < result.columns; column++)
      for (uint64_t row = 0; row < result.rows; row++) {
        double sum = 0;
        for (uint64_t i = 0; i < k; i++)
          sum += (of.transpose_a ? load(a, first, i, row) : load(a, first, row, i)) *
                 (of.transpose_b ? load(b, second, column, i) : load(b, second, i, column));
        store(d, result, row, column, scale * sum + (kept == 0 ? 0 : kept * load(c, result, row, column)));
      }
    products++;
    return nullptr;
  };
  return stream->take(work) == cudaSuccess ? SUCCESS : EXECUTION_FAILED;
}

}  // extern "C"
