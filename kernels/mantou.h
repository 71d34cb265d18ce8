/*
 * Mantou's C ABI: everything that the TypeScript side asks of a native backend. kernels/cpu implements it in C++,
 * kernels/cuda in CUDA; both export exactly these symbols.
 *
 * Conventions
 * - Every function returns a status (MANTOU_OK = 0) unless it returns a size or a text. After a failure
 *   mantou_last_error() describes it; the text belongs to the calling thread and lives until its next call.
 * - Functions never abort and never throw. They check what they can see: null pointers, negative sizes, unsupported
 *   dtypes. The caller answers for the sizes of the memory behind the pointers.
 * - "Device memory" is what mantou_malloc returns. On the CPU it is ordinary memory. Pointer arguments are device
 *   memory unless their comment says "host".
 * - Operations are queued on the context's compute stream and may still run when the call returns; the CPU backend
 *   has finished by then. Nothing is allocated inside an operation: scratch memory comes in as `workspace`, at least
 *   as large as the matching *_workspace function says, or is part of the context.
 * - Tensors are row-major and dense unless a stride (counted in elements) is given. Sizes and offsets are 64-bit.
 * - `dtype` is the type of activations and weights (MANTOU_FLOAT32 or MANTOU_BFLOAT16); statistics, losses, gradients
 *   of parameters and optimizer state are always float32.
 * - Gradients of parameters are added to (+=), gradients of activations are written (=), unless said otherwise.
 * - In bfloat16 the arithmetic is float32 all the same: operations convert what they read, and round (to nearest even)
 *   what they write. Sums are rounded once, after the last term. The operands of tensor-core products may be rounded.
 * - Results do not depend on timing: the same call on the same input gives the same bits.
 * - Aliasing: an output may be one of the inputs only where the comment says so.
 */
#ifndef MANTOU_H
#define MANTOU_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef MANTOU_API
#define MANTOU_API __attribute__((visibility("default")))
#endif
#define MANTOU_ABI_VERSION 7

enum mantou_status {
  MANTOU_OK = 0,
  MANTOU_INVALID_ARGUMENT = 1,
  MANTOU_OUT_OF_MEMORY = 2,
  MANTOU_UNSUPPORTED = 3,
  MANTOU_IO_ERROR = 4,
  MANTOU_DEVICE_ERROR = 5
};

enum mantou_dtype { MANTOU_FLOAT32 = 0, MANTOU_BFLOAT16 = 1 };

enum mantou_stream { MANTOU_COMPUTE_STREAM = 0, MANTOU_COPY_STREAM = 1 };

/* A device with its streams, its threads and its scratch memory. Used by one thread at a time. */
typedef struct mantou_context mantou_context;

/* Work that was captured from the compute stream. */
typedef struct mantou_graph mantou_graph;

/* A file mapped into memory, read-only. */
typedef struct mantou_file mantou_file;

/* ---- library and context ---------------------------------------------------------------------------------------- */

/* MANTOU_ABI_VERSION of the library. */
MANTOU_API int32_t mantou_abi_version(void);

/* "cpu" or "cuda". */
MANTOU_API const char* mantou_backend(void);

/* What went wrong in this thread's last failing call. Never null. */
MANTOU_API const char* mantou_last_error(void);

/* `device`: ordinal of the GPU, ignored on the CPU. `threads`: CPU threads to use, 0 for as many as this process may
 * run on. `context`: host, receives the context. */
MANTOU_API int32_t mantou_context_create(int32_t device, int32_t threads, mantou_context** context);

/* Destroys the context; memory allocated from it must have been freed. Null is allowed. */
MANTOU_API int32_t mantou_context_destroy(mantou_context* context);

/* Bytes of device memory that a context takes for its scratch, beside what mantou_malloc gives; no device is needed to
 * ask. 0 on the CPU, where scratch is memory of the host. */
MANTOU_API int64_t mantou_context_bytes(void);

/* Writes a line such as "Intel(R) Xeon(R), 2 threads, AVX-512" to `text` (host, `capacity` bytes, NUL-terminated). */
MANTOU_API int32_t mantou_context_describe(mantou_context* context, char* text, int64_t capacity);

