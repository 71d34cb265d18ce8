// Device memory, page-locked host memory, copies, streams and graphs.
#include <cstring>
#include <new>

#include "context.h"

using namespace mantou;

// ---- faults ------------------------------------------------------------------------------------------------------

// Turns what a kernel found into this call's error, once. That kernel must have finished.
static int32_t report(mantou_context* context) {
  if (context->fault->kind == NO_FAULT) return MANTOU_OK;
  // A kernel queued later may have found it and not written all of it yet, and others may find more.
  CHECK_CUDA(cudaStreamSynchronize(context->stream));
  const Fault fault = *context->fault;
  *context->fault = {};
  if (fault.kind == CACHE_FULL)
    return fail(MANTOU_INVALID_ARGUMENT, "mantou_attention_cached: tokens %d .. %lld do not fit the cache's capacity of %lld",
                fault.value, fault.value + static_cast<long long>(fault.row), static_cast<long long>(fault.limit));
  if (fault.kind == CACHE_SLOT)
    return fail(MANTOU_INVALID_ARGUMENT, "mantou_attention_cached: slot %d is not one of %lld", fault.value,
                static_cast<long long>(fault.limit));
  const char* const function = fault.kind == TOKEN_FORWARD    ? "mantou_embedding_forward"
                               : fault.kind == TOKEN_BACKWARD ? "mantou_embedding_backward"
                                                              : "mantou_cross_entropy";
  return fail(MANTOU_INVALID_ARGUMENT, "%s: %s %d in row %lld is not within the vocabulary (0 to %lld)", function,
              fault.kind == TARGET ? "target" : "token", fault.value, static_cast<long long>(fault.row),
              static_cast<long long>(fault.limit - 1));
}

// Waits for everything queued.
static int32_t finish(mantou_context* context, const char* function) {
  for (const cudaStream_t stream : {context->stream, context->copy_stream}) {
    const cudaError_t error = cudaStreamSynchronize(stream);
    if (error != cudaSuccess)
      return cuda_failed(function, "an operation queued before (CUDA_LAUNCH_BLOCKING=1 tells which)", error);
  }
  return report(context);
}

// ---- allocation --------------------------------------------------------------------------------------------------

static int32_t out_of_memory(const char* function, int64_t bytes, const char* where, cudaError_t error) {
  size_t free = 0, total = 0;
  cudaGetLastError();  // forgets the error: the context works on
  if (error != cudaErrorMemoryAllocation || cudaMemGetInfo(&free, &total) != cudaSuccess)
    return cuda_failed(function, "allocation", error);
  return fail(MANTOU_OUT_OF_MEMORY, "%s: no %lld bytes of %s memory (%zu MiB of the GPU's %zu MiB are free)", function,
              static_cast<long long>(bytes), where, free >> 20, total >> 20);
}

int32_t mantou_malloc(mantou_context* context, int64_t bytes, void** memory) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_NOT_NULL(memory);
  *memory = nullptr;
  CHECK_NOT_NEGATIVE(bytes);
  // An address of its own, and room for a kernel's 16-byte accesses, for an empty allocation too.
  const cudaError_t error = cudaMalloc(memory, static_cast<size_t>(bytes > 0 ? bytes : 1));
  if (error != cudaSuccess) return out_of_memory(__func__, bytes, "device", error);
  if (bytes == 0) return MANTOU_OK;
  CHECK_CUDA(cudaMemsetAsync(*memory, 0, static_cast<size_t>(bytes), context->stream));
  CHECK_CUDA(cudaStreamSynchronize(context->stream));  // a copy on the other stream may follow
  return MANTOU_OK;
}

int32_t mantou_free(mantou_context* context, void* memory) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_CUDA(cudaFree(memory));
  return MANTOU_OK;
}

int32_t mantou_malloc_host(mantou_context* context, int64_t bytes, void** memory) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_NOT_NULL(memory);
  *memory = nullptr;
  CHECK_NOT_NEGATIVE(bytes);
  const size_t size = static_cast<size_t>(bytes > 0 ? bytes : 1);
  const cudaError_t error = cudaHostAlloc(memory, size, cudaHostAllocPortable);
  if (error != cudaSuccess) return out_of_memory(__func__, bytes, "page-locked host", error);
  std::memset(*memory, 0, size);
  return MANTOU_OK;
}

int32_t mantou_free_host(mantou_context* context, void* memory) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_CUDA(cudaFreeHost(memory));
  return MANTOU_OK;
}

// ---- copies ------------------------------------------------------------------------------------------------------

int32_t mantou_copy(mantou_context* context, void* destination, const void* source, int64_t bytes) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_NOT_NEGATIVE(bytes);
  if (bytes == 0) return MANTOU_OK;
  CHECK_NOT_NULL(destination, source);
  // On the compute stream: behind the operations that are queued there.
  CHECK_CUDA(cudaMemcpyAsync(destination, source, static_cast<size_t>(bytes), cudaMemcpyDefault, context->stream));
  return finish(context, __func__);
}

