// CUDA on a CPU: what a .cu file needs to compile as plain C++17 and run, one block after another, with every thread of
// a block as a fiber. engine.cpp, memory.cpp and ptx.cpp hold the machinery; README.md says what is checked and how the
// builds differ.
//
// Kernel files include ../cuda/platform.h and never this. What nvcc knows and cannot be mapped here (`<<<>>>`, raw
// `__shared__`, inline PTX) has a macro or a wrapper there.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// ---- the language ------------------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }

struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // the NaN that the hardware gives
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

// The C library's are calls where the compiler does not know the processor.
inline float larger_float(float a, float b) { return a > b || b != b ? a : b; }
#define fmaxf larger_float
#define fmaf(a, b, c) ((a) * (b) + (c))

inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float __uint_as_float(unsigned x) {
  float result;
  std::memcpy(&result, &x, sizeof result);
  return result;
}

// ---- threads -----------------------------------------------------------------------------------------------------

namespace emulator {

// What the running thread sees of itself; the engine keeps it up to date.
struct Position {
  uint3 thread;
  unsigned linear;  // thread.x + block.x * (thread.y + block.y * thread.z)
};
extern Position* current;
extern uint3 block_index;
extern dim3 block_size, grid_size;

// Ends the launch with an error at that line of the kernel. Never returns.
[[noreturn]] __attribute__((format(printf, 2, 3))) void fail(int line, const char* format, ...);

// Waits for every thread of the block.
void barrier(int line);

// Waits for the lanes of `mask`; the last to arrive runs `compute` over what all of them brought (indexed by lane;
// nothing outside the mask). All must come with the same mask, operation and line.
using Compute = void (*)(void* const* lanes, uint32_t mask, int line);
void collective(uint32_t mask, const char* operation, int line, void* mine, Compute compute);

// Memory of a block: the same address for every thread, told apart by `key`. Full of NaN until it is written.
void* shared_array(const void* key, size_t bytes, size_t alignment);
void* shared_dynamic();

template <typename T>
struct Shuffle {
  T value;
  unsigned source;  // lane
  T result;

  static void compute(void* const* lanes, uint32_t mask, int line) {
    for (unsigned lane = 0; lane < 32; lane++) {
      if (!(mask >> lane & 1u)) continue;
      auto* own = static_cast<Shuffle*>(lanes[lane]);
      if (!(mask >> own->source & 1u))
        fail(line, "lane %u shuffles from lane %u, which is not in the mask %08x", lane, own->source, mask);
      own->result = static_cast<Shuffle*>(lanes[own->source])->value;
    }
  }
};

inline unsigned lane() { return current->linear & 31u; }

template <typename T>
inline T shuffle(uint32_t mask, T value, unsigned source, int line) {
  Shuffle<T> own{value, source, value};
  collective(mask, "shuffle", line, &own, Shuffle<T>::compute);
  return own.result;
}

uint32_t ballot(uint32_t mask, bool predicate, int line);
uint32_t match_any(uint32_t mask, uint64_t value, int line);

template <typename T>
T atomic_add(T* address, T value);  // int, float
int atomic_cas(int* address, int expected, int value);

// Runs body(closure) as a kernel. Null, or what went wrong.
const char* run(const char* name, dim3 grid, dim3 block, size_t shared, void (*body)(void*), void* closure);

bool is_device_memory(const void* address);

// Runs kernel(arguments...). Null, or what went wrong.
template <typename... Parameters>
inline const char* launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                          Parameters... arguments) {
  const auto is_host_pointer = [](auto argument) {
    if constexpr (std::is_pointer_v<decltype(argument)>) return argument && !is_device_memory(argument);
    return false;
  };
  if ((is_host_pointer(arguments) || ...)) return "a kernel was given the address of host memory";
  auto body = [&] { kernel(arguments...); };
  return run(name, grid, block, shared, [](void* closure) { (*static_cast<decltype(body)*>(closure))(); }, &body);
}

}  // namespace emulator