/* The type that a model's weights and activations should have here unless its owner wishes otherwise: `dtype` (host)
 * receives it, and `reason` (host, `capacity` bytes, NUL-terminated) why, such as "the chip has AVX512-BF16". */
MANTOU_API int32_t mantou_context_preferred_dtype(mantou_context* context, int32_t* dtype, char* reason,
                                                  int64_t capacity);

/* Measures what the device can do at most: multiply-adds in float32 and in the best way to multiply bfloat16 matrices,
 * in operations a second (a multiply-add is two), and reading from memory, in bytes a second. Reads `bytes` bytes of
 * `memory`, which should be more than caches hold. `peaks`: host, float64 [3]. Takes half a second.
 * MANTOU_UNSUPPORTED where there is no way to measure. */
MANTOU_API int32_t mantou_measure_peaks(mantou_context* context, int64_t bytes, const void* memory, double* peaks);

/* ---- memory and streams ----------------------------------------------------------------------------------------- */

/* Zero-filled device memory, aligned to 256 bytes. `memory`: host, receives the address. */
MANTOU_API int32_t mantou_malloc(mantou_context* context, int64_t bytes, void** memory);
MANTOU_API int32_t mantou_free(mantou_context* context, void* memory);

/* Host memory that copies to and from the device fast (page-locked on CUDA), zero-filled. */
MANTOU_API int32_t mantou_malloc_host(mantou_context* context, int64_t bytes, void** memory);
MANTOU_API int32_t mantou_free_host(mantou_context* context, void* memory);

/* Copies between host and device memory in any direction, after the work queued so far, and returns when done. */
MANTOU_API int32_t mantou_copy(mantou_context* context, void* destination, const void* source, int64_t bytes);

/* The same, queued on `stream`; host memory must come from mantou_malloc_host and stay untouched until then. */
MANTOU_API int32_t mantou_copy_async(mantou_context* context, void* destination, const void* source, int64_t bytes,
                                     int32_t stream);

/* Sets every byte to `value` (0..255). */
MANTOU_API int32_t mantou_fill(mantou_context* context, void* memory, int32_t value, int64_t bytes);

/* Work queued on `waiting` from now on starts after what is queued on `signalling` so far. */
MANTOU_API int32_t mantou_stream_wait(mantou_context* context, int32_t waiting, int32_t signalling);

/* Returns when everything queued is done; reports errors that happened on the way. */
MANTOU_API int32_t mantou_synchronize(mantou_context* context);

/* Marks this point of the compute stream as mark `mark`, 0 or 1, in place of where it was before. */
MANTOU_API int32_t mantou_mark(mantou_context* context, int32_t mark);

/* Returns when what was queued on the compute stream before the mark is done; at once if it was never set. */
MANTOU_API int32_t mantou_wait_for_mark(mantou_context* context, int32_t mark);

/* Waits for both marks, which must have been set, and gives the time that passed between them on the device.
 * `milliseconds`: host, float64. */
MANTOU_API int32_t mantou_time_between_marks(mantou_context* context, double* milliseconds);

/* Between begin and end, work queued on the compute stream is recorded with its pointers and sizes instead of being
 * done; `graph` (host) receives the record. Nothing may be allocated or waited for in between, and copies must be
 * asynchronous. What changes from one replay to the next (a learning rate, a batch) is read from device memory.
 * MANTOU_UNSUPPORTED where there is no way to record. A failure in between is reported by end or by replay. */
MANTOU_API int32_t mantou_capture_begin(mantou_context* context);
MANTOU_API int32_t mantou_capture_end(mantou_context* context, mantou_graph** graph);

/* Queues everything that was captured, in one go. `milliseconds`: host, null or one float64 for each captured call in its
 * order, to which is added how long that took; MANTOU_UNSUPPORTED unless null where work is queued. */
MANTOU_API int32_t mantou_graph_replay(mantou_context* context, mantou_graph* graph, double* milliseconds);
MANTOU_API int32_t mantou_graph_destroy(mantou_context* context, mantou_graph* graph);

/* ---- token files (host) ----------------------------------------------------------------------------------------- */

