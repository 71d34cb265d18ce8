// Kernels that touch memory in ways whose cost is known, for the counter of transactions (tests/emulator/transactions.cpp).
// One warp each.
#include "fail.h"

using namespace mantou;

namespace {

cudaStream_t stream;
float* values;

GLOBAL void neighbours(float* x) { x[lane_of_thread() + 32] = x[lane_of_thread()]; }
GLOBAL void one_further(float* x) { x[0] = x[lane_of_thread() + 1]; }
GLOBAL void columns(float* x) { x[lane_of_thread() * 8] = x[0]; }
GLOBAL void packs(float* x) {
  *reinterpret_cast<Pack<float, 4>*>(x + lane_of_thread() * 4) = Pack<float, 4>{};
  *reinterpret_cast<float2*>(x + lane_of_thread() * 4) = make_float2(0, 0);
}
GLOBAL void wide_packs(float* x) { *reinterpret_cast<Pack<float, 8>*>(x + lane_of_thread() * 8) = Pack<float, 8>{}; }
// Lanes that leave a loop early: 32 lanes, then 16.
GLOBAL void uneven_loop(float* x) {
  for (int i = 0; i < (lane_of_thread() < 16 ? 2 : 1); i++) x[i * 32 + lane_of_thread()] = 0;
}
GLOBAL void sums(float* x) { atomicAdd(&x[lane_of_thread() / 16 * 8], 1.0f); }

GLOBAL void rows(float* x) {
  SHARED_ARRAY(float, tile, [32][32]);
  tile[0][lane_of_thread()] = x[0];
}
GLOBAL void shared_columns(float* x) {
  SHARED_ARRAY(float, tile, [32][32]);
  tile[lane_of_thread()][0] = x[0];
}
GLOBAL void padded_columns(float* x) {
  SHARED_ARRAY(float, tile, [32][33]);
  tile[lane_of_thread()][0] = x[0];
}
GLOBAL void same_word(float* x) {
  SHARED_ARRAY(float, tile, [1]);
  tile[0] = x[0];
  __syncwarp();
  x[0] = tile[0];
}
GLOBAL void shared_packs(float*) {
  SHARED_ARRAY(float, tile, [32 * 8]);
  *reinterpret_cast<Pack<float, 4>*>(&tile[lane_of_thread() * 4]) = Pack<float, 4>{};  // in 4 parts
  *reinterpret_cast<Pack<float, 4>*>(&tile[lane_of_thread() * 8]) = Pack<float, 4>{};  // in 8
}
GLOBAL void copies(float* x) {
  SHARED_ARRAY(float, tile, [32 * 4]);
  cp_async16(&tile[lane_of_thread() * 4], x + lane_of_thread() * 4);
  cp_async_commit();
  cp_async_wait<0>();
}
// Eight rows of 16 bytes at a time: side by side, then 128 bytes apart.
GLOBAL void matrices(float*) {
  SHARED_ARRAY(float, tile, [32][32]);
  for (int i = 0; i < 32; i++) tile[i][lane_of_thread()] = 0;
  __syncwarp();
  uint32_t registers[4];
  ldmatrix_x4(registers, shared_address(&tile[0][0] + lane_of_thread() * 4));
  ldmatrix_x4_trans(registers, shared_address(&tile[lane_of_thread()][0]));
}

}  // namespace

int main() {
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaMalloc(reinterpret_cast<void**>(&values), 4096);
  cudaMemsetAsync(values, 0, 4096, stream);
  int32_t status = MANTOU_OK;
#define RUN(kernel) status |= launch(#kernel, kernel, 1, WARP, 0, stream, values)
  RUN(neighbours), RUN(one_further), RUN(columns), RUN(packs), RUN(wide_packs), RUN(uneven_loop), RUN(sums);
  RUN(rows), RUN(shared_columns), RUN(padded_columns), RUN(same_word), RUN(shared_packs), RUN(copies), RUN(matrices);
  return status;
}