#define threadIdx (::emulator::current->thread)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)

inline void __syncthreads(int line = __builtin_LINE()) { emulator::barrier(line); }
void __syncwarp(uint32_t mask = 0xffffffffu, int line = __builtin_LINE());

template <typename T>
inline T __shfl_sync(uint32_t mask, T value, int source, int width = 32, int line = __builtin_LINE()) {
  const unsigned segment = static_cast<unsigned>(width) - 1u;
  return emulator::shuffle(mask, value, (emulator::lane() & ~segment) | (static_cast<unsigned>(source) & segment),
                           line);
}
template <typename T>
inline T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
  const unsigned own = emulator::lane(), source = own ^ static_cast<unsigned>(bits);
  const bool inside = source / static_cast<unsigned>(width) <= own / static_cast<unsigned>(width);
  return emulator::shuffle(mask, value, inside ? source & 31u : own, line);
}
template <typename T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  const unsigned own = emulator::lane(), segment = static_cast<unsigned>(width) - 1u;
  return emulator::shuffle(mask, value, (own & segment) >= delta ? own - delta : own, line);
}
inline unsigned __ballot_sync(uint32_t mask, bool p, int line = __builtin_LINE()) {
  return emulator::ballot(mask, p, line);
}
inline unsigned __match_any_sync(uint32_t mask, int value, int line = __builtin_LINE()) {
  return emulator::match_any(mask, static_cast<uint64_t>(value), line);
}

template <typename T>
inline T atomicAdd(T* address, std::common_type_t<T> value) {
  return emulator::atomic_add(address, value);
}
inline int atomicCAS(int* address, int expected, int value) {
  return emulator::atomic_cas(address, expected, value);
}

// SHARED_ARRAY(float, tile, [32][33]); SHARED_DYNAMIC(bytes) is a char array as long as the launch says.
#define SHARED_ARRAY(type, name, dimensions) \
  static const char name##_key = 0;          \
  typedef type name##_type dimensions;       \
  name##_type& name = *static_cast<name##_type*>(::emulator::shared_array(&name##_key, sizeof(name##_type), 16))
#define SHARED_DYNAMIC(name) char* const name = static_cast<char*>(::emulator::shared_dynamic())

// ---- wrappers of PTX: ../cuda/ptx.h has the real ones ---------------------------------------------------------------

void cp_async16(void* destination, const void* source, int bytes = 16, int line = __builtin_LINE());
void cp_async_commit();
void cp_async_wait_groups(int pending);
template <int pending>
inline void cp_async_wait() {
  cp_async_wait_groups(pending);
}
void ldmatrix_x4(uint32_t (&registers)[4], const void* row, int line = __builtin_LINE());
void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row, int line = __builtin_LINE());
void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE());
inline uint32_t pack_bf16(float low, float high) {
  return __float2bfloat16_rn(low).bits | static_cast<uint32_t>(__float2bfloat16_rn(high).bits) << 16;
}
inline float fast_exp2(float x) { return std::exp2(x) < 0x1p-126f ? 0.0f : std::exp2(x); }
template <typename T>
inline void forget(T&) {}

// ---- the runtime's functions that the backend calls: one device, everything done when a call returns ----------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorMemoryAllocation = 2, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
enum { cudaHostAllocMapped = 2, cudaHostAllocPortable = 1, cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2 };
using cudaStream_t = struct emulated_stream*;
using cudaEvent_t = struct emulated_event*;
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount;
  size_t totalGlobalMem, sharedMemPerBlockOptin;
  int l2CacheSize;
};

cudaError_t cudaMalloc(void** memory, size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) { return cudaMalloc(memory, bytes); }
inline cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
inline cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = nullptr, cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return *event = nullptr, cudaSuccess; }
inline cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0 };
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  return *milliseconds = 0, cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
