// What a capture records and what it forbids, for real hardware and for the emulator: that work is not done before it is
// replayed, and then with the arguments that it was given; that each of the mistakes below gets CUDA's error, ends the
// capture without a graph, and leaves a stream that can be used. Exits with 1 if something is not as it should be.
#include <cstdio>

#include "fail.h"

using namespace mantou;

namespace {

cudaStream_t stream, other;
cudaEvent_t event;
int* numbers;  // on the device: [0] is added to, [1] receives copies
int* pinned;   // page-locked, two

GLOBAL void add(int* to, int amount) { *to += amount; }

int failures = 0;

void expect(const char* what, bool right, const char* said) {
  std::printf("%s: %s\n", what, right ? "as it should be" : said);
  if (!right) failures++;
}

cudaError_t add_to_first(int amount) {
  return launch("add", add, 1, 1, 0, stream, numbers, amount) == MANTOU_OK ? cudaSuccess : cudaErrorInvalidValue;
}

// numbers[i] after what was queued.
int number(int i) {
  cudaMemcpyAsync(pinned + 1, numbers + i, sizeof(int), cudaMemcpyDefault, stream);
  return cudaStreamSynchronize(stream) == cudaSuccess ? pinned[1] : -1;
}

void test_replays() {
  pinned[0] = 0;
  cudaMemsetAsync(numbers, 0, 2 * sizeof(int), stream);
  add_to_first(1);
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  int amount = 10;
  add_to_first(amount);
  amount = 1000;
  cudaMemcpyAsync(numbers + 1, pinned, sizeof(int), cudaMemcpyDefault, stream);
  cudaMemcpyAsync(pinned, numbers, sizeof(int), cudaMemcpyDefault, stream);
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaStreamIsCapturing(stream, &status);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t instance = nullptr;
  cudaError_t error = cudaStreamEndCapture(stream, &graph);
  if (error == cudaSuccess) error = cudaGraphInstantiate(&instance, graph, 0);
  expect("a capture", error == cudaSuccess && status == cudaStreamCaptureStatusActive, cudaGetErrorString(error));
  if (error != cudaSuccess) return;
  cudaGraphDestroy(graph);
  expect("what is captured is not done", number(0) == 1 && pinned[0] == 0, "it was done");
  for (int i = 0; i < 2; i++) error = cudaGraphLaunch(instance, stream);
  // The second time, page-locked memory holds what the first has put there.
  expect("replays", error == cudaSuccess && number(0) == 21 && number(1) == 11 && pinned[0] == 21, "wrong numbers");
  cudaGraphExecDestroy(instance);
}

// `mistake` is made while the stream captures, and is to fail with `expected`.
template <typename Mistake>
void test_mistake(const char* what, cudaError_t expected, const Mistake& mistake) {
  cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
  add_to_first(1);
  const cudaError_t error = mistake();
  cudaGraph_t graph = nullptr;
  const cudaError_t end = cudaStreamEndCapture(stream, &graph);
  for (int i = 0; i < 2; i++) cudaGetLastError();
  if (graph) cudaGraphDestroy(graph);
  const bool works_on = add_to_first(1) == cudaSuccess && number(0) > 0;
  if (error != expected) expect(what, false, error == cudaSuccess ? "went unnoticed" : cudaGetErrorString(error));
  else expect(what, end != cudaSuccess && !graph && works_on, "the capture goes on, or the stream does not");
}

}  // namespace

int main() {
  void* memory = nullptr;
  cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
  if (error == cudaSuccess) error = cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  if (error == cudaSuccess) error = cudaHostAlloc(&memory, 2 * sizeof(int), cudaHostAllocPortable);
  pinned = static_cast<int*>(memory);
  if (error == cudaSuccess) error = cudaMalloc(&memory, 2 * sizeof(int));
  numbers = static_cast<int*>(memory);
  if (error != cudaSuccess) {
    std::printf("cannot begin: %s\n", cudaGetErrorString(error));
    return 1;
  }
  test_replays();
  test_mistake("waiting for a stream that captures", cudaErrorStreamCaptureUnsupported,
               [] { return cudaStreamSynchronize(stream); });
  test_mistake("an allocation during a capture", cudaErrorStreamCaptureUnsupported, [] {
    void* unused = nullptr;
    return cudaMalloc(&unused, 1);
  });
  test_mistake("waiting for an event of a capture", cudaErrorCapturedEvent, [] {
    const cudaError_t recorded = cudaEventRecord(event, stream);
    return recorded == cudaSuccess ? cudaEventSynchronize(event) : recorded;
  });
  test_mistake("work that waits for what is not captured", cudaErrorStreamCaptureIsolation, [] {
    const cudaError_t recorded = cudaEventRecord(event, other);
    return recorded == cudaSuccess ? cudaStreamWaitEvent(stream, event, 0) : recorded;
  });
  test_mistake("work after a mistake", cudaErrorStreamCaptureInvalidated, [] {
    cudaStreamSynchronize(stream);
    return cudaMemsetAsync(numbers, 0, sizeof(int), stream);
  });
  return failures ? 1 : 0;
}