/* Maps the file at `path` (host, UTF-8, NUL-terminated) read-only. `file`: host, receives the handle. */
MANTOU_API int32_t mantou_file_map(const char* path, mantou_file** file);
MANTOU_API int32_t mantou_file_unmap(mantou_file* file);

/* The file's present size in bytes, asked of the file system. `bytes`: host. */
MANTOU_API int32_t mantou_file_size(mantou_file* file, int64_t* bytes);

/* Copies `bytes` bytes at `offset` to `destination` (host). */
MANTOU_API int32_t mantou_file_read(mantou_file* file, int64_t offset, int64_t bytes, void* destination);

/* Copies `count` runs of `length` tokens to `tokens` (host, int32 [count, length]). Run i starts at token starts[i]
 * (host, whole numbers) of an array of little-endian unsigned integers, `width` bytes each (2 or 4), that begins
 * `offset` bytes into the file. A token >= vocab_size or a run past the end is MANTOU_INVALID_ARGUMENT. */
MANTOU_API int32_t mantou_file_gather(mantou_file* file, int64_t offset, int32_t width, int64_t count, int64_t length,
                                      const double* starts, int64_t vocab_size, int32_t* tokens);

/* Asks the system to read the same runs from the disk ahead of mantou_file_gather, and returns without waiting. */
MANTOU_API int32_t mantou_file_prefetch(mantou_file* file, int64_t offset, int32_t width, int64_t count, int64_t length,
                                        const double* starts);

/* ---- elementwise ------------------------------------------------------------------------------------------------ */

/* output[i] = input[i], converted from input_dtype to output_dtype (round to nearest even). */
MANTOU_API int32_t mantou_cast(mantou_context* context, int64_t count, int32_t input_dtype, const void* input,
                               int32_t output_dtype, void* output);

/* output = a + b; output may be a or b. */
MANTOU_API int32_t mantou_add(mantou_context* context, int32_t dtype, int64_t count, const void* a, const void* b,
                              void* output);

/* values *= *factor, float32. */
MANTOU_API int32_t mantou_scale(mantou_context* context, int64_t count, float* values, const float* factor);

/* *result = scale * sum(values), float32, summed in a fixed order; added to *result if accumulate != 0. */
MANTOU_API int32_t mantou_sum(mantou_context* context, int64_t count, const float* values, float scale,
                              int32_t accumulate, float* result);

/* SiLU(x) = x * sigmoid(x); output may be input. */
MANTOU_API int32_t mantou_silu_forward(mantou_context* context, int32_t dtype, int64_t count, const void* input,
                                       void* output);

/* dinput = doutput * SiLU'(input); dinput may be doutput or input. */
MANTOU_API int32_t mantou_silu_backward(mantou_context* context, int32_t dtype, int64_t count, const void* doutput,
                                        const void* input, void* dinput);

/* gate_up [rows, 2 * dim] holds gate (first half) and up: output [rows, dim] = SiLU(gate) * up. */
MANTOU_API int32_t mantou_swiglu_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim,
                                         const void* gate_up, void* output);

/* dgate_up may be gate_up. */
MANTOU_API int32_t mantou_swiglu_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim,
                                          const void* doutput, const void* gate_up, void* dgate_up);

/* ---- matrix product --------------------------------------------------------------------------------------------- */

/* C [m, n] = op(A) [m, k] * op(B) [k, n], plus C if accumulate != 0. op(X) is X, or its transpose where
 * transpose_x != 0; lda, ldb, ldc are the row strides of the matrices as they lie in memory. A and B have input_dtype,
 * C has output_dtype; sums are float32. k = 0 gives zeros. */
MANTOU_API int32_t mantou_matmul(mantou_context* context, int32_t transpose_a, int32_t transpose_b, int64_t m,
                                 int64_t n, int64_t k, int32_t input_dtype, const void* a, int64_t lda, const void* b,
                                 int64_t ldb, int32_t output_dtype, void* c, int64_t ldc, int32_t accumulate);

/* ---- embedding -------------------------------------------------------------------------------------------------- */

/* output [rows, dim] = weight[tokens[row], :]; tokens int32 [rows], weight [vocab_size, dim]. */
MANTOU_API int32_t mantou_embedding_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size,
                                            int64_t dim, const int32_t* tokens, const void* weight, void* output);

