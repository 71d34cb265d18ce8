/**
 * The C ABI of `kernels/mantou.h` as data: every function's parameters in order and what it returns. A test parses the
 * header and compares the two, so that they cannot drift.
 *
 * Kinds: `context` (the handle of the context), `pointer` (device or host memory, null where the header allows it),
 * `i32`, `i64` (whole numbers), `f32`. Results: `status` (0 = success), `size` (int64), `i32`, `text` (C string).
 */
export type Kind = "context" | "pointer" | "i32" | "i64" | "f32";
export type Result = "status" | "size" | "i32" | "text";

const status = <const K extends readonly Kind[]>(...parameters: K) => ({ result: "status", parameters }) as const;
const size = <const K extends readonly Kind[]>(...parameters: K) => ({ result: "size", parameters }) as const;

const P = "pointer";
const I = "i64";

export const symbols = {
  mantou_abi_version: { result: "i32", parameters: [] },
  mantou_backend: { result: "text", parameters: [] },
  mantou_last_error: { result: "text", parameters: [] },
  mantou_context_create: status("i32", "i32", P),
  mantou_context_bytes: size(),
  mantou_context_destroy: status("context"),
  mantou_context_describe: status("context", P, I),
  mantou_context_preferred_dtype: status("context", P, P, I),

  mantou_measure_peaks: status("context", I, P, P),

  mantou_malloc: status("context", I, P),
  mantou_free: status("context", P),
  mantou_malloc_host: status("context", I, P),
  mantou_free_host: status("context", P),
  mantou_copy: status("context", P, P, I),
  mantou_copy_async: status("context", P, P, I, "i32"),
  mantou_fill: status("context", P, "i32", I),
  mantou_stream_wait: status("context", "i32", "i32"),
  mantou_synchronize: status("context"),
  mantou_mark: status("context", "i32"),
  mantou_wait_for_mark: status("context", "i32"),
  mantou_time_between_marks: status("context", P),
  mantou_capture_begin: status("context"),
  mantou_capture_end: status("context", P),
  mantou_graph_replay: status("context", P, P),
  mantou_graph_destroy: status("context", P),

  mantou_file_map: status(P, P),
  mantou_file_unmap: status(P),
  mantou_file_size: status(P, P),
  mantou_file_read: status(P, I, I, P),
  mantou_file_gather: status(P, I, "i32", I, I, P, I, P),
  mantou_file_prefetch: status(P, I, "i32", I, I, P),

  mantou_cast: status("context", I, "i32", P, "i32", P),
  mantou_add: status("context", "i32", I, P, P, P),
  mantou_scale: status("context", I, P, P),
  mantou_sum: status("context", I, P, "f32", "i32", P),
  mantou_silu_forward: status("context", "i32", I, P, P),
  mantou_silu_backward: status("context", "i32", I, P, P, P),
  mantou_swiglu_forward: status("context", "i32", I, I, P, P),
  mantou_swiglu_backward: status("context", "i32", I, I, P, P, P),

  mantou_matmul: status("context", "i32", "i32", I, I, I, "i32", P, I, P, I, "i32", P, I, "i32"),

  mantou_embedding_forward: status("context", "i32", I, I, I, P, P, P),
  mantou_embedding_backward_workspace: size(I, I, I),
  mantou_embedding_backward: status("context", "i32", I, I, I, P, P, P, P),

  mantou_rmsnorm_forward: status("context", "i32", I, I, "f32", P, P, P, P, P, P),
  mantou_rmsnorm_backward_workspace: size(I, I),
  mantou_rmsnorm_backward: status("context", "i32", I, I, P, P, P, P, P, P, P, P),

  mantou_rope: status("context", "i32", I, I, I, I, P, P, P, I, P, I, "i32"),
  mantou_attention_forward: status("context", "i32", I, I, I, I, I, "f32", P, I, P, P, I, P, P, P, P),
  mantou_attention_rotate_first: size(I),
  mantou_attention_backward_workspace: size(I, I, I, I, I),
  mantou_attention_backward: status(
    ...(["context", "i32", I, I, I, I, I, "f32", P, P, I, P, P, I] as const),
    ...([P, P, "i32", P, P, P, P, P, P] as const),
  ),
  mantou_attention_cached: status(
    ...(["context", "i32", I, I, P, P, I, I, I, I, I, "f32"] as const),
    ...([P, I, P, P, I, P, P, P, P] as const),
  ),
  mantou_attention_masked: status("context", "i32", I, I, I, I, I, "f32", P, P, P, P, P),

  mantou_softmax: status("context", "i32", I, I, I, P, P),
  mantou_cross_entropy: status("context", "i32", I, I, P, I, P, "f32", "f32", "f32", P),

  mantou_gradient_norm_workspace: size(I),
  mantou_gradient_norm: status("context", I, P, "f32", "f32", P, P),
  mantou_adamw: status(
    ...(["context", "i32", I, P, P, P, P, P, P, P, "f32", "f32", "f32"] as const),
    ...(["i32", P, P] as const),
  ),
} as const satisfies Record<string, { result: Result; parameters: readonly Kind[] }>;

export type SymbolName = keyof typeof symbols;
