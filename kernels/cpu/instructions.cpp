// Which instruction sets there are, and which of them this processor and its operating system have.
#include <cstdio>
#include <cstring>

#include "context.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace mantou {
namespace {

bool always() { return true; }

#if defined(__x86_64__)

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512cd");
}

// A bit of CPUID leaf 7, where that has as many subleaves.
bool has_feature(unsigned subleaf, bool edx, int bit) {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || subleaf > a) return false;
  __cpuid_count(7, subleaf, a, b, c, d);
  return (edx ? d : a) >> bit & 1;
}

bool has_avx512_bf16() { return has_avx512() && has_feature(1, false, 5); }

// AMX needs the processor, an operating system that saves the tiles (XCR0 bits 17 and 18), and, on Linux, a permission
// that a process asks for once: the tiles' state is too large for signal stacks of the usual size. The permission holds
// for threads that are started later, so it must be had before any worker runs.
bool has_amx() {
  if (!has_avx512_bf16() || !has_feature(0, true, 22) || !has_feature(0, true, 24)) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned TILE_STATE = 3u << 17;
  if ((low & TILE_STATE) != TILE_STATE) return false;
#if defined(__linux__)
  constexpr long ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
  return false;
#endif
}

// From the best to the one that every processor has; the model of AMX is used only by name.
const InstructionSet SETS[] = {
    {"amx", "AVX-512 with AMX", &OPERATIONS_avx512, ProductUnit::TILES, has_amx},
    {"avx512-bf16", "AVX-512 with bfloat16", &OPERATIONS_avx512, ProductUnit::DOTS, has_avx512_bf16},
    {"avx512", "AVX-512", &OPERATIONS_avx512, ProductUnit::VECTORS, has_avx512},
    {"avx2", "AVX2", &OPERATIONS_avx2, ProductUnit::VECTORS, has_avx2},
    {"sse2", "SSE2", &OPERATIONS_sse2, ProductUnit::VECTORS, always},
    {"amx-model", "AVX-512 with a model of AMX", &OPERATIONS_avx512, ProductUnit::TILE_MODEL, has_avx512},
};

#elif defined(__aarch64__)
const InstructionSet SETS[] = {{"neon", "NEON", &OPERATIONS_neon, ProductUnit::VECTORS, always}};
#else
const InstructionSet SETS[] = {
    {"generic", "no vector instructions", &OPERATIONS_generic, ProductUnit::VECTORS, always}};
#endif

}  // namespace

const InstructionSet* select_instruction_set(const char* name) {
  const bool best = !name || !*name;
  char names[128] = "";
  for (const InstructionSet& set : SETS) {
    if (best || std::strcmp(set.name, name) == 0) {
      if (set.is_available()) return &set;
      if (best) continue;
      fail(MANTOU_UNSUPPORTED, "MANTOU_INSTRUCTIONS is %s, which this processor does not have", name);
      return nullptr;
    }
    const size_t length = std::strlen(names);
    std::snprintf(names + length, sizeof names - length, "%s%s", length > 0 ? ", " : "", set.name);
  }
  fail(MANTOU_INVALID_ARGUMENT, "MANTOU_INSTRUCTIONS is %s; known are %s", name, names);
  return nullptr;
}

}  // namespace mantou
