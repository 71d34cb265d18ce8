// The few instructions that CUDA C++ has no name for. ../emulator has the same functions in software, so each of these
// is checked on real hardware by a test of its own (wrappers.cu).
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

// Where something lies in shared memory, to be computed with: a pointer would be made into one at every use.
using SharedAddress = uint32_t;
__device__ __forceinline__ SharedAddress shared_address(const void* pointer) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes from device to shared memory in the background; both addresses are multiples of 16. Only the first
// `bytes` are read (none for 0), the others become zeros.
__device__ __forceinline__ void cp_async16(void* destination, const void* source, int bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(destination)), "l"(source), "r"(bytes)
               : "memory");
}

// Closes the group of this thread's copies since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `pending` of this thread's groups are still under way. Other threads see the data after a barrier.
template <int pending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8 x 8 matrices of bfloat16 from shared memory. Lane l gives the address (a multiple of 16) of row l % 8 of matrix
// l / 8; lane 4 g + t receives the elements 2 t and 2 t + 1 of row g of each.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&registers)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(row)
               : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&registers)[4], SharedAddress row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(row)
               : "memory");
}

// D [16, 8] += A [16, 16] B [16, 8], bfloat16 with float32 sums. With lane = 4 g + t:
//   a: (row g, columns 2 t and 2 t + 1), (g + 8, same), (g, 2 t + 8 and 2 t + 9), (g + 8, same)
//   b0, b1: (rows 2 t and 2 t + 1, column g), (rows 2 t + 8 and 2 t + 9, column g)
//   d: (row g, columns 2 t and 2 t + 1), (g + 8, same)
__device__ __forceinline__ void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(  // all lanes take part, so it must stay where they are together
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two float32 as bfloat16, the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t result;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

// 2^x within two units in the last place; results below 2^-126 become 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Makes the compiler forget what it knows of the registers of `value`, so that it computes again what follows from them
// instead of keeping it.
template <typename T>
__device__ __forceinline__ void forget(T& value) {
  if constexpr (sizeof(T) % 4 == 0) {
    uint32_t words[sizeof(T) / 4];
    memcpy(words, &value, sizeof(T));
#pragma unroll
    for (size_t i = 0; i < sizeof(T) / 4; i++) asm volatile("" : "+r"(words[i]));
    memcpy(&value, words, sizeof(T));
  }
}
