// Kernels with one mistake each, of the kind that a GPU punishes or, worse, lets pass. tests/emulator runs every one in
// every build of the emulator: `faults NAME` prints what the emulator says of it, or "ok" and the first value.
#include <cstdio>
#include <map>
#include <string>

#include "fail.h"

using namespace mantou;

namespace {

constexpr int COUNT = 128;

// A mistake is a function of the thread's number, of memory that holds the numbers 0 .. COUNT - 1, and of memory that
// nothing has written.
#define KERNEL(name) GLOBAL void name([[maybe_unused]] float* values, [[maybe_unused]] float* blank)

// ---- what is right -------------------------------------------------------------------------------------------------

KERNEL(right) {
  SHARED_ARRAY(float, tile, [COUNT]);
  const int i = static_cast<int>(threadIdx.x), lane = i % WARP;
  if (i % 4 == 0) cp_async16(&tile[i], &values[i]);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  float x = tile[i ^ 1];  // of the same warp
  __syncwarp();
  tile[i] = x + warp_sum(x);
  __syncthreads();
  x = tile[COUNT - 1 - i];
  // Halves of a warp go their own ways.
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  if (lane < 16)
    x += __shfl_xor_sync(half, x, 1);
  else
    x -= __shfl_sync(half, x, 16);
  atomicAdd(&values[0], 1.0f);
  blank[i] = x;
}

// ---- what is wrong -------------------------------------------------------------------------------------------------

KERNEL(barrier_after_return) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  blank[threadIdx.x] = values[0];
}

KERNEL(barrier_in_a_branch) {
  if (threadIdx.x < WARP) __syncthreads();
  blank[threadIdx.x] = values[0];
}

KERNEL(two_barriers_for_one) {
  if (threadIdx.x < WARP)
    __syncthreads();
  else
    __syncthreads();
  blank[threadIdx.x] = values[0];
}

KERNEL(mask_without_self) { blank[threadIdx.x] = static_cast<float>(__ballot_sync(0x0000ffffu, true)); }

KERNEL(mask_with_absent_lanes) {
  if (threadIdx.x % WARP >= 16) return;
  blank[threadIdx.x] = __shfl_xor_sync(ALL_LANES, values[threadIdx.x], 1);
}

KERNEL(source_outside_mask) {
  if (threadIdx.x % WARP >= 16) return;
  blank[threadIdx.x] = __shfl_sync(0x0000ffffu, values[threadIdx.x], 20);
}

// Right on a GPU; the emulator cannot say what it orders.
KERNEL(syncwarp_of_half) {
  if (threadIdx.x % WARP < 16) __syncwarp(0x0000ffffu);
  blank[threadIdx.x] = values[threadIdx.x];
}

KERNEL(different_shuffles) {
  if (threadIdx.x % 2 == 0)
    blank[threadIdx.x] = __shfl_xor_sync(ALL_LANES, values[threadIdx.x], 2);
  else
    blank[threadIdx.x] = __shfl_xor_sync(ALL_LANES, values[threadIdx.x], 4);
}

KERNEL(beyond_shared) {
  SHARED_ARRAY(float, tile, [COUNT]);
  tile[threadIdx.x + 1] = values[threadIdx.x];
  blank[threadIdx.x] = 1.0f;
}

KERNEL(beyond_global) { blank[threadIdx.x] = values[threadIdx.x + 1]; }

KERNEL(beyond_local) {
  float own[4];
  load(own, values);
  const float* const at = own;
  blank[threadIdx.x] = at[threadIdx.x % 5];
}

