// The library's identity, error texts and contexts.
#include "cublaslt.h"

#include <cstdarg>
#include <cstdio>
#include <new>

using namespace mantou;

static thread_local char last_error[1024] = "";

int32_t mantou::fail(int32_t status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof last_error, format, arguments);
  va_end(arguments);
  return status;
}

int32_t mantou_abi_version(void) { return MANTOU_ABI_VERSION; }

#if defined(__CUDACC__)
const char* mantou_backend(void) { return "cuda"; }
#else
const char* mantou_backend(void) { return "emulated"; }
#endif

const char* mantou_last_error(void) { return last_error; }

// ---- contexts ----------------------------------------------------------------------------------------------------

int64_t mantou_context_bytes(void) { return int64_t{64} << 20; }

// Compute capability, the oldest that the kernels are compiled for.
constexpr int OLDEST = 8;

static int32_t fill_in(mantou_context* context, int32_t device) {
  const char* const function = "mantou_context_create";
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess)
    return fail(MANTOU_DEVICE_ERROR, "%s: no usable GPU: %s", function, cudaGetErrorString(error));
  if (count == 0) return fail(MANTOU_DEVICE_ERROR, "%s: this machine has no NVIDIA GPU", function);
  CHECK(device >= 0 && device < count, "%s: device is %d; this machine has GPUs 0 to %d", function, device, count - 1);
  CHECK_CUDA(cudaSetDevice(device));
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, device));
  std::snprintf(context->name, sizeof context->name, "%s", properties.name);
  if (properties.major < OLDEST)
    return fail(MANTOU_UNSUPPORTED, "%s: %s has compute capability %d.%d; the kernels need %d.0 or newer", function,
                properties.name, properties.major, properties.minor, OLDEST);
  context->device = device;
  context->multiprocessors = properties.multiProcessorCount;
  context->cache_bytes = properties.l2CacheSize;
  context->shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  context->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  CHECK_CUDA(cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking));
  CHECK_CUDA(cudaStreamCreateWithFlags(&context->copy_stream, cudaStreamNonBlocking));
  CHECK_CUDA(cudaEventCreateWithFlags(&context->event, cudaEventDisableTiming));
  for (cudaEvent_t& mark : context->marks) CHECK_CUDA(cudaEventCreateWithFlags(&mark, 0));
  CHECK_CUDA(cudaMalloc(&context->scratch, static_cast<size_t>(mantou_context_bytes())));
  context->scratch_bytes = mantou_context_bytes();
  void* fault = nullptr;
  CHECK_CUDA(cudaHostAlloc(&fault, sizeof(Fault), cudaHostAllocMapped | cudaHostAllocPortable));
  context->fault = static_cast<Fault*>(fault);
  *context->fault = {};
  return MANTOU_OK;
}

int32_t mantou_context_create(int32_t device, int32_t threads, mantou_context** context) {
  CHECK_NOT_NULL(context);
  *context = nullptr;
  CHECK(threads >= 0, "%s: threads is %d; it must not be negative", __func__, threads);
  mantou_context* created = new (std::nothrow) mantou_context{};
  if (!created) return fail(MANTOU_OUT_OF_MEMORY, "%s: no memory for the context", __func__);
  int32_t status = fill_in(created, device);
  if (status == MANTOU_OK) status = open_cublaslt(created);
  if (status != MANTOU_OK) {
    mantou_context_destroy(created);
    return status;
  }
  *context = created;
  return MANTOU_OK;
}

int32_t mantou_context_destroy(mantou_context* context) {
  if (!context) return MANTOU_OK;
  // What is left to do has nobody to report to. Nothing may be freed that queued work still uses.
  for (const cudaStream_t stream : {context->stream, context->copy_stream})
    if (stream) cudaStreamSynchronize(stream);
  if (context->matmul.destroy) context->matmul.destroy(context->matmul.data);
  if (context->fault) cudaFreeHost(context->fault);
  if (context->scratch) cudaFree(context->scratch);
  for (const cudaEvent_t mark : context->marks)
    if (mark) cudaEventDestroy(mark);
  if (context->event) cudaEventDestroy(context->event);
  if (context->copy_stream) cudaStreamDestroy(context->copy_stream);
  if (context->stream) cudaStreamDestroy(context->stream);
  delete context;
  return MANTOU_OK;
}

int32_t mantou_context_describe(mantou_context* context, char* text, int64_t capacity) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(text);
  CHECK(capacity > 0, "%s: capacity is %lld; it must be positive", __func__, static_cast<long long>(capacity));
  char matmul[64];
  describe_matmul(context, matmul, sizeof matmul);
  std::snprintf(text, static_cast<size_t>(capacity), "%s, %lld GiB, %d multiprocessors, matrix products by %s",
                context->name, static_cast<long long>(context->memory_bytes >> 30), context->multiprocessors, matmul);
  return MANTOU_OK;
}

int32_t mantou_context_preferred_dtype(mantou_context* context, int32_t* dtype, char* reason, int64_t capacity) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(dtype, reason);
  CHECK(capacity > 0, "%s: capacity is %lld; it must be positive", __func__, static_cast<long long>(capacity));
  *dtype = MANTOU_BFLOAT16;
  std::snprintf(reason, static_cast<size_t>(capacity), "what tensor cores multiply");
  return MANTOU_OK;
}

int32_t mantou_measure_peaks(mantou_context* context, int64_t bytes, const void* memory, double* peaks) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(memory, peaks);
  CHECK(bytes >= 64, "%s: bytes is %lld; at least a cache line must be read", __func__, static_cast<long long>(bytes));
  return mantou::fail(MANTOU_UNSUPPORTED, "%s: GPUs are not measured", __func__);
}
