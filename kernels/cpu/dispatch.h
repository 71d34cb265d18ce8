// One library serves every processor of an architecture: the operations are compiled once per instruction set, and a
// context uses the best one that its processor has.
//
// How: the build compiles the files of operations several times with other flags and with MANTOU_TARGET naming them
// (sse2, avx2, avx512; neon). This header then gives each operation a symbol of its own per target, and operations.cpp,
// compiled with them, collects them in a table, OPERATIONS_<target>. dispatch.cpp exports the names of mantou.h, which
// jump through the context's table. Helpers in headers live in a namespace per target (MANTOU_NAMESPACE), or the linker
// would keep one copy of each, possibly one that this processor cannot run.
//
// What AVX512-BF16 and AMX add concerns matrix products alone, so they are no targets: functions with a target
// attribute within the AVX-512 objects, used where the context's `unit` says so.
#pragma once

#define MANTOU_OPERATIONS(X) \
  X(mantou_measure_peaks) \
  X(mantou_cast) \
  X(mantou_add) \
  X(mantou_scale) \
  X(mantou_sum) \
  X(mantou_silu_forward) \
  X(mantou_silu_backward) \
  X(mantou_swiglu_forward) \
  X(mantou_swiglu_backward) \
  X(mantou_matmul) \
  X(mantou_embedding_forward) \
  X(mantou_embedding_backward_workspace) \
  X(mantou_embedding_backward) \
  X(mantou_rmsnorm_forward) \
  X(mantou_rmsnorm_backward_workspace) \
  X(mantou_rmsnorm_backward) \
  X(mantou_rope) \
  X(mantou_attention_forward) \
  X(mantou_attention_rotate_first) \
  X(mantou_attention_backward_workspace) \
  X(mantou_attention_backward) \
  X(mantou_attention_cached) \
  X(mantou_attention_masked) \
  X(mantou_softmax) \
  X(mantou_cross_entropy) \
  X(mantou_gradient_norm_workspace) \
  X(mantou_gradient_norm) \
  X(mantou_adamw)

#if defined(MANTOU_TARGET)
#define MANTOU_API  // dispatch.cpp exports
#include "../mantou.h"
#define MANTOU_LABEL(prefix, name, target) MANTOU_LABEL_OF(prefix, name, target)
#define MANTOU_LABEL_OF(prefix, name, target) #prefix #name "_" #target
#define X(name) extern "C" decltype(name) name __asm__(MANTOU_LABEL(__USER_LABEL_PREFIX__, name, MANTOU_TARGET));
MANTOU_OPERATIONS(X)
#undef X
#else
#define MANTOU_TARGET shared
#include "../mantou.h"
#endif

// Opens the namespace of this target, to be closed with two braces.
#define MANTOU_NAMESPACE \
  namespace mantou {     \
  inline namespace MANTOU_TARGET {

namespace mantou {

struct Operations {
#define X(name) decltype(::name)* name;
  MANTOU_OPERATIONS(X)
#undef X
};

#if defined(__x86_64__)
extern const Operations OPERATIONS_sse2, OPERATIONS_avx2, OPERATIONS_avx512;
inline constexpr const Operations& BASELINE = OPERATIONS_sse2;
#elif defined(__aarch64__)
extern const Operations OPERATIONS_neon;
inline constexpr const Operations& BASELINE = OPERATIONS_neon;
#else
extern const Operations OPERATIONS_generic;
inline constexpr const Operations& BASELINE = OPERATIONS_generic;
#endif

// What multiplies bfloat16 matrices. VECTORS: converted to float32. DOTS: AVX512-BF16's vdpbf16ps. TILES: AMX;
// TILE_MODEL: the same program on a model of AMX in plain C++, so that it can be tested on any AVX-512 processor.
enum class ProductUnit { VECTORS, DOTS, TILES, TILE_MODEL };

struct InstructionSet {
  const char* name;  // as $MANTOU_INSTRUCTIONS gives it
  const char* text;  // as mantou_context_describe gives it
  const Operations* operations;
  ProductUnit unit;
  bool (*is_available)();
};

// The instruction set called `name`, or the best that this processor has where name is null or empty. Null where there
// is no such set, or not here; the error is set.
const InstructionSet* select_instruction_set(const char* name);

}  // namespace mantou
