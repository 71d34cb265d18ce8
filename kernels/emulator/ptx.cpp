// Software versions of the wrappers of PTX in ../cuda/ptx.h.
#include "engine.h"

using namespace emulator;

static void check_row(const char* what, const void* address, int line) {
  if (!is_shared_memory(address)) fail(line, "%s: the address is not in shared memory", what);
  if (reinterpret_cast<uintptr_t>(address) % 16)
    fail(line, "%s: the address in shared memory is not a multiple of 16", what);
}

void cp_async16(void* destination, const void* source, int bytes, int line) {
  check_row("cp_async16", destination, line);
  if (bytes < 0 || bytes > 16) fail(line, "cp_async16: %d bytes", bytes);
  if (reinterpret_cast<uintptr_t>(source) % 16) fail(line, "cp_async16: the source is not at a multiple of 16");
  if (bytes > 0 && (!is_device_memory(source) || is_shared_memory(source)))
    fail(line, "cp_async16: the source is not in device memory");
  if (bytes > 0) check(source, static_cast<size_t>(bytes), How::Read);
  check(destination, 16, How::Write);
  std::memset(destination, 0xff, 16);
#if defined(MANTOU_RACE_CHECKER)
  mark(destination, 16, COPYING);
#endif
  running->copies.push_back({destination, source, bytes, running->committed});
}

void cp_async_commit() { running->committed++; }

void cp_async_wait_groups(int pending) {
  std::vector<Copy>& copies = running->copies;
  size_t kept = 0;
  for (const Copy& copy : copies) {
    if (copy.group + static_cast<unsigned>(pending) >= running->committed) {
      copies[kept++] = copy;
      continue;
    }
#if defined(MANTOU_RACE_CHECKER)
    mark(copy.destination, 16, UNWRITTEN);
#endif
    check(copy.destination, 16, How::Write);
    std::memset(copy.destination, 0, 16);
    if (copy.bytes > 0) std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.bytes));
  }
  copies.resize(kept);
}

struct Rows {
  uint32_t* registers;
  const uint16_t* row;
};

// Lane l brings the address of row l % 8 of matrix l / 8; lane 4 g + t receives the elements 2 t and 2 t + 1 of row g
// of each matrix, or of its transpose.
template <bool transposed>
static void load_matrices(void* const* lanes, uint32_t, int) {
  for (unsigned lane = 0; lane < 32; lane++) {
    const unsigned g = lane / 4, t = lane % 4;
    for (unsigned m = 0; m < 4; m++) {
      const auto element = [&](unsigned row, unsigned column) {
        return static_cast<uint32_t>(static_cast<const Rows*>(lanes[m * 8 + row])->row[column]);
      };
      static_cast<Rows*>(lanes[lane])->registers[m] = transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                                                                 : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
    }
  }
}

template <bool transposed>
static void ldmatrix(uint32_t (&registers)[4], const void* row, int line) {
  check_row("ldmatrix", row, line);
  check(row, 16, How::Read);
  Rows own{registers, static_cast<const uint16_t*>(row)};
  collective(0xffffffffu, transposed ? "transposed ldmatrix" : "ldmatrix", line, &own, load_matrices<transposed>);
}

void ldmatrix_x4(uint32_t (&registers)[4], const void* row, int line) { ldmatrix<false>(registers, row, line); }
void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row, int line) { ldmatrix<true>(registers, row, line); }

// Fragments as in the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
  struct Own {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } own{d, a, {b0, b1}};
  collective(0xffffffffu, "mma", line, &own, [](void* const* lanes, uint32_t, int) {
    float left[16][16], right[16][8];
    const auto low = [](uint32_t pair) { return __uint_as_float(pair << 16); };
    const auto high = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
    for (unsigned lane = 0; lane < 32; lane++) {
      const unsigned g = lane / 4, t = lane % 4;
      const Own* from = static_cast<const Own*>(lanes[lane]);
      for (unsigned i = 0; i < 4; i++) {
        const unsigned row = g + i % 2 * 8, column = 2 * t + i / 2 * 8;
        left[row][column] = low(from->a[i]);
        left[row][column + 1] = high(from->a[i]);
      }
      for (unsigned i = 0; i < 2; i++) {
        right[2 * t + i * 8][g] = low(from->b[i]);
        right[2 * t + i * 8 + 1][g] = high(from->b[i]);
      }
    }
    for (unsigned row = 0; row < 16; row++) {
      float sums[8] = {};
      for (unsigned k = 0; k < 16; k++)
        for (unsigned column = 0; column < 8; column++) sums[column] += left[row][k] * right[k][column];
      for (unsigned column = 0; column < 8; column++)
        static_cast<Own*>(lanes[row % 8 * 4 + column / 2])->d[row / 8 * 2 + column % 2] += sums[column];
    }
  });
}