#define CHECK_STREAM(stream)                                                                   \
  CHECK((stream) == MANTOU_COMPUTE_STREAM || (stream) == MANTOU_COPY_STREAM,                   \
        "%s: " #stream " is %d; streams are 0 (compute) and 1 (copy)", __func__, (stream))

static cudaStream_t stream_of(const mantou_context* context, int32_t stream) {
  return stream == MANTOU_COMPUTE_STREAM ? context->stream : context->copy_stream;
}

int32_t mantou_copy_async(mantou_context* context, void* destination, const void* source, int64_t bytes,
                          int32_t stream) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(bytes);
  CHECK_STREAM(stream);
  if (stream == MANTOU_COPY_STREAM) CHECK_NOT_CAPTURED(context);
  if (bytes == 0) return MANTOU_OK;
  CHECK_NOT_NULL(destination, source);
  const cudaStream_t queue = stream_of(context, stream);
  CHECK_CUDA(cudaMemcpyAsync(destination, source, static_cast<size_t>(bytes), cudaMemcpyDefault, queue));
  return MANTOU_OK;
}

int32_t mantou_fill(mantou_context* context, void* memory, int32_t value, int64_t bytes) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NEGATIVE(bytes);
  CHECK(value >= 0 && value <= 255, "%s: value is %d; a byte is 0 to 255", __func__, value);
  if (bytes == 0) return MANTOU_OK;
  CHECK_NOT_NULL(memory);
  CHECK_CUDA(cudaMemsetAsync(memory, value, static_cast<size_t>(bytes), context->stream));
  return MANTOU_OK;
}

// ---- streams -----------------------------------------------------------------------------------------------------

int32_t mantou_stream_wait(mantou_context* context, int32_t waiting, int32_t signalling) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_STREAM(waiting);
  CHECK_STREAM(signalling);
  if (waiting == signalling) return MANTOU_OK;
  // One event serves all calls: a wait takes the state that the event has when the wait is queued.
  CHECK_CUDA(cudaEventRecord(context->event, stream_of(context, signalling)));
  CHECK_CUDA(cudaStreamWaitEvent(stream_of(context, waiting), context->event, 0));
  return MANTOU_OK;
}

#define CHECK_MARK(mark) CHECK((mark) == 0 || (mark) == 1, "%s: mark is %d; it must be 0 or 1", __func__, (mark))

int32_t mantou_mark(mantou_context* context, int32_t mark) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_MARK(mark);
  CHECK_CUDA(cudaEventRecord(context->marks[mark], context->stream));
  return MANTOU_OK;
}

int32_t mantou_wait_for_mark(mantou_context* context, int32_t mark) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_MARK(mark);
  CHECK_CUDA(cudaEventSynchronize(context->marks[mark]));
  return report(context);
}

int32_t mantou_time_between_marks(mantou_context* context, double* milliseconds) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_NOT_NULL(milliseconds);
  for (const int32_t mark : {0, 1}) RETURN_IF_FAILED(mantou_wait_for_mark(context, mark));
  float taken = 0;
  CHECK_CUDA(cudaEventElapsedTime(&taken, context->marks[0], context->marks[1]));
  *milliseconds = taken;
  return MANTOU_OK;
}

int32_t mantou_synchronize(mantou_context* context) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  return finish(context, __func__);
}

// ---- captured work -----------------------------------------------------------------------------------------------

struct mantou_graph {
  cudaGraphExec_t work;
};

int32_t mantou_capture_begin(mantou_context* context) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  CHECK_CUDA(cudaStreamBeginCapture(context->stream, cudaStreamCaptureModeThreadLocal));
  context->capturing = true;
  return MANTOU_OK;
}

int32_t mantou_capture_end(mantou_context* context, mantou_graph** graph) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(graph);
  *graph = nullptr;
  CHECK(context->capturing, "%s: no capture has begun", __func__);
  context->capturing = false;
  cudaGraph_t recorded = nullptr;
  cudaError_t error = cudaStreamEndCapture(context->stream, &recorded);
  mantou_graph* const created = new (std::nothrow) mantou_graph{};
  if (error == cudaSuccess)
    error = created ? cudaGraphInstantiate(&created->work, recorded, 0) : cudaErrorMemoryAllocation;
  if (recorded) cudaGraphDestroy(recorded);
  if (error != cudaSuccess) {
    cudaGetLastError();  // forgets the error: the context works on
    delete created;
    return cuda_failed(__func__, "the captured work", error);
  }
  *graph = created;
  return MANTOU_OK;
}

int32_t mantou_graph_replay(mantou_context* context, mantou_graph* graph, double* milliseconds) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_NULL(graph);
  CHECK_NOT_CAPTURED(context);
  if (milliseconds) return fail(MANTOU_UNSUPPORTED, "%s: a GPU does not time what is captured", __func__);
  CHECK_CUDA(cudaGraphLaunch(graph->work, context->stream));
  return MANTOU_OK;
}

int32_t mantou_graph_destroy(mantou_context* context, mantou_graph* graph) {
  CHECK_NOT_NULL(context);
  if (!graph) return MANTOU_OK;
  const cudaError_t error = cudaGraphExecDestroy(graph->work);
  delete graph;
  return error == cudaSuccess ? MANTOU_OK : cuda_failed(__func__, "cudaGraphExecDestroy", error);
}
