// cuBLASLt, loaded at run time, so that the library builds and runs without it.
//
// It thinks in columns: a row-major C [m, n] is to it the matrix C^T [n, m], and C^T = op(B)^T op(A)^T. So its first
// operand is our B and its second our A, each as it lies in memory, with the same transposition flags.
//
// Descriptors and the algorithm of a product are made at its first use and kept. The library proposes algorithms by a
// model; the first CANDIDATES are timed on the operands at hand and the fastest is kept for the life of the process, so
// that the same call gives the same bits in every context. While a stream is being captured nothing may be timed: the
// first proposal is taken then. Another process may decide otherwise; `untimed` (see cublaslt.h) takes the first proposal
// always.
#include "cublaslt.h"

#include <dlfcn.h>
#include <glob.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <sstream>
#include <string>
#include <vector>

namespace mantou {
namespace {

// ---- the library's interface, as far as it is used (cublasLt.h) ---------------------------------------------------------

using Status = int;  // 0 is success
struct Algorithm {
  uint64_t data[8];
};
struct Proposal {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status status;
  float waves;
  int reserved[4];
};

constexpr int COMPUTE_FLOAT32 = 68;                         // CUBLAS_COMPUTE_32F
constexpr int TYPE_FLOAT32 = 0, TYPE_BFLOAT16 = 14;         // CUDA_R_32F, CUDA_R_16BF
constexpr int DESC_TRANSPOSE_A = 3, DESC_TRANSPOSE_B = 4;   // CUBLASLT_MATMUL_DESC_TRANSA, _TRANSB
constexpr int PREFERENCE_WORKSPACE = 1;                     // CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES
constexpr int PREFERENCE_REDUCTION = 3;                     // CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK
constexpr int PREFERENCE_ALIGNMENT = 5;                     // CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, then B, C, D
constexpr uint32_t REDUCTION_IN_FLOAT32 = 2;                // CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE

struct Interface {
  Status (*create)(void** handle);
  Status (*destroy)(void* handle);
  size_t (*version)();
  Status (*desc_create)(void** desc, int compute_type, int scale_type);
  Status (*desc_destroy)(void* desc);
  Status (*desc_set)(void* desc, int attribute, const void* value, size_t bytes);
  Status (*layout_create)(void** layout, int type, uint64_t rows, uint64_t columns, int64_t stride);
  Status (*layout_destroy)(void* layout);
  Status (*preference_create)(void** preference);
  Status (*preference_destroy)(void* preference);
  Status (*preference_set)(void* preference, int attribute, const void* value, size_t bytes);
  Status (*propose)(void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted,
                    Proposal* proposals, int* found);
  Status (*multiply)(void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,
                     void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                     const Algorithm* algorithm, void* workspace, size_t workspace_bytes, cudaStream_t stream);
  const char* (*status_text)(Status status);
};

constexpr int CANDIDATES = 8, RUNS = 3;
constexpr size_t WORKSPACE_BYTES = size_t{32} << 20;

// What tells one kind of product from another.
using Key = std::array<int64_t, 14>;

struct Plan {
  void *desc = nullptr, *first = nullptr, *second = nullptr, *result = nullptr;
  bool possible = false;
  Algorithm algorithm = {};
  size_t workspace_bytes = 0;
};

struct Library {
  void* file = nullptr;
  Interface call = {};
  void* handle = nullptr;
  bool timed = true;
  std::string description;
  std::map<Key, Plan> plans;
};

Library* library_of(const mantou_context* context) { return static_cast<Library*>(context->matmul.data); }

void release(const Library& library, const Plan& plan) {
  if (plan.desc) library.call.desc_destroy(plan.desc);
  for (void* layout : {plan.first, plan.second, plan.result})
    if (layout) library.call.layout_destroy(layout);
}

void destroy(void* data) {
  auto* const library = static_cast<Library*>(data);
  for (const auto& entry : library->plans) release(*library, entry.second);
  if (library->handle) library->call.destroy(library->handle);
  // The library stays loaded: CUDA has been told of its kernels, and would have to be told that they are gone.
  delete library;
}

// ---- where it may be ----------------------------------------------------------------------------------------------------

const char* setting(const char* name) {
  const char* const value = std::getenv(name);
  return value && *value ? value : nullptr;
}

// Paths to try: what was asked for, else what the loader knows, the toolkit, and the Python environments of the PATH.
std::vector<std::string> candidates([[maybe_unused]] const std::string& mode) {
  if (const char* asked = setting("MANTOU_CUBLASLT")) return {asked};
#if !defined(__CUDACC__)
  if (mode == "auto") return {};  // on the emulator there is no GPU for it
#endif
  std::vector<std::string> patterns = {"/usr/local/cuda/lib64/libcublasLt.so.1[23]",
                                       "/usr/local/cuda/targets/*/lib/libcublasLt.so.1[23]"};
  if (const char* home = setting("CUDA_HOME")) patterns.insert(patterns.begin(), std::string(home) + "/lib64/libcublasLt.so.1[23]");
  std::vector<std::string> prefixes;
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* prefix = setting(variable)) prefixes.emplace_back(prefix);
  if (const char* path = setting("PATH")) {
    std::istringstream folders(path);
    for (std::string folder; std::getline(folders, folder, ':');) prefixes.push_back(folder + "/..");
  }
  if (const char* home = setting("HOME")) prefixes.push_back(std::string(home) + "/.local");
  for (const std::string& prefix : prefixes) {
    for (const char* packages : {"/lib/python3*/site-packages", "/lib/python3*/dist-packages"}) {
      patterns.push_back(prefix + packages + "/nvidia/cu13/lib/libcublasLt.so.13");
      patterns.push_back(prefix + packages + "/nvidia/cublas/lib/libcublasLt.so.12");
    }
    patterns.push_back(prefix + "/lib/libcublasLt.so.1[23]");  // conda's own packages
  }
  std::vector<std::string> paths = {"libcublasLt.so.13", "libcublasLt.so.12"};
  for (const std::string& pattern : patterns) {
    glob_t found;
    if (glob(pattern.c_str(), 0, nullptr, &found) == 0) {
      // The newest version first.
      for (size_t i = found.gl_pathc; i > 0; i--) paths.emplace_back(found.gl_pathv[i - 1]);
      globfree(&found);
    }
  }
  return paths;
}

bool resolve(void* file, Interface& call) {
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
    return function != nullptr;
  };
  return find(call.create, "cublasLtCreate") && find(call.destroy, "cublasLtDestroy") &&
         find(call.version, "cublasLtGetVersion") && find(call.desc_create, "cublasLtMatmulDescCreate") &&
         find(call.desc_destroy, "cublasLtMatmulDescDestroy") &&
         find(call.desc_set, "cublasLtMatmulDescSetAttribute") &&
         find(call.layout_create, "cublasLtMatrixLayoutCreate") &&
         find(call.layout_destroy, "cublasLtMatrixLayoutDestroy") &&
         find(call.preference_create, "cublasLtMatmulPreferenceCreate") &&
         find(call.preference_destroy, "cublasLtMatmulPreferenceDestroy") &&
         find(call.preference_set, "cublasLtMatmulPreferenceSetAttribute") &&
         find(call.propose, "cublasLtMatmulAlgoGetHeuristic") && find(call.multiply, "cublasLtMatmul") &&
         find(call.status_text, "cublasLtGetStatusString");
}

