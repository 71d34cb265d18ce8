// CUDA on a CPU: what a kernel sees when its file is compiled as plain C++17 (runtime.h has what the host sees). README.md
// says what is checked and how the builds differ.
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

// What the running thread sees of itself. Blocks have one dimension.
extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;
inline unsigned lane() { return thread_index.x & 31u; }

// Ends the launch with an error at that line of the kernel. It does not return, but is not declared so: before such calls
// AddressSanitizer wipes what it knows of the stack, and a fiber's is not the one that it knows.
__attribute__((cold, format(printf, 2, 3))) void fail(int line, const char* format, ...);

// Waits for every thread of the block.
void barrier(int line);

// Waits for the lanes of `mask`; the last to arrive runs `compute` over what all of them brought (indexed by lane;
// nothing outside the mask). All must come with the same mask, operation and line.
using Compute = void (*)(void* const* lanes, uint32_t mask);
void collective(uint32_t mask, const char* operation, int line, void* mine, Compute compute);

// The same where every lane brings a value: then each one's `receive` is called with a function from lanes to values.
template <typename T, typename Receive>
inline void exchange(uint32_t mask, const char* operation, int line, T value, Receive receive) {
  std::pair<T, Receive> own(value, receive);
  collective(mask, operation, line, &own, [](void* const* lanes, uint32_t all) {
    const auto lane = [lanes](unsigned i) { return static_cast<std::pair<T, Receive>*>(lanes[i]); };
    for (uint32_t rest = all; rest; rest &= rest - 1)
      lane(static_cast<unsigned>(__builtin_ctz(rest)))->second([lane](unsigned i) { return lane(i)->first; });
  });
}

template <typename T>
inline T shuffle(uint32_t mask, T value, unsigned source, int line) {
  T result;
  if (!(mask >> source & 1u)) fail(line, "shuffle: lane %u is not in the mask %08x", source, mask);
  exchange(mask, "shuffle", line, value, [&](auto brought) { result = brought(source); });
  return result;
}

// The lanes of `mask` whose value is `wanted`.
template <typename T>
inline unsigned lanes_with(uint32_t mask, const char* operation, int line, T value, T wanted) {
  unsigned result = 0;
  exchange(mask, operation, line, value, [&](auto brought) {
    for (unsigned i = 0; i < 32; i++)
      if (mask >> i & 1u && brought(i) == wanted) result |= 1u << i;
  });
  return result;
}

template <typename T>
T atomic_add(T* address, T value);  // int, float

// Memory of a block: the same address for every thread, told apart by `key`. Full of NaN until it is written.
void* shared_array(const void* key, size_t bytes);
void* shared_dynamic();

}  // namespace emulator

#define threadIdx (::emulator::thread_index)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)

inline void __syncthreads(int line = __builtin_LINE()) { emulator::barrier(line); }
void __syncwarp(uint32_t mask = 0xffffffffu, int line = __builtin_LINE());

template <typename T>
inline T __shfl_sync(uint32_t mask, T value, int source, int line = __builtin_LINE()) {
  return emulator::shuffle(mask, value, static_cast<unsigned>(source) & 31u, line);
}
template <typename T>
inline T __shfl_xor_sync(uint32_t mask, T value, int bits, int line = __builtin_LINE()) {
  return emulator::shuffle(mask, value, (emulator::lane() ^ static_cast<unsigned>(bits)) & 31u, line);
}
template <typename T>
inline T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int line = __builtin_LINE()) {
  const unsigned own = emulator::lane();
  return emulator::shuffle(mask, value, own >= delta ? own - delta : own, line);
}
inline unsigned __ballot_sync(uint32_t mask, bool predicate, int line = __builtin_LINE()) {
  return emulator::lanes_with(mask, "vote", line, predicate, true);
}
inline unsigned __match_any_sync(uint32_t mask, int value, int line = __builtin_LINE()) {
  return emulator::lanes_with(mask, "match", line, value, value);
}

template <typename T>
inline T atomicAdd(T* address, std::common_type_t<T> value) {
  return emulator::atomic_add(address, value);
}
int atomicCAS(int* address, int expected, int value);

// SHARED_ARRAY(float, tile, [32][33]); SHARED_DYNAMIC(bytes) is a char array as long as the launch says.
#define SHARED_ARRAY(type, name, dimensions) \
  static const char name##_key = 0;          \
  typedef type name##_type dimensions;       \
  name##_type& name = *static_cast<name##_type*>(::emulator::shared_array(&name##_key, sizeof(name##_type)))
#define SHARED_DYNAMIC(name) char* const name = static_cast<char*>(::emulator::shared_dynamic())

// ---- wrappers of PTX: ../cuda/ptx.h has the real ones ---------------------------------------------------------------

void cp_async16(void* destination, const void* source, int bytes = 16, int line = __builtin_LINE());
void cp_async_commit();
void cp_async_wait_groups(int pending);
template <int pending>
inline void cp_async_wait() {
  cp_async_wait_groups(pending);
}
using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }
void ldmatrix_x4(uint32_t (&registers)[4], SharedAddress row, int line = __builtin_LINE());
void ldmatrix_x4_trans(uint32_t (&registers)[4], SharedAddress row, int line = __builtin_LINE());
void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line = __builtin_LINE());
inline uint32_t pack_bf16(float low, float high) {
  return __float2bfloat16_rn(low).bits | static_cast<uint32_t>(__float2bfloat16_rn(high).bits) << 16;
}
inline float fast_exp2(float x) { return std::exp2(x) < 0x1p-126f ? 0.0f : std::exp2(x); }
template <typename T>
inline void forget(T&) {}
