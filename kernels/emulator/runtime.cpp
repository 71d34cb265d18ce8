// The functions of the run time: streams, events, graphs, copies. One device, on one thread of the host. A stream does its
// work when it is given it, or, while it captures, keeps it with its arguments for the replays of the graph.
//
// What a capture forbids ("CUDA C++ Programming Guide", Prohibited and Unhandled Operations; cuda_runtime_api.h at
// cudaThreadExchangeStreamCaptureMode) is an error here, and leaves nothing of the capture, as it does there. In two places
// this is stricter: one stream captures at a time, and no other joins it; copies from and to pageable memory are refused.
#include <memory>

#include "engine.h"

using namespace emulator;

struct emulated_graph {
  std::vector<Work> work;
};
struct emulated_event {
  bool captured;  // recorded in a stream that was capturing
};

namespace {

cudaStream_t capturing;
std::unique_ptr<emulated_graph> record;  // of the capture; null once it has failed
std::string failure;                     // of the last work

cudaError_t invalidate(cudaError_t error) {
  record.reset();
  return error;
}

// For what does not go through a stream and so cannot be captured.
cudaError_t unless_capturing(cudaError_t error = cudaSuccess) {
  return capturing ? invalidate(cudaErrorStreamCaptureUnsupported) : error;
}

cudaError_t perform(const Work& work) {
  const char* const error = work();
  if (error) failure = error;
  return error ? cudaErrorLaunchFailure : cudaSuccess;
}

// Nothing is ordered with the legacy stream here, where no stream of the backend waits for it.
cudaError_t enqueue(cudaStream_t stream, Work work) {
  return stream ? stream->take(std::move(work)) : cudaErrorInvalidResourceHandle;
}

}  // namespace

cudaError_t emulated_stream::take(Work work) {
  if (this != capturing) return perform(work);
  if (!record) return cudaErrorStreamCaptureInvalidated;
  record->work.push_back(std::move(work));
  return cudaSuccess;
}

const char* emulator::queue(cudaStream_t stream, Work work) {
  const cudaError_t error = enqueue(stream, std::move(work));
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// ---- memory --------------------------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = capturing ? nullptr : allocate(bytes);
  return unless_capturing(*memory ? cudaSuccess : cudaErrorMemoryAllocation);
}

cudaError_t cudaFree(void* memory) {
  if (capturing || !memory) return unless_capturing();
  return release(memory) ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  const cudaError_t error = cudaMalloc(memory, bytes);
  if (error == cudaSuccess) fill(*memory, 0, bytes);  // the host writes it unseen
  return error;
}

cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (stream && stream == capturing && !(is_device_memory(destination) && is_device_memory(source)))
    return invalidate(cudaErrorStreamCaptureUnsupported);
  return enqueue(stream, [=] { return copy(destination, source, bytes); });
}

cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] { return fill(memory, value, bytes); });
}

// ---- streams and events ----------------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new emulated_stream;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return stream == capturing ? unless_capturing() : cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new emulated_event{};
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->captured = stream && stream == capturing;
  return enqueue(stream, [] { return nullptr; });
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return event->captured ? invalidate(cudaErrorCapturedEvent) : cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  *milliseconds = 0;
  return start->captured || stop->captured ? invalidate(cudaErrorCapturedEvent) : cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->captured != (stream && stream == capturing)) return invalidate(cudaErrorStreamCaptureIsolation);
  return enqueue(stream, [] { return nullptr; });
}

// ---- graphs ----------------------------------------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream) return cudaErrorStreamCaptureUnsupported;
  if (capturing) return cudaErrorIllegalState;
  capturing = stream;
  record = std::make_unique<emulated_graph>();
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!stream || stream != capturing) return cudaErrorIllegalState;
  capturing = nullptr;
  *graph = record.release();
  return *graph ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = !stream || stream != capturing ? cudaStreamCaptureStatusNone
            : record                       ? cudaStreamCaptureStatusActive
                                           : cudaStreamCaptureStatusInvalidated;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* instance, cudaGraph_t graph, unsigned long long) {
  if (capturing) return unless_capturing();
  *instance = new emulated_graph(*graph);
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t instance, cudaStream_t stream) {
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (stream == capturing) return unless_capturing();
  for (const Work& work : instance->work)
    if (const cudaError_t error = perform(work)) return error;
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t instance) { return cudaGraphDestroy(instance); }

// ---- the device --------------------------------------------------------------------------------------------------------

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated GPU", 9, 0, 4, REGION, SHARED_LIMIT, 48 << 10};
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = REGION;
  return cudaSuccess;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorIllegalState: return "the operation cannot be performed in the present state";
    case cudaErrorLaunchFailure: return failure.c_str();
    case cudaErrorStreamCaptureUnsupported: return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated: return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureIsolation: return "dependency created on uncaptured work in another stream";
    case cudaErrorCapturedEvent: return "operation not permitted on an event last recorded in a capturing stream";
    default: return "invalid argument";
  }
}
