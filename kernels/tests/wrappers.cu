// Every wrapper of PTX by itself, for real hardware and for the emulator: each has one instruction and a comment that says
// what it does (../cuda/ptx.h); here that is done on the CPU, and the two are compared. Exits with 1 if they differ.
#include <cmath>
#include <cstdio>
#include <vector>

#include "fail.h"

using namespace mantou;

namespace {

cudaStream_t stream;

// ---- memory on both sides --------------------------------------------------------------------------------------------

template <typename T>
struct Array {
  T* device = nullptr;
  std::vector<T> host;

  explicit Array(std::vector<T> values) : host(std::move(values)) {
    void* memory = nullptr;
    if (cudaMalloc(&memory, bytes()) == cudaSuccess) device = static_cast<T*>(memory);
    cudaMemcpyAsync(device, host.data(), bytes(), cudaMemcpyDefault, stream);
  }
  size_t bytes() const { return host.size() * sizeof(T); }
  const std::vector<T>& fetch() {
    cudaMemcpyAsync(host.data(), device, bytes(), cudaMemcpyDefault, stream);
    const cudaError_t error = cudaStreamSynchronize(stream);
    if (error != cudaSuccess) std::printf("%s\n", cudaGetErrorString(error));
    return host;
  }
};

int failures = 0;

template <typename T>
void expect(const char* what, const std::vector<T>& actual, const std::vector<T>& expected) {
  size_t different = 0, first = 0;
  for (size_t i = actual.size(); i-- > 0;)
    if (!(actual[i] == expected[i])) different++, first = i;
  if (different) {
    std::printf("%s: %zu of %zu differ, the first at %zu: %g, not %g\n", what, different, actual.size(), first,
                static_cast<double>(actual[first]), static_cast<double>(expected[first]));
    failures++;
  } else {
    std::printf("%s: as it should be\n", what);
  }
}

// The bits of a small whole number as bfloat16.
uint32_t bits_of(int value) {
  const float x = static_cast<float>(value);
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits >> 16;
}

// A matrix of small whole numbers, whose products and sums are exact.
int element(int row, int column) { return (row * 7 + column * 5 + row * column) % 13 - 6; }

// ---- cp.async --------------------------------------------------------------------------------------------------------

constexpr int COPIED = 3;

// Three groups; after the first wait the oldest one must be there.
GLOBAL void copies(const float* from, float* to) {
  SHARED_ARRAY(float, tile, [COPIED][WARP * 4]);
  const int at = lane_of_thread() * 4;
  for (int group = 0; group < COPIED; group++) {
    cp_async16(&tile[group][at], from + group * WARP * 4 + at, group == 1 ? lane_of_thread() % 5 * 4 : 16);
    cp_async_commit();
  }
  cp_async_wait<COPIED - 1>();
  for (int k = 0; k < 4; k++) to[at + k] = tile[0][at + k];
  cp_async_wait<0>();
  __syncwarp();
  const int other = (WARP - 1 - lane_of_thread()) * 4;
  for (int group = 1; group < COPIED; group++)
    for (int k = 0; k < 4; k++) to[group * WARP * 4 + other + k] = tile[group][other + k];
}

void test_copies() {
  std::vector<float> values, expected;
  for (int i = 0; i < COPIED * WARP * 4; i++) {
    values.push_back(static_cast<float>(i + 1));
    const int lane = i % (WARP * 4) / 4, k = i % 4;
    expected.push_back(i / (WARP * 4) == 1 && k >= lane % 5 ? 0.0f : values.back());
  }
  Array<float> from(values), to(std::vector<float>(values.size(), -1.0f));
  launch("cp.async", copies, 1, WARP, 0, stream, from.device, to.device);
  expect("cp_async16, cp_async_commit, cp_async_wait", to.fetch(), expected);
}

// ---- shared memory ---------------------------------------------------------------------------------------------------

GLOBAL void place(int* to) {
  SHARED_ARRAY(int, before, [3]);
  SHARED_DYNAMIC(memory);
  before[0] = static_cast<int>(shared_address(memory) % 256);
  to[0] = before[0];
}

// Tiles compute with it: see ../cuda/tensor_tile.h.
void test_place() {
  Array<int> to({-1});
  launch("place", place, 1, 1, 1024, stream, to.device);
  expect("dynamic shared memory, behind an array, at a multiple of 256", to.fetch(), {0});
}

// ---- ldmatrix --------------------------------------------------------------------------------------------------------

GLOBAL void load_matrices(const uint32_t* from, uint32_t* to, bool transposed) {
  SHARED_ARRAY(uint32_t, tile, [4 * 8][4]);
  for (int k = 0; k < 4; k++) tile[lane_of_thread()][k] = from[lane_of_thread() * 4 + k];
  __syncwarp();
  // Matrix m lies in the rows that the lanes 8 m .. 8 m + 7 point to: here not in order.
  const SharedAddress row = shared_address(tile[lane_of_thread() ^ 9]);
  uint32_t registers[4];
  if (transposed)
    ldmatrix_x4_trans(registers, row);
  else
    ldmatrix_x4(registers, row);
  for (int m = 0; m < 4; m++) to[lane_of_thread() * 4 + m] = registers[m];
}

void test_ldmatrix(bool transposed) {
  std::vector<uint32_t> values, expected;
  for (int row = 0; row < 32; row++)
    for (int k = 0; k < 4; k++)
      values.push_back(bits_of(row * 8 + 2 * k) | bits_of(row * 8 + 2 * k + 1) << 16);
  const auto number = [](int m, int row, int column) { return bits_of(((m * 8 + row) ^ 9) * 8 + column); };
  for (int lane = 0; lane < WARP; lane++)
    for (int m = 0; m < 4; m++) {
      const int g = lane / 4, t = lane % 4;
      expected.push_back(transposed ? number(m, 2 * t, g) | number(m, 2 * t + 1, g) << 16
                                    : number(m, g, 2 * t) | number(m, g, 2 * t + 1) << 16);
    }
  Array<uint32_t> from(values), to(std::vector<uint32_t>(WARP * 4));
  launch("ldmatrix", load_matrices, 1, WARP, 0, stream, from.device, to.device, transposed);
  expect(transposed ? "ldmatrix_x4_trans" : "ldmatrix_x4", to.fetch(), expected);
}

// ---- mma -------------------------------------------------------------------------------------------------------------

DEVICE uint32_t pair_at(const float* matrix, int first, int step) {
  return pack_bf16(matrix[first], matrix[first + step]);
}

// D [16, 8] = C + A [16, 16] B [16, 8], all row-major.
GLOBAL void multiply(const float* a, const float* b, const float* c, float* d) {
  const int g = lane_of_thread() / 4, t = lane_of_thread() % 4;
  uint32_t left[4];
  for (int i = 0; i < 4; i++) left[i] = pair_at(a, (g + i % 2 * 8) * 16 + 2 * t + i / 2 * 8, 1);
  float sums[4];
  for (int i = 0; i < 4; i++) sums[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  mma_bf16_16816(sums, left, pair_at(b, 2 * t * 8 + g, 8), pair_at(b, (2 * t + 8) * 8 + g, 8));
  for (int i = 0; i < 4; i++) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}

void test_mma() {
  std::vector<float> a, b, c, expected;
  for (int row = 0; row < 16; row++)
    for (int k = 0; k < 16; k++) a.push_back(static_cast<float>(element(row, k)));
  for (int k = 0; k < 16; k++)
    for (int column = 0; column < 8; column++) b.push_back(static_cast<float>(element(k + 3, column)));
  for (int row = 0; row < 16; row++)
    for (int column = 0; column < 8; column++) {
      c.push_back(static_cast<float>(row * 8 + column));
      int sum = row * 8 + column;
      for (int k = 0; k < 16; k++) sum += element(row, k) * element(k + 3, column);
      expected.push_back(static_cast<float>(sum));
    }
  Array<float> left(a), right(b), before(c), after(std::vector<float>(c.size(), -1.0f));
  launch("mma", multiply, 1, WARP, 0, stream, left.device, right.device, before.device, after.device);
  expect("mma_bf16_16816", after.fetch(), expected);
}

// ---- pack_bf16 -------------------------------------------------------------------------------------------------------

GLOBAL void pack(const float* from, uint32_t* to) {
  to[lane_of_thread()] = pack_bf16(from[2 * lane_of_thread()], from[2 * lane_of_thread() + 1]);
}

void test_pack() {
  // Between 1 + i / 128 and the next bfloat16: a quarter, a half (a tie, to even) and three quarters of the way.
  std::vector<float> values;
  std::vector<uint32_t> expected;
  for (int lane = 0; lane < WARP; lane++) {
    uint32_t pair = 0;
    for (int half = 0; half < 2; half++) {
      const int i = lane * 2 + half, quarters = i % 4;
      const float sign = i % 8 < 4 ? 1.0f : -1.0f;
      values.push_back(sign * (1.0f + (static_cast<float>(i) + static_cast<float>(quarters) / 4.0f) / 128.0f));
      const int rounded = quarters < 2 ? i : quarters > 2 ? i + 1 : i + i % 2;
      const uint32_t bits = 0x3f80u + static_cast<uint32_t>(rounded) + (sign < 0.0f ? 0x8000u : 0u);
      pair |= bits << (half * 16);
    }
    expected.push_back(pair);
  }
  Array<float> from(values);
  Array<uint32_t> to{std::vector<uint32_t>(WARP)};
  launch("pack_bf16", pack, 1, WARP, 0, stream, from.device, to.device);
  expect("pack_bf16", to.fetch(), expected);
}

// ---- fast_exp2 -------------------------------------------------------------------------------------------------------

GLOBAL void raise(const float* from, float* to, int count) {
  for (int i = lane_of_thread(); i < count; i += WARP) to[i] = fast_exp2(from[i]);
}

void test_exp2() {
  std::vector<float> values = {0.0f, -0.0f, 1.0f, -1.0f, -126.0f, 127.0f, -126.5f, -200.0f, -INFINITY};
  for (int i = 0; i < 1000; i++) values.push_back(static_cast<float>(i) * 0.1373f - 126.0f);
  Array<float> from(values), to(std::vector<float>(values.size(), -1.0f));
  launch("exp2", raise, 1, WARP, 0, stream, from.device, to.device, static_cast<int>(values.size()));
  // What is close enough counts as equal.
  std::vector<float> close;
  for (size_t i = 0; i < values.size(); i++) {
    const double exact = std::exp2(static_cast<double>(values[i]));
    const double floor = exact < 0x1p-126 ? 0.0 : exact;
    const double actual = static_cast<double>(to.fetch()[i]);
    close.push_back(std::fabs(actual - floor) <= floor * 0x1p-22 ? to.host[i] : static_cast<float>(floor));
  }
  expect("fast_exp2", to.host, close);
}

}  // namespace

int main() {
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  test_copies();
  test_place();
  test_ldmatrix(false);
  test_ldmatrix(true);
  test_mma();
  test_pack();
  test_exp2();
  return failures ? 1 : 0;
}