// ---- plans --------------------------------------------------------------------------------------------------------------

int type_of(int32_t dtype) { return dtype == MANTOU_FLOAT32 ? TYPE_FLOAT32 : TYPE_BFLOAT16; }

// The largest power of two up to 256 that divides the address.
uint32_t alignment_of(const void* pointer) {
  const uint64_t address = reinterpret_cast<uint64_t>(pointer) | 256;
  return static_cast<uint32_t>(address & (~address + 1));
}

Key key_of(const MatmulArguments& p) {
  return {p.transpose_a, p.transpose_b, p.m,          p.n,           p.k,
          p.lda,         p.ldb,         p.ldc,        p.input_dtype, p.output_dtype,
          p.accumulate,  alignment_of(p.a), alignment_of(p.b), alignment_of(p.c)};
}

Status run(const mantou_context* context, const Plan& plan, const Proposal& proposal, const MatmulArguments& p, void* c) {
  const Library& library = *library_of(context);
  const float one = 1, beta = p.accumulate ? 1 : 0;
  return library.call.multiply(library.handle, plan.desc, &one, p.b, plan.first, p.a, plan.second, &beta, c, plan.result,
                               c, plan.result, &proposal.algorithm, context->scratch, proposal.workspace_bytes,
                               context->stream);
}

// Milliseconds of the fastest of RUNS runs into `c`; negative where the algorithm fails.
float time_of(const mantou_context* context, const Plan& plan, const Proposal& proposal, const MatmulArguments& p, void* c,
              cudaEvent_t start, cudaEvent_t stop) {
  float least = -1;
  for (int i = -1; i < RUNS; i++) {  // once to warm up
    float milliseconds = 0;
    if (cudaEventRecord(start, context->stream) != cudaSuccess || run(context, plan, proposal, p, c) != 0 ||
        cudaEventRecord(stop, context->stream) != cudaSuccess || cudaEventSynchronize(stop) != cudaSuccess ||
        cudaEventElapsedTime(&milliseconds, start, stop) != cudaSuccess)
      return -1;
    if (i >= 0 && (least < 0 || milliseconds < least)) least = milliseconds;
  }
  return least;
}

