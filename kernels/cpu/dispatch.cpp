// The operations of mantou.h as they are exported: each goes to the table of the instruction set that the context works
// with. Sizes of workspaces do not depend on that; they come from the table that every processor can run.
#include "graph.h"

using namespace mantou;

#define FORWARD(name, ...)                         \
  CHECK(context, "%s: context is null", __func__); \
  return run_or_record(__func__, context, [=] { return context->instructions->operations->name(__VA_ARGS__); })

int32_t mantou_measure_peaks(mantou_context* context, int64_t bytes, const void* memory, double* peaks) {
  CHECK_NOT_NULL(context);
  CHECK_NOT_CAPTURED(context);
  FORWARD(mantou_measure_peaks, context, bytes, memory, peaks);
}

int32_t mantou_cast(mantou_context* context, int64_t count, int32_t input_dtype, const void* input,
                    int32_t output_dtype, void* output) {
  FORWARD(mantou_cast, context, count, input_dtype, input, output_dtype, output);
}

int32_t mantou_add(mantou_context* context, int32_t dtype, int64_t count, const void* a, const void* b, void* output) {
  FORWARD(mantou_add, context, dtype, count, a, b, output);
}

int32_t mantou_scale(mantou_context* context, int64_t count, float* values, const float* factor) {
  FORWARD(mantou_scale, context, count, values, factor);
}

int32_t mantou_sum(mantou_context* context, int64_t count, const float* values, float scale, int32_t accumulate,
                   float* result) {
  FORWARD(mantou_sum, context, count, values, scale, accumulate, result);
}

int32_t mantou_silu_forward(mantou_context* context, int32_t dtype, int64_t count, const void* input, void* output) {
  FORWARD(mantou_silu_forward, context, dtype, count, input, output);
}

int32_t mantou_silu_backward(mantou_context* context, int32_t dtype, int64_t count, const void* doutput,
                             const void* input, void* dinput) {
  FORWARD(mantou_silu_backward, context, dtype, count, doutput, input, dinput);
}

int32_t mantou_swiglu_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, const void* gate_up,
                              void* output) {
  FORWARD(mantou_swiglu_forward, context, dtype, rows, dim, gate_up, output);
}

int32_t mantou_swiglu_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, const void* doutput,
                               const void* gate_up, void* dgate_up) {
  FORWARD(mantou_swiglu_backward, context, dtype, rows, dim, doutput, gate_up, dgate_up);
}

int32_t mantou_matmul(mantou_context* context, int32_t transpose_a, int32_t transpose_b, int64_t m, int64_t n,
                      int64_t k, int32_t input_dtype, const void* a, int64_t lda, const void* b, int64_t ldb,
                      int32_t output_dtype, void* c, int64_t ldc, int32_t accumulate) {
  FORWARD(mantou_matmul, context, transpose_a, transpose_b, m, n, k, input_dtype, a, lda, b, ldb, output_dtype, c, ldc,
          accumulate);
}

int32_t mantou_embedding_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size, int64_t dim,
                                 const int32_t* tokens, const void* weight, void* output) {
  FORWARD(mantou_embedding_forward, context, dtype, rows, vocab_size, dim, tokens, weight, output);
}

int64_t mantou_embedding_backward_workspace(int64_t rows, int64_t vocab_size, int64_t dim) {
  return BASELINE.mantou_embedding_backward_workspace(rows, vocab_size, dim);
}

int32_t mantou_embedding_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size, int64_t dim,
                                  const int32_t* tokens, const void* doutput, float* dweight, void* workspace) {
  FORWARD(mantou_embedding_backward, context, dtype, rows, vocab_size, dim, tokens, doutput, dweight, workspace);
}

int32_t mantou_rmsnorm_forward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, float eps,
                               const void* input, const void* residual, const void* gain, void* sum, void* output,
                               float* rstd) {
  FORWARD(mantou_rmsnorm_forward, context, dtype, rows, dim, eps, input, residual, gain, sum, output, rstd);
}

int64_t mantou_rmsnorm_backward_workspace(int64_t rows, int64_t dim) {
  return BASELINE.mantou_rmsnorm_backward_workspace(rows, dim);
}

int32_t mantou_rmsnorm_backward(mantou_context* context, int32_t dtype, int64_t rows, int64_t dim, const void* doutput,
                                const void* x, const void* gain, const float* rstd, const void* dresidual, void* dinput,
                                float* dgain, void* workspace) {
  FORWARD(mantou_rmsnorm_backward, context, dtype, rows, dim, doutput, x, gain, rstd, dresidual, dinput, dgain,
          workspace);
}