MANTOU_API int64_t mantou_embedding_backward_workspace(int64_t rows, int64_t vocab_size, int64_t dim);

/* dweight[tokens[row], :] += doutput[row, :], added up in a fixed order. */
MANTOU_API int32_t mantou_embedding_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size,
                                             int64_t dim, const int32_t* tokens, const void* doutput, float* dweight,
                                             void* workspace);

/* ---- RMSNorm, with the residual addition in front of it --------------------------------------------------------- */

/* x = input + residual (residual may be null: x = input), rounded to dtype; sum = x if sum is not null (sum may be input
 * or residual); rstd[row] = 1 / sqrt(mean(x^2) + eps); output = x * rstd * gain. All [rows, dim], gain [dim]. */
MANTOU_API int32_t mantou_rmsnorm_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, float eps,
                                          const void* input, const void* residual, const void* gain, void* sum,
                                          void* output, float* rstd);

MANTOU_API int64_t mantou_rmsnorm_backward_workspace(int64_t rows, int64_t dim);

/* x is the normalised sum of the forward pass. dinput = gradient through the norm + dresidual (may be null); dinput may
 * be doutput or dresidual. dgain += ... */
MANTOU_API int32_t mantou_rmsnorm_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim,
                                           const void* doutput, const void* x, const void* gain, const float* rstd,
                                           const void* dresidual, void* dinput, float* dgain, void* workspace);

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* Rotates the pairs (2i, 2i+1) of every head: input and output [rows, heads, head_dim] with row strides. `rope` is a
 * float32 table [positions, head_dim / 2, 2] of cos and sin. Row r stands at positions[r] (int32), or at
 * r % sequence_length where positions is null. inverse != 0 rotates back. output may be input. */
MANTOU_API int32_t mantou_rope(mantou_context* context, int32_t dtype, int64_t rows, int64_t sequence_length,
                               int64_t heads, int64_t head_dim, const float* rope, const int32_t* positions,
                               const void* input, int64_t input_stride, void* output, int64_t output_stride,
                               int32_t inverse);

/* Causal attention. Row r = b * sequence_length + t of q holds heads * head_dim values, of k and v kv_heads *
 * head_dim; q_stride and kv_stride are row strides, so that q, k and v may be parts of one packed product. Query head
 * h reads key/value head h / (heads / kv_heads). Scores are scaled by `scale`. If `rope` is not null, q and k are
 * rotated as in mantou_rope (positions int32 [batch, sequence_length] or null). output [rows, heads * head_dim];
 * lse float32 [batch, heads, sequence_length] receives the natural log-sum-exp of the scaled scores. */
MANTOU_API int32_t mantou_attention_forward(mantou_context* context, int32_t dtype, int64_t batch,
                                            int64_t sequence_length, int64_t heads, int64_t kv_heads, int64_t head_dim,
                                            float scale, const void* q, int64_t q_stride, const void* k, const void* v,
                                            int64_t kv_stride, const float* rope, const int32_t* positions,
                                            void* output, float* lse);

/* 1 where q and k had better be rotated by mantou_rope once, in place, than by attention as it loads them (which may be
 * once per block of queries), else 0. Forward then takes no `rope`, backward takes it with rotated = 1. */
MANTOU_API int64_t mantou_attention_rotate_first(int64_t sequence_length);

MANTOU_API int64_t mantou_attention_backward_workspace(int64_t batch, int64_t sequence_length, int64_t heads,
                                                       int64_t kv_heads, int64_t head_dim);

/* dq has q_stride, dk and dv have kv_stride; gradients are with respect to q and k before rotation, also where
 * rotated != 0 says that q and k come rotated. */
MANTOU_API int32_t mantou_attention_backward(mantou_context* context, int32_t dtype, int64_t batch,
                                             int64_t sequence_length, int64_t heads, int64_t kv_heads,
                                             int64_t head_dim, float scale, const void* doutput, const void* q,
                                             int64_t q_stride, const void* k, const void* v, int64_t kv_stride,
                                             const float* rope, const int32_t* positions, int32_t rotated,
                                             const void* output, const float* lse, void* dq, void* dk, void* dv,
                                             void* workspace);