// The fastest of the proposals, null where none works; the first where nothing can be timed.
const Proposal* choose(const mantou_context* context, const Plan& plan, const std::vector<Proposal>& proposals,
                       const MatmulArguments& p) {
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  if (!library_of(context)->timed ||
      cudaStreamIsCapturing(context->stream, &capture) != cudaSuccess || capture != cudaStreamCaptureStatusNone)
    return &proposals[0];
  // What is added to must not be touched: runs go to memory of their own. Otherwise C is overwritten anyway.
  void* c = p.c;
  if (p.accumulate) {
    const int64_t bytes = ((p.m - 1) * p.ldc + p.n) * bytes_of(p.output_dtype);
    if (cudaMalloc(&c, static_cast<size_t>(bytes)) != cudaSuccess) {
      cudaGetLastError();  // forgets the error
      return &proposals[0];
    }
    if (cudaMemsetAsync(c, 0, static_cast<size_t>(bytes), context->stream) != cudaSuccess) cudaGetLastError();
  }
  cudaEvent_t start = nullptr, stop = nullptr;
  const Proposal* best = &proposals[0];
  if (cudaEventCreateWithFlags(&start, 0) == cudaSuccess && cudaEventCreateWithFlags(&stop, 0) == cudaSuccess) {
    float least = -1;
    best = nullptr;
    for (const Proposal& proposal : proposals) {
      const float time = time_of(context, plan, proposal, p, c, start, stop);
      if (time >= 0 && (least < 0 || time < least)) least = time, best = &proposal;
    }
  }
  if (stop) cudaEventDestroy(stop);
  if (start) cudaEventDestroy(start);
  if (c != p.c) cudaFree(c);
  return best;
}

std::vector<Proposal> proposals_for(const Library& library, const Plan& plan, const MatmulArguments& p) {
  std::vector<Proposal> proposals(CANDIDATES);
  int found = 0;
  void* preference = nullptr;
  if (library.call.preference_create(&preference) != 0) return {};
  const auto set = [&](int attribute, auto value) {
    return library.call.preference_set(preference, attribute, &value, sizeof value) == 0;
  };
  const uint32_t c_alignment = alignment_of(p.c);
  const bool asked = set(PREFERENCE_WORKSPACE, WORKSPACE_BYTES) && set(PREFERENCE_REDUCTION, REDUCTION_IN_FLOAT32) &&
                     set(PREFERENCE_ALIGNMENT, alignment_of(p.b)) && set(PREFERENCE_ALIGNMENT + 1, alignment_of(p.a)) &&
                     set(PREFERENCE_ALIGNMENT + 2, c_alignment) && set(PREFERENCE_ALIGNMENT + 3, c_alignment) &&
                     library.call.propose(library.handle, plan.desc, plan.first, plan.second, plan.result, plan.result,
                                          preference, CANDIDATES, proposals.data(), &found) == 0;
  library.call.preference_destroy(preference);
  std::vector<Proposal> usable;
  for (int i = 0; asked && i < found; i++)
    if (proposals[static_cast<size_t>(i)].status == 0) usable.push_back(proposals[static_cast<size_t>(i)]);
  return usable;
}