int32_t mantou_rope(mantou_context* context, int32_t dtype, int64_t rows, int64_t sequence_length, int64_t heads,
                    int64_t head_dim, const float* rope, const int32_t* positions, const void* input,
                    int64_t input_stride, void* output, int64_t output_stride, int32_t inverse) {
  FORWARD(mantou_rope, context, dtype, rows, sequence_length, heads, head_dim, rope, positions, input, input_stride,
          output, output_stride, inverse);
}

int32_t mantou_attention_forward(mantou_context* context, int32_t dtype, int64_t batch, int64_t sequence_length,
                                 int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, const void* q,
                                 int64_t q_stride, const void* k, const void* v, int64_t kv_stride, const float* rope,
                                 const int32_t* positions, void* output, float* lse) {
  FORWARD(mantou_attention_forward, context, dtype, batch, sequence_length, heads, kv_heads, head_dim, scale, q,
          q_stride, k, v, kv_stride, rope, positions, output, lse);
}

int64_t mantou_attention_rotate_first(int64_t sequence_length) {
  return BASELINE.mantou_attention_rotate_first(sequence_length);
}

int64_t mantou_attention_backward_workspace(int64_t batch, int64_t sequence_length, int64_t heads, int64_t kv_heads,
                                            int64_t head_dim) {
  return BASELINE.mantou_attention_backward_workspace(batch, sequence_length, heads, kv_heads, head_dim);
}

int32_t mantou_attention_backward(mantou_context* context, int32_t dtype, int64_t batch, int64_t sequence_length,
                                  int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, const void* doutput,
                                  const void* q, int64_t q_stride, const void* k, const void* v, int64_t kv_stride,
                                  const float* rope, const int32_t* positions, int32_t rotated, const void* output,
                                  const float* lse, void* dq, void* dk, void* dv, void* workspace) {
  FORWARD(mantou_attention_backward, context, dtype, batch, sequence_length, heads, kv_heads, head_dim, scale, doutput,
          q, q_stride, k, v, kv_stride, rope, positions, rotated, output, lse, dq, dk, dv, workspace);
}

int32_t mantou_attention_cached(mantou_context* context, int32_t dtype, int64_t batch, int64_t length,
                                const int32_t* starts, const int32_t* slots, int64_t slot_count, int64_t capacity,
                                int64_t heads, int64_t kv_heads, int64_t head_dim, float scale, const void* q,
                                int64_t q_stride, const void* k, const void* v, int64_t kv_stride, const float* rope,
                                void* k_cache, void* v_cache, void* output) {
  FORWARD(mantou_attention_cached, context, dtype, batch, length, starts, slots, slot_count, capacity, heads, kv_heads,
          head_dim, scale, q, q_stride, k, v, kv_stride, rope, k_cache, v_cache, output);
}

int32_t mantou_attention_masked(mantou_context* context, int32_t dtype, int64_t batch, int64_t queries, int64_t keys,
                                int64_t dk, int64_t dv, float scale, const void* q, const void* k, const void* v,
                                const uint8_t* mask, void* output) {
  FORWARD(mantou_attention_masked, context, dtype, batch, queries, keys, dk, dv, scale, q, k, v, mask, output);
}

int32_t mantou_softmax(mantou_context* context, int32_t dtype, int64_t outer, int64_t dim, int64_t inner,
                       const void* input, void* output) {
  FORWARD(mantou_softmax, context, dtype, outer, dim, inner, input, output);
}

int32_t mantou_cross_entropy(mantou_context* context, int32_t dtype, int64_t rows, int64_t vocab_size, void* logits,
                             int64_t stride, const int32_t* targets, float soft_cap, float z_loss, float gradient_scale,
                             float* losses) {
  FORWARD(mantou_cross_entropy, context, dtype, rows, vocab_size, logits, stride, targets, soft_cap, z_loss,
          gradient_scale, losses);
}

int64_t mantou_gradient_norm_workspace(int64_t count) {
  return BASELINE.mantou_gradient_norm_workspace(count);
}

int32_t mantou_gradient_norm(mantou_context* context, int64_t count, const float* gradients, float max_norm, float eps,
                             float* result, void* workspace) {
  FORWARD(mantou_gradient_norm, context, count, gradients, max_norm, eps, result, workspace);
}

int32_t mantou_adamw(mantou_context* context, int32_t dtype, int64_t count, void* weights, float* master,
                     const float* gradients, float* first_moments, float* second_moments, const float* scalars,
                     const float* gradient_factor, float beta1, float beta2, float eps, int32_t ranges,
                     const int64_t* range_ends, const float* range_decays) {
  FORWARD(mantou_adamw, context, dtype, count, weights, master, gradients, first_moments, second_moments, scalars,
          gradient_factor, beta1, beta2, eps, ranges, range_ends, range_decays);
}
