// What every file of the CUDA backend shares: the context, error reporting, launches, and for kernels the types, the
// 16-byte loads and the sums.
//
// Two compilers read these files: nvcc, and g++ with ../emulator in the GPU's place. So that both can, kernels are
// GLOBAL functions started by launch(), helpers are DEVICE functions, shared memory comes from SHARED_ARRAY and
// SHARED_DYNAMIC, and what needs PTX has a wrapper in ptx.h and its twin in the emulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "../errors.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "ptx.h"

#define SHARED_ARRAY(type, name, dimensions) __shared__ __align__(16) type name dimensions
#define SHARED_DYNAMIC(name) extern __shared__ __align__(256) char name[]
#else
#include "../emulator/runtime.h"
#endif

#define DEVICE __device__ __forceinline__
#define GLOBAL static __global__
#define LAUNCH_BOUNDS __launch_bounds__

namespace mantou {

// A mistake that only a kernel can see: the first one is kept, and reported by the next call that waits for the device.
struct Fault {
  int32_t kind;  // of FaultKind; 0 for none
  int32_t value;
  int64_t row, limit;
};
enum FaultKind : int32_t { NO_FAULT, TOKEN_FORWARD, TOKEN_BACKWARD, TARGET, CACHE_FULL, CACHE_SLOT };

// A library or plan that one file keeps in the context.
struct Attachment {
  void* data;
  void (*destroy)(void* data);
};

}  // namespace mantou

struct mantou_context {
  int device;
  int multiprocessors;
  int64_t memory_bytes;
  int64_t cache_bytes;       // second-level cache
  int64_t shared_bytes;      // that a block may have at most
  cudaStream_t stream;       // compute
  cudaStream_t copy_stream;
  cudaEvent_t event;         // of mantou_stream_wait
  cudaEvent_t marks[2];      // of mantou_mark
  bool capturing;            // between mantou_capture_begin and _end
  void* scratch;             // device memory, aligned to 256 bytes, for the operation that runs
  int64_t scratch_bytes;
  mantou::Fault* fault;      // page-locked, so that both sides can reach it
  mantou::Attachment matmul;
  char name[256];
};