Plan make_plan(const mantou_context* context, const MatmulArguments& p) {
  const Library& library = *library_of(context);
  Plan plan;
  const auto layout = [&](void** result, int32_t dtype, bool transposed, int64_t rows, int64_t columns, int64_t stride) {
    return library.call.layout_create(result, type_of(dtype), static_cast<uint64_t>(transposed ? columns : rows),
                                      static_cast<uint64_t>(transposed ? rows : columns), stride) == 0;
  };
  const auto transpose = [&](int attribute, bool transposed) {
    const int32_t operation = transposed ? 1 : 0;  // CUBLAS_OP_T, CUBLAS_OP_N
    return library.call.desc_set(plan.desc, attribute, &operation, sizeof operation) == 0;
  };
  if (library.call.desc_create(&plan.desc, COMPUTE_FLOAT32, TYPE_FLOAT32) != 0 ||
      !transpose(DESC_TRANSPOSE_A, p.transpose_b) || !transpose(DESC_TRANSPOSE_B, p.transpose_a) ||
      !layout(&plan.first, p.input_dtype, p.transpose_b, p.n, p.k, p.ldb) ||
      !layout(&plan.second, p.input_dtype, p.transpose_a, p.k, p.m, p.lda) ||
      !layout(&plan.result, p.output_dtype, false, p.n, p.m, p.ldc))
    return plan;
  // What this process has chosen, for all of its contexts.
  static std::map<std::pair<int, Key>, Proposal> choices;
  static std::mutex lock;
  const std::lock_guard<std::mutex> guard(lock);
  const std::pair<int, Key> key = {context->device, key_of(p)};
  auto known = choices.find(key);
  if (known == choices.end()) {
    const std::vector<Proposal> proposals = proposals_for(library, plan, p);
    if (proposals.empty()) return plan;
    const Proposal* const chosen = choose(context, plan, proposals, p);
    if (!chosen) return plan;
    known = choices.emplace(key, *chosen).first;
  }
  const Proposal& best = known->second;
  plan.possible = true;
  plan.algorithm = best.algorithm;
  plan.workspace_bytes = best.workspace_bytes;
  return plan;
}

}  // namespace

int32_t open_cublaslt(mantou_context* context) {
  const char* const function = "mantou_context_create";
  const char* const asked = setting("MANTOU_MATMUL");
  const std::string mode = asked ? asked : "auto";
  if (mode == "own") return MANTOU_OK;
  CHECK(mode == "auto" || mode == "cublaslt" || mode == "untimed",
        "%s: MANTOU_MATMUL is \"%s\"; use auto, cublaslt, untimed or own", function, asked);
  auto* const library = new (std::nothrow) Library;
  if (!library) return fail(MANTOU_OUT_OF_MEMORY, "%s: no memory for the plans of matrix products", function);
  context->matmul = {library, destroy};
  library->timed = mode != "untimed";
  std::string tried;
  for (const std::string& path : candidates(mode)) {
    tried += (tried.empty() ? "" : ", ") + path;
    library->file = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library->file) {
      // A file that is there may want another that is not.
      if (path.find('/') != std::string::npos) tried += std::string(" (") + dlerror() + ")";
      continue;
    }
    const bool has_all = resolve(library->file, library->call);
    const Status status = has_all ? library->call.create(&library->handle) : 0;
    if (has_all && status == 0) {
      const size_t version = library->call.version();
      char text[64];
      std::snprintf(text, sizeof text, "cuBLASLt %zu.%zu.%zu", version / 10000, version / 100 % 100, version % 100);
      library->description = text;
      return MANTOU_OK;
    }
    tried += std::string(" (") + (has_all ? library->call.status_text(status) : "it lacks functions") + ")";
    library->handle = nullptr;
    dlclose(library->file);
    library->file = nullptr;
  }
  destroy(library);
  context->matmul = {nullptr, nullptr};
  if (mode == "auto" && !setting("MANTOU_CUBLASLT")) return MANTOU_OK;
  return fail(MANTOU_UNSUPPORTED, "%s: cuBLASLt was asked for and not found (tried %s); set MANTOU_CUBLASLT to its path or "
              "MANTOU_MATMUL to own", function, tried.empty() ? "nothing" : tried.c_str());
}

void describe_matmul(const mantou_context* context, char* text, size_t capacity) {
  const Library* const library = library_of(context);
  std::snprintf(text, capacity, "%s", library ? library->description.c_str() : "own kernels");
}

int32_t multiply_with_cublaslt(mantou_context* context, const MatmulArguments& p) {
  Library* const library = library_of(context);
  // It has no product of float32 matrices that gives bfloat16.
  if (!library || (p.input_dtype == MANTOU_FLOAT32 && p.output_dtype == MANTOU_BFLOAT16)) return MANTOU_UNSUPPORTED;
  const Key key = key_of(p);
  auto found = library->plans.find(key);
  if (found == library->plans.end()) found = library->plans.emplace(key, make_plan(context, p)).first;
  const Plan& plan = found->second;
  if (!plan.possible) return MANTOU_UNSUPPORTED;
  const Status status = run(context, plan, {plan.algorithm, plan.workspace_bytes, 0, 0, {}}, p, p.c);
  if (status == 0) return MANTOU_OK;
  return fail(MANTOU_DEVICE_ERROR, "mantou_matmul: cuBLASLt, [%lld, %lld] x [%lld, %lld]: %s", static_cast<long long>(p.m),
              static_cast<long long>(p.k), static_cast<long long>(p.k), static_cast<long long>(p.n),
              library->call.status_text(status));
}

}  // namespace mantou
