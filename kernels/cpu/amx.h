// AMX (Intel Architecture Instruction Set Extensions, chapter "Intel AMX"): eight tile registers of 16 rows of 64 bytes,
// and an instruction that multiplies two of them. Once in hardware, once as a model in plain C++ that follows the
// manual's pseudocode, so that the program around the tiles can be tested on processors without them.
#pragma once

#include <cstdint>
#include <cstring>

#include "vector.h"

MANTOU_NAMESPACE

// Tiles are used in full: 16 rows of 16 floats, or of 32 bfloat16 in pairs.
class HardwareTiles {
 public:
  using Factor = HardwareFactor;

  // A thread configures its tiles before it uses them, and releases them afterwards.
  HardwareTiles() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } configuration;
    static_assert(sizeof configuration == 64, "as the manual lays it out");
    __asm__ volatile("ldtilecfg %0" : : "m"(configuration));
  }
  ~HardwareTiles() { __asm__ volatile("tilerelease"); }
  HardwareTiles(const HardwareTiles&) = delete;
  HardwareTiles& operator=(const HardwareTiles&) = delete;

  // Strides are bytes from row to row.
  template <int T>
  void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(T));
  }
  template <int T>
  void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(T), "r"(from), "r"(stride) : "memory");
  }
  template <int T>
  void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(T), "r"(to), "r"(stride) : "memory");
  }
  // C [16, 16] += A [16, 16 pairs] B [16 pairs, 16].
  template <int C, int A, int B>
  void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
  }
};

class ModelTiles {
 public:
  using Factor = bfloat16;

  // What a program must not rely on is NaN.
  ModelTiles() { std::memset(words, 0xff, sizeof words); }
  ModelTiles(const ModelTiles&) = delete;
  ModelTiles& operator=(const ModelTiles&) = delete;

  template <int T>
  void zero() {
    std::memset(words[T], 0, sizeof words[T]);
  }
  template <int T>
  void load(const void* from, int64_t stride) {
    for (int64_t row = 0; row < 16; row++) std::memcpy(words[T][row], static_cast<const char*>(from) + row * stride, 64);
  }
  template <int T>
  void store(void* to, int64_t stride) {
    for (int64_t row = 0; row < 16; row++) std::memcpy(static_cast<char*>(to) + row * stride, words[T][row], 64);
  }
  template <int C, int A, int B>
  void multiply() {
    for (int row = 0; row < 16; row++)
      for (int pair = 0; pair < 16; pair++)
        for (int column = 0; column < 16; column++) {
          float sum;
          std::memcpy(&sum, &words[C][row][column], 4);
          const uint32_t a = words[A][row][pair], b = words[B][pair][column];
          sum += half(a, 0) * half(b, 0);
          sum += half(a, 16) * half(b, 16);
          std::memcpy(&words[C][row][column], &sum, 4);
        }
  }

 private:
  static float half(uint32_t pair, int bit) { return to_float(bfloat16{static_cast<uint16_t>(pair >> bit)}); }
  uint32_t words[8][16][16];
};

}
}  // namespace mantou
