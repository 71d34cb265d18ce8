// Software versions of the wrappers of PTX in ../cuda/ptx.h.
#include "engine.h"

using namespace emulator;

static void check_row(const char* what, const void* address, int line) {
  if (!is_shared_memory(address) || reinterpret_cast<uintptr_t>(address) % 16)
    fail(line, "%s: the address is not a multiple of 16 in shared memory", what);
}

void cp_async16(void* destination, const void* source, int bytes, int line) {
  check_row("cp_async16", destination, line);
  if (bytes < 0 || bytes > 16) fail(line, "cp_async16: %d bytes", bytes);
  const bool in_device_memory = is_device_memory(source) && !is_shared_memory(source);
  if (reinterpret_cast<uintptr_t>(source) % 16 || (bytes > 0 && !in_device_memory))
    fail(line, "cp_async16: the source is not a multiple of 16 in device memory");
  check(source, static_cast<size_t>(bytes), How::Read);
  check(destination, 16, How::Write);
  std::memset(destination, 0xff, 16);
  mark(destination, 16, COPYING);
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
    mark(copy.destination, 16, UNWRITTEN);
    check(copy.destination, 16, How::Write);
    std::memset(copy.destination, 0, 16);
    std::memcpy(copy.destination, copy.source, static_cast<size_t>(copy.bytes));
  }
  copies.resize(kept);
}

// Lane l brings the address of row l % 8 of matrix l / 8; lane 4 g + t receives the elements 2 t and 2 t + 1 of row g
// of each matrix, or of its transpose.
static void ldmatrix(const char* name, bool transposed, uint32_t (&registers)[4], const void* address, int line) {
  check_row(name, address, line);
  check(address, 16, How::Read);
  const unsigned g = lane() / 4, t = lane() % 4;
  exchange(0xffffffffu, name, line, static_cast<const uint16_t*>(address), [&](auto row) {
    for (unsigned m = 0; m < 4; m++) {
      const auto element = [&](unsigned i, unsigned j) { return uint32_t{row(m * 8 + i)[j]}; };
      registers[m] = transposed ? element(2 * t, g) | element(2 * t + 1, g) << 16
                                : element(g, 2 * t) | element(g, 2 * t + 1) << 16;
    }
  });
}

void ldmatrix_x4(uint32_t (&registers)[4], const void* row, int line) {
  ldmatrix("ldmatrix", false, registers, row, line);
}
void ldmatrix_x4_trans(uint32_t (&registers)[4], const void* row, int line) {
  ldmatrix("transposed ldmatrix", true, registers, row, line);
}

// Fragments as in the PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
void mma_bf16_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int line) {
  struct Own {
    float* d;
    const uint32_t* a;
    uint32_t b[2];
  } own{d, a, {b0, b1}};
  collective(0xffffffffu, "mma", line, &own, [](void* const* lanes, uint32_t) {
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