KERNEL(unwritten_shared) {
  SHARED_ARRAY(float, tile, [COUNT]);
  if (threadIdx.x > 0) tile[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  blank[threadIdx.x] = tile[threadIdx.x];
}

KERNEL(unwritten_global) { values[threadIdx.x] = blank[threadIdx.x]; }

KERNEL(misaligned) {
  float x[4];
  load(x, values + 1 + (threadIdx.x & 31u));
  blank[threadIdx.x] = x[0];
}

KERNEL(copy_not_waited_for) {
  SHARED_ARRAY(float, tile, [COUNT]);
  const int i = static_cast<int>(threadIdx.x);
  if (i % 4 == 0) cp_async16(&tile[i], &values[i]);
  cp_async_commit();
  __syncthreads();
  const float x = tile[i];
  cp_async_wait<0>();
  blank[i] = x;
}

KERNEL(copy_never_waited_for) {
  SHARED_ARRAY(float, tile, [COUNT]);
  if (threadIdx.x == 0) cp_async16(tile, values);
  cp_async_commit();
  blank[threadIdx.x] = 1.0f;
}

KERNEL(copy_of_others_without_barrier) {
  SHARED_ARRAY(float, tile, [COUNT]);
  const int i = static_cast<int>(threadIdx.x);
  if (i % 4 == 0) cp_async16(&tile[i], &values[i]);
  cp_async_commit();
  cp_async_wait<0>();
  blank[i] = tile[i];
}

KERNEL(copy_to_odd_place) {
  SHARED_ARRAY(float, tile, [COUNT]);
  if (threadIdx.x == 0) cp_async16(tile + 1, values);
  cp_async_commit();
  cp_async_wait<0>();
}

KERNEL(missing_barrier) {
  SHARED_ARRAY(float, tile, [COUNT]);
  tile[threadIdx.x] = values[threadIdx.x];
  blank[threadIdx.x] = tile[COUNT - 1 - threadIdx.x];
}

KERNEL(missing_barrier_before_reuse) {
  SHARED_ARRAY(float, tile, [COUNT]);
  tile[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  blank[threadIdx.x] = tile[COUNT - 1 - threadIdx.x];
  tile[threadIdx.x] = 0.0f;
}

KERNEL(missing_syncwarp) {
  SHARED_ARRAY(float, tile, [COUNT]);
  tile[threadIdx.x] = values[threadIdx.x];
  blank[threadIdx.x] = warp_sum(tile[threadIdx.x ^ 1u]);
}

KERNEL(race_of_blocks) { blank[threadIdx.x] = values[blockIdx.x]; }

KERNEL(sum_without_atomic) { values[0] += values[threadIdx.x + 1 < COUNT ? threadIdx.x + 1 : 1]; }

// ---- running one ---------------------------------------------------------------------------------------------------

using Kernel = void (*)(float*, float*);
struct Case {
  Kernel kernel;
  unsigned threads = COUNT, blocks = 1;
  size_t shared = 0;
};

const std::map<std::string, Case> cases = {
    {"right", {right}},
    {"barrier_after_return", {barrier_after_return}},
    {"barrier_in_a_branch", {barrier_in_a_branch}},
    {"two_barriers_for_one", {two_barriers_for_one}},
    {"mask_without_self", {mask_without_self}},
    {"mask_with_absent_lanes", {mask_with_absent_lanes}},
    {"source_outside_mask", {source_outside_mask}},
    {"syncwarp_of_half", {syncwarp_of_half}},
    {"different_shuffles", {different_shuffles}},
    {"beyond_shared", {beyond_shared}},
    {"beyond_global", {beyond_global}},
    {"beyond_local", {beyond_local}},
    {"unwritten_shared", {unwritten_shared}},
    {"unwritten_global", {unwritten_global}},
    {"misaligned", {misaligned, 64}},
    {"copy_not_waited_for", {copy_not_waited_for}},
    {"copy_never_waited_for", {copy_never_waited_for}},
    {"copy_of_others_without_barrier", {copy_of_others_without_barrier}},
    {"copy_to_odd_place", {copy_to_odd_place}},
    {"missing_barrier", {missing_barrier}},
    {"missing_barrier_before_reuse", {missing_barrier_before_reuse}},
    {"missing_syncwarp", {missing_syncwarp}},
    {"race_of_blocks", {race_of_blocks, COUNT, 2}},
    {"sum_without_atomic", {sum_without_atomic}},
    {"too_many_threads", {right, 2048}},
    {"too_much_shared_memory", {right, COUNT, 1, 300 << 10}},
    {"host_memory", {right}},
    {"legacy_stream", {right}},
    {"freed_memory", {unwritten_global}},
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) {
    for (const auto& [name, unused] : cases) std::printf("%s\n", name.c_str());
    return 0;
  }
  const std::string name = arguments[1];
  const Case& chosen = cases.at(name);
  float numbers[COUNT];
  for (int i = 0; i < COUNT; i++) numbers[i] = static_cast<float>(i);
  void *values = nullptr, *blank = nullptr;
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaMalloc(&values, sizeof numbers);
  cudaMalloc(&blank, sizeof numbers);
  cudaMemcpyAsync(values, numbers, sizeof numbers, cudaMemcpyDefault, stream);
  if (name == "freed_memory") {
    cudaMemcpyAsync(blank, numbers, sizeof numbers, cudaMemcpyDefault, stream);
    cudaFree(blank);
  }
  float* const first = name == "host_memory" ? numbers : static_cast<float*>(values);
  if (name == "legacy_stream") stream = nullptr;
  const int32_t status = launch(name.c_str(), chosen.kernel, chosen.blocks, chosen.threads, chosen.shared, stream, first,
                                static_cast<float*>(blank));
  if (status != MANTOU_OK) return 1;
  const float* const result =
      static_cast<const float*>(name == "unwritten_global" || name == "sum_without_atomic" ? values : blank);
  std::printf("ok %g %g\n", static_cast<double>(result[0]), static_cast<double>(result[1]));
  return 0;
}