namespace mantou {

using bf16 = __nv_bfloat16;

constexpr int WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// ---- on the host -------------------------------------------------------------------------------------------------

// Keeps CUDA's text for a call that failed, with what was asked of it.
inline int32_t cuda_failed(const char* function, const char* what, cudaError_t error) {
  return fail(error == cudaErrorMemoryAllocation ? MANTOU_OUT_OF_MEMORY : MANTOU_DEVICE_ERROR, "%s: %s: %s", function,
              what, cudaGetErrorString(error));
}

#define CHECK_CUDA(call)                                                                      \
  do {                                                                                        \
    const cudaError_t error_ = (call);                                                        \
    if (error_ != cudaSuccess) return mantou::cuda_failed(__func__, #call, error_);           \
  } while (0)

// For what cannot be captured: what waits, allocates, or belongs to the other stream. CUDA would drop the whole capture.
#define CHECK_NOT_CAPTURED(context) CHECK(!(context)->capturing, "%s: called during a capture", __func__)

// Queues kernel(arguments...) on `stream`; `name` is the operation's, for the error.
template <typename... Parameters, typename... Arguments>
inline int32_t launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared,
                      cudaStream_t stream, Arguments... arguments) {
#if defined(__CUDACC__)
  const auto address = reinterpret_cast<const void*>(kernel);
  cudaError_t error = cudaSuccess;
  // A kernel gets more than 48 KiB, its static shared memory included, only if it has asked.
  if (shared > 0)
    error = cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
  if (error == cudaSuccess) {
    const auto start = [&](Parameters... parameters) {
      void* pointers[] = {const_cast<void*>(static_cast<const void*>(&parameters))...};
      return cudaLaunchKernel(address, grid, block, pointers, shared, stream);
    };
    error = start(arguments...);
  }
  if (error == cudaSuccess) return MANTOU_OK;
  cudaGetLastError();  // forgets the error: the context works on
  return fail(MANTOU_DEVICE_ERROR, "%s: launch of %u x %u x %u blocks of %u threads with %zu bytes of shared memory: %s",
              name, grid.x, grid.y, grid.z, block.x * block.y * block.z, shared, cudaGetErrorString(error));
#else
  const char* error = emulator::launch(name, kernel, grid, block, shared, stream, static_cast<Parameters>(arguments)...);
  return error ? fail(MANTOU_DEVICE_ERROR, "%s: %s", name, error) : MANTOU_OK;
#endif
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// A grid of that many blocks, in two dimensions maybe; too many for CUDA make the launch fail.
inline dim3 grid_of(int64_t blocks, int64_t second = 1) {
  const auto held = [](int64_t count) { return count > 0x7fffffff ? 0xffffffffu : static_cast<unsigned>(count); };
  return dim3(held(blocks), held(second));
}

// A grid for a kernel that strides over `work` pieces: enough blocks to fill the device `waves` times, no more.
inline unsigned grid_for(const mantou_context* context, int64_t work, int waves) {
  const int64_t most = static_cast<int64_t>(context->multiprocessors) * waves;
  return static_cast<unsigned>(work < 1 ? 1 : smaller(work, most));
}

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

inline int64_t bytes_of(int32_t dtype) { return dtype == MANTOU_FLOAT32 ? 4 : 2; }

// Whether rows of `dim` elements that begin at `pointers` (null ones aside) can be read 16 bytes at a time.
template <typename... Pointers>
inline bool in_vectors(int32_t dtype, int64_t dim, const Pointers*... pointers) {
  return dim * bytes_of(dtype) % 16 == 0 && (is_aligned(pointers) && ...);
}

// Calls body(T()) with the type of `dtype`.
template <typename Body>
inline int32_t with_type(int32_t dtype, const Body& body) {
  return dtype == MANTOU_FLOAT32 ? body(float()) : body(bf16());
}

// Calls body(std::integral_constant<bool, value>).
template <typename Body>
inline int32_t with_bool(bool value, const Body& body) {
  return value ? body(std::true_type()) : body(std::false_type());
}

// ---- in kernels --------------------------------------------------------------------------------------------------

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
DEVICE bf16 to_bf16(float x) { return __float2bfloat16_rn(x); }
DEVICE float2 unpack_bf16(uint32_t pair) {
  return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

template <typename T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) {
  return x;
}
template <>
DEVICE bf16 from_float<bf16>(float x) {
  return to_bf16(x);
}

// N neighbouring elements as float32, loaded and stored in one access of N * sizeof(T) bytes (at most 16).
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

// How many elements lie in 16 bytes.
template <typename T>
constexpr int LANES = 16 / static_cast<int>(sizeof(T));

template <int N, typename T>
DEVICE const Pack<T, N>& pack_at(const T* from) {
  return *reinterpret_cast<const Pack<T, N>*>(from);
}

template <int N, typename T>
DEVICE void load(float (&values)[N], const T* from) {
  const Pack<T, N> pack = pack_at<N>(from);
#pragma unroll
  for (int i = 0; i < N; i++) values[i] = to_float(pack.values[i]);
}

template <int N, typename T>
DEVICE void store(T* to, const float (&values)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; i++) pack.values[i] = from_float<T>(values[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

DEVICE int lane_of_thread() { return static_cast<int>(threadIdx.x) & (WARP - 1); }
DEVICE int warp_of_thread() { return static_cast<int>(threadIdx.x) / WARP; }

// The sum and the largest over a warp, in every lane; the order does not depend on timing.
template <typename T>
DEVICE T warp_sum(T x) {
#pragma unroll
  for (int bit = WARP / 2; bit > 0; bit /= 2) x += __shfl_xor_sync(ALL_LANES, x, bit);
  return x;
}
DEVICE float warp_max(float x) {
#pragma unroll
  for (int bit = WARP / 2; bit > 0; bit /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, bit));
  return x;
}

// The same over a block of THREADS threads; `scratch` (shared, THREADS / WARP elements) may be used again after another
// barrier.
template <int THREADS, typename T>
DEVICE T block_sum(T x, T* scratch) {
  x = warp_sum(x);
  if (lane_of_thread() == 0) scratch[warp_of_thread()] = x;
  __syncthreads();
  return warp_sum(lane_of_thread() < THREADS / WARP ? scratch[lane_of_thread()] : T(0));
}
template <int THREADS>
DEVICE float block_max(float x, float* scratch) {
  x = warp_max(x);
  if (lane_of_thread() == 0) scratch[warp_of_thread()] = x;
  __syncthreads();
  return warp_max(lane_of_thread() < THREADS / WARP ? scratch[lane_of_thread()] : -INFINITY);
}

// exp(x) for arithmetic in T: to float32's last digits, or in one instruction.
template <typename T>
DEVICE float exponential(float x) {
  return sizeof(T) == 4 ? expf(x) : __expf(x);
}

// Row and column of element `index` of a matrix with that many columns. A 64-bit division takes long.
struct RowColumn {
  int64_t row, column;
};
DEVICE RowColumn row_and_column(int64_t index, int64_t columns) {
  if (index <= 0xffffffff && columns <= 0xffffffff) {
    const uint32_t i = static_cast<uint32_t>(index), c = static_cast<uint32_t>(columns);
    return {i / c, i % c};
  }
  return {index / columns, index % columns};
}

DEVICE int64_t thread_index() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }

// ---- loops over elements -----------------------------------------------------------------------------------------

constexpr int ELEMENT_THREADS = 256;

// body.at<N>(i) for the whole packs of N elements at i, and body.at<1>(i) for what is left over.
template <int N, typename Body>
GLOBAL void LAUNCH_BOUNDS(ELEMENT_THREADS) for_packs(int64_t count, Body body) {
  const int64_t index = thread_index(), packs = count / N;
  if (index < packs) body.template at<N>(index * N);
  if (N > 1 && index < count - packs * N) body.template at<1>(packs * N + index);
}

// Runs it over `count` elements, in packs of N where `vectors`.
template <int N, typename Body>
int32_t for_elements(const mantou_context* context, const char* name, int64_t count, bool vectors, Body body) {
  const int64_t threads = vectors && count >= N ? count / N : count;
  const dim3 grid = grid_of(divide_up(threads, ELEMENT_THREADS));
  if (vectors) return launch(name, for_packs<N, Body>, grid, ELEMENT_THREADS, 0, context->stream, count, body);
  return launch(name, for_packs<1, Body>, grid, ELEMENT_THREADS, 0, context->stream, count, body);
}

// Keeps the first fault.
DEVICE void report_fault(Fault* fault, FaultKind kind, int32_t value, int64_t row, int64_t limit) {
  if (atomicCAS(&fault->kind, static_cast<int32_t>(NO_FAULT), static_cast<int32_t>(kind)) != NO_FAULT) return;
  fault->value = value;
  fault->row = row;
  fault->limit = limit;
}

}  // namespace mantou
