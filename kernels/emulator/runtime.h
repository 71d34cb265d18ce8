// CUDA's run time as the backend calls it: streams, events, graphs, copies, launches. One device, on one thread of the
// host. A stream does its work when it is given it, or, while it captures, keeps it with its arguments for the replays of
// the graph.
//
// What a capture forbids ("CUDA C++ Programming Guide", Prohibited and Unhandled Operations; cuda_runtime_api.h at
// cudaThreadExchangeStreamCaptureMode) is an error here, and leaves nothing of the capture, as it does there. In two places
// this is stricter: one stream captures at a time, and no other joins it; copies from and to pageable memory are refused.
#pragma once

#include <functional>
#include <vector>

#include "emulator.h"

// An error is its text.
using cudaError_t = const char*;
constexpr cudaError_t cudaSuccess = nullptr;
inline constexpr char cudaErrorInvalidValue[] = "invalid argument";
inline constexpr char cudaErrorMemoryAllocation[] = "out of memory";
inline constexpr char cudaErrorInvalidResourceHandle[] = "invalid resource handle";
inline constexpr char cudaErrorIllegalState[] = "the operation cannot be performed in the present state";
inline constexpr char cudaErrorStreamCaptureUnsupported[] = "operation not permitted when stream is capturing";
inline constexpr char cudaErrorStreamCaptureInvalidated[] = "operation failed due to a previous error during capture";
inline constexpr char cudaErrorStreamCaptureIsolation[] = "dependency created on uncaptured work in another stream";
inline constexpr char cudaErrorCapturedEvent[] =
    "operation not permitted on an event last recorded in a capturing stream";

enum cudaMemcpyKind { cudaMemcpyDefault };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum { cudaHostAllocMapped = 2, cudaHostAllocPortable = 1, cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem, sharedMemPerBlockOptin;
  int l2CacheSize;
};

namespace emulator {

constexpr size_t DEVICE_BYTES = size_t{8} << 30, SHARED_LIMIT = 227 << 10;

// Something for a stream to do. It returns null, or what went wrong.
using Work = std::function<cudaError_t()>;

// Runs `thread` for every thread as a kernel.
cudaError_t run(const char* name, dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread);

void* allocate(size_t bytes);  // null where there is not enough
bool release(void* memory);    // false where nothing was allocated
bool is_device_memory(const void* address);

// Of the host, or of device memory that is allocated.
cudaError_t copy(void* destination, const void* source, size_t bytes);
cudaError_t fill(void* memory, int value, size_t bytes);

}  // namespace emulator

struct emulated_stream {
  virtual ~emulated_stream() = default;
  // Does the work, or keeps it while the stream captures. Virtual: a library of its own can give work to a stream.
  virtual cudaError_t take(emulator::Work work);
};
struct emulated_event {
  bool captured;  // recorded in a stream that was capturing
};
struct emulated_graph {
  std::vector<emulator::Work> work;
};
using cudaStream_t = emulated_stream*;
using cudaEvent_t = emulated_event*;
using cudaGraph_t = emulated_graph*;
using cudaGraphExec_t = emulated_graph*;

namespace emulator {

inline cudaStream_t capturing;
inline cudaGraph_t recorded;  // by the capture; null once it has failed

inline bool captures(cudaStream_t stream) { return stream && stream == capturing; }

// What is forbidden ends the capture.
inline cudaError_t forbid(cudaError_t error = cudaErrorStreamCaptureUnsupported) {
  delete std::exchange(recorded, nullptr);
  return error;
}

// Nothing is ordered with the legacy stream here, where no stream of the backend waits for it.
inline cudaError_t queue(cudaStream_t stream, Work work) {
  return stream ? stream->take(std::move(work)) : cudaErrorInvalidResourceHandle;
}

// Queues kernel(arguments...).
template <typename... Parameters>
inline cudaError_t launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                          cudaStream_t stream, Parameters... arguments) {
  const auto is_host_pointer = [](auto argument) {
    if constexpr (std::is_pointer_v<decltype(argument)>) return argument && !is_device_memory(argument);
    return false;
  };
  if ((is_host_pointer(arguments) || ...)) return "a kernel was given the address of host memory";
  return queue(stream, [=] { return run(name, grid, block, shared, [=] { kernel(arguments...); }); });
}

}  // namespace emulator

inline cudaError_t emulated_stream::take(emulator::Work work) {
  if (this != emulator::capturing) return work();
  if (!emulator::recorded) return cudaErrorStreamCaptureInvalidated;
  emulator::recorded->work.push_back(std::move(work));
  return cudaSuccess;
}

// ---- memory --------------------------------------------------------------------------------------------------------

inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = nullptr;
  if (emulator::capturing) return emulator::forbid();
  *memory = emulator::allocate(bytes);
  return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}

inline cudaError_t cudaFree(void* memory) {
  if (emulator::capturing) return emulator::forbid();
  return !memory || emulator::release(memory) ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
  const cudaError_t error = cudaMalloc(memory, bytes);
  return error ? error : emulator::fill(*memory, 0, bytes);  // the host writes it unseen
}

inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }

inline cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream) {
  const bool on_device = emulator::is_device_memory(destination) && emulator::is_device_memory(source);
  if (emulator::captures(stream) && !on_device) return emulator::forbid();
  return emulator::queue(stream, [=] { return emulator::copy(destination, source, bytes); });
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
  return emulator::queue(stream, [=] { return emulator::fill(memory, value, bytes); });
}

// ---- streams and events ----------------------------------------------------------------------------------------------

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return *stream = new emulated_stream, cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) { return delete stream, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return emulator::captures(stream) ? emulator::forbid() : cudaSuccess;
}

inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return *event = new emulated_event{}, cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  event->captured = emulator::captures(stream);
  return emulator::queue(stream, [] { return cudaSuccess; });
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return event->captured ? emulator::forbid(cudaErrorCapturedEvent) : cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
  *milliseconds = 0;
  return cudaEventSynchronize(start->captured ? start : stop);
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (event->captured != emulator::captures(stream)) return emulator::forbid(cudaErrorStreamCaptureIsolation);
  return emulator::queue(stream, [] { return cudaSuccess; });
}

// ---- graphs ----------------------------------------------------------------------------------------------------------

inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream) return cudaErrorStreamCaptureUnsupported;
  if (emulator::capturing) return cudaErrorIllegalState;
  emulator::capturing = stream;
  emulator::recorded = new emulated_graph;
  return cudaSuccess;
}

inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = nullptr;
  if (!emulator::captures(stream)) return cudaErrorIllegalState;
  emulator::capturing = nullptr;
  *graph = std::exchange(emulator::recorded, nullptr);
  return *graph ? cudaSuccess : cudaErrorStreamCaptureInvalidated;
}

inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = emulator::captures(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* instance, cudaGraph_t graph, unsigned long long) {
  if (emulator::capturing) return emulator::forbid();
  return *instance = new emulated_graph(*graph), cudaSuccess;
}

inline cudaError_t cudaGraphLaunch(cudaGraphExec_t instance, cudaStream_t stream) {
  if (emulator::captures(stream)) return emulator::forbid();
  for (const emulator::Work& work : instance->work)
    if (const cudaError_t error = emulator::queue(stream, work)) return error;
  return cudaSuccess;
}

inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t instance) { return delete instance, cudaSuccess; }

// ---- the device ------------------------------------------------------------------------------------------------------

inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {"emulated GPU", 9, 0, 4, emulator::DEVICE_BYTES, emulator::SHARED_LIMIT, 48 << 10};
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  return *free = *total = emulator::DEVICE_BYTES, cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) { return error ? error : "no error"; }