/* Generation: q, k, v hold `length` new tokens for each of `batch` sequences, those of sequence b at positions starts[b]
 * .. starts[b] + length - 1. The caches [slot_count, capacity, kv_heads, head_dim] keep each sequence in a slot of its
 * own: slots[b], or b where slots is null. Rotates k (if rope is not null), appends k and v to the slots, and attends
 * causally over everything up to each token. starts and slots: int32 [batch], device memory; no slot twice, starts[b] +
 * length <= capacity. */
MANTOU_API int32_t mantou_attention_cached(mantou_context* context, int32_t dtype, int64_t batch, int64_t length,
                                           const int32_t* starts, const int32_t* slots, int64_t slot_count,
                                           int64_t capacity, int64_t heads, int64_t kv_heads, int64_t head_dim,
                                           float scale, const void* q, int64_t q_stride, const void* k, const void* v,
                                           int64_t kv_stride, const float* rope, void* k_cache, void* v_cache,
                                           void* output);

/* softmax(scale * q k^T, masked) v with q [batch, queries, dk], k [batch, keys, dk], v [batch, keys, dv]. mask: uint8
 * [batch, queries, keys], 1 = attend, or null; a row masked everywhere gives the mean of v. */
MANTOU_API int32_t mantou_attention_masked(mantou_context* context, int32_t dtype, int64_t batch, int64_t queries,
                                           int64_t keys, int64_t dk, int64_t dv, float scale, const void* q,
                                           const void* k, const void* v, const uint8_t* mask, void* output);

/* ---- softmax and loss ------------------------------------------------------------------------------------------- */

/* Softmax over the middle axis of [outer, dim, inner]; output may be input. */
MANTOU_API int32_t mantou_softmax(mantou_context* context, int32_t dtype, int64_t outer, int64_t dim, int64_t inner,
                                  const void* input, void* output);

/* losses[row] = log Z - z[targets[row]], float32, where log Z = logsumexp(z) and z = logits[row, :vocab_size], or where
 * soft_cap > 0 z = soft_cap * tanh(logits / soft_cap) (Gemma 2, 2024, section 2). If gradient_scale is not 0, logits are
 * overwritten by gradient_scale times the gradient of losses[row] + z_loss * (log Z)^2 (PaLM, Chowdhery et al. 2022,
 * section 5), of which losses has the first term alone; columns past vocab_size (up to stride) by 0. */
MANTOU_API int32_t mantou_cross_entropy(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size,
                                        void* logits, int64_t stride, const int32_t* targets, float soft_cap,
                                        float z_loss, float gradient_scale, float* losses);

/* ---- optimizer -------------------------------------------------------------------------------------------------- */

MANTOU_API int64_t mantou_gradient_norm_workspace(int64_t count);

/* result[0] = ||gradients||_2, result[1] = min(1, max_norm / (norm + eps)), or 1 where max_norm <= 0. Summed in a fixed
 * order. */
MANTOU_API int32_t mantou_gradient_norm(mantou_context* context, int64_t count, const float* gradients, float max_norm,
                                        float eps, float* result, void* workspace);

/* AdamW with decoupled weight decay (Loshchilov & Hutter 2019), decay first:
 *   w -= lr * decay * w;  m, v: moving averages of g and g^2;  w -= lr * (m / c1) / (sqrt(v / c2) + eps)
 * with g = gradient * *gradient_factor (1 where null). scalars: float32 [3] = lr, c1 = 1 - beta1^t, c2 = 1 - beta2^t.
 * Element i belongs to the first range r with i < range_ends[r] (int64 [ranges], ascending, last = count) and decays
 * by range_decays[r] (float32 [ranges]). master: where dtype is not float32 the weights in float32, which are updated and
 * rounded into `weights`; else null. */
MANTOU_API int32_t mantou_adamw(mantou_context* context, int32_t dtype, int64_t count, void* weights, float* master,
                                const float* gradients, float* first_moments, float* second_moments,
                                const float* scalars, const float* gradient_factor, float beta1, float beta2, float eps,
                                int32_t ranges, const int64_t* range_ends, const float* range_decays);

#ifdef __cplusplus
}
#endif

#endif
