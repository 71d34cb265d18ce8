/** What mutants.ts cannot find by itself: which tests judge a file, mistakes made by hand, and mutants that are none. */

const kernels = ["tests/conformance/kernels.test.ts"];
const attention = ["tests/conformance/attention.test.ts"];

/** The tests of each file of kernels/cuda; a file without any gets no mutants. */
export const TESTS: Record<string, { tests: string[]; pattern: string }> = {
  "adamw.cu": { tests: kernels, pattern: "AdamW|gradient norm" },
  "context.h": { tests: kernels, pattern: "elementwise|RMSNorm|softmax|cross-entropy|outside the vocabulary" },
  "cross_entropy.cu": { tests: kernels, pattern: "cross-entropy" },
  "elementwise.cu": { tests: kernels, pattern: "elementwise" },
  "embedding.cu": { tests: kernels, pattern: "embedding|outside the vocabulary" },
  "rmsnorm.cu": { tests: kernels, pattern: "RMSNorm" },
  "rope.cu": { tests: kernels, pattern: "RoPE" },
  "softmax.cu": { tests: kernels, pattern: "softmax" },
  "swiglu.cu": { tests: kernels, pattern: "SwiGLU|SiLU" },
  "matmul.cu": { tests: kernels, pattern: "matmul" },
  "attention.cu": { tests: attention, pattern: "(1|17|64|65|77|33)\\], " },
  "attention.h": { tests: attention, pattern: "(1|17|64|65|77|33)\\], " },
  "attention_backward.cu": { tests: attention, pattern: "(1|17|64|65|77|33)\\], " },
  "attention_scalar.cu": { tests: attention, pattern: "(1|17|64|65|77|33)\\], " },
  "tensor_tile.h": { tests: attention, pattern: "(65|77)\\], " },
};

/** In the first line of the file that contains it: what stands there, the mistake, and its name. */
export const BY_HAND: Record<string, [before: string, after: string, kind: string][]> = {
  "adamw.cu": [
    ["end = count - begin < CHUNK ? count : begin + CHUNK", "end = begin + CHUNK", "wrong bound"],
    ["i += NORM_THREADS * N", "i += NORM_THREADS", "wrong stride"],
    [
      "const int64_t left = end - (end - begin) % N",
      "const int64_t left = end - (end - begin) % N + 1",
      "wrong address",
    ],
    ["if (threadIdx.x == 0) sums[blockIdx.x] = sum;", "if (threadIdx.x == 0) sums[0] = sum;", "wrong address"],
    ["i += TOTAL_THREADS) sum", "i += TOTAL_THREADS - 1) sum", "wrong stride"],
    ["range_ends[middle] > i", "range_ends[middle] >= i", "bound one too far"],
    ["range_ends[range] <= i + k", "range_ends[range] < i + k", "bound one too near"],
    ["if (sizeof(T) < sizeof(float)) store(weights", "if (false) store(weights", "store dropped"],
  ],
  "context.h": [
    ["bit > 0; bit /= 2) x +=", "bit > 1; bit /= 2) x +=", "shuffle missing"],
    ["if (lane_of_thread() == 0) scratch", "if (lane_of_thread() == 1) scratch", "wrong lane"],
    ["body.template at<N>(index * N)", "body.template at<N>(index)", "wrong stride"],
    ["body.template at<1>(packs * N + index)", "body.template at<1>(packs * N)", "wrong address"],
  ],
  "cross_entropy.cu": [
    ["const float wanted = threadIdx.x == 0 ? to_float(x[target]) : 0.0f;", "", "load dropped"],
    ["const int single_at = count * N + first;", "const int single_at = count * N;", "wrong address"],
    ["(i == target ? gradient_scale : 0.0f)", "0.0f", "term dropped"],
    ["gradient(to_float(pack.values[k]), i * N + k)", "gradient(to_float(pack.values[k]), i * N)", "wrong address"],
    ["store(x + i * N, values)", "store(x + i, values)", "wrong stride"],
    [
      "for (int i = first + SPAN * THREADS; i < count; i += THREADS) raise",
      "for (int i = first + SPAN * THREADS; i < 0; i += THREADS) raise",
      "loop dropped",
    ],
    [
      "for (int i = first + SPAN * THREADS; i < count; i += THREADS) add",
      "for (int i = first + SPAN * THREADS; i < 0; i += THREADS) add",
      "loop dropped",
    ],
    ["block_sum<THREADS>(sum, scratch[1])", "block_sum<THREADS>(sum, scratch[0])", "scratch used again too early"],
    ["if (threadIdx.x == 0) losses[row] = logf", "losses[row] = logf", "written by every thread"],
  ],
  "elementwise.cu": [
    ["i += SUM_THREADS) sum", "i += SUM_THREADS + 1) sum", "wrong stride"],
    ["if (threadIdx.x != 0) return;", "", "written by every thread"],
    ["accumulate ? *result + total : total", "*result + total", "added instead of written"],
  ],
  "embedding.cu": [
    ["row / CHUNK * vocab_size + token", "row / CHUNK + token", "wrong stride"],
    ["if (static_cast<unsigned>(lane_of_thread()) >= step) before += lower;", "before += lower;", "bound dropped"],
    ["if (lane_of_thread() == WARP - 1) {", "if (lane_of_thread() == 0) {", "wrong lane"],
    ["int32_t place = first_place + before - size;", "int32_t place = first_place + before;", "wrong address"],
    ["if (valid) sorting.order[first + lower]", "if (valid) sorting.order[first]", "wrong address"],
    ["next[token] = first + __popc(same)", "next[token] = first + 1", "wrong count"],
    ["size, WARPS);", "size, WARPS + 1);", "wrong stride"],
    ["to[base + own] += total;", "to[base + own] = total;", "written instead of added"],
    [
      "sum_rows<T, N>(sum, doutput, dim, column, order, 0, size, 1)",
      "sum_rows<T, N>(sum, doutput, dim, column, order, 1, size, 1)",
      "wrong bound",
    ],
  ],
  "rmsnorm.cu": [
    ["return (j * Team::SIZE + Team::rank()) * N;", "return (j * Team::SIZE + Team::rank()) * N + N;", "wrong address"],
    ["to_float(from_float<T>(values[k] + more[k]))", "values[k] + more[k]", "rounding dropped"],
    [
      "const float scale = rsqrtf(Team::sum(squares, scratch)",
      "const float scale = rsqrtf(Team::sum(squares + 0.0f, nullptr)",
      "scratch missing",
    ],
    ["if (Team::rank() == 0) rstd[row] = scale;", "rstd[row] = scale;", "written by every thread"],
    ["load(values, (keeps ? total : x) + i)", "load(values, x + i)", "wrong address"],
    ["if (row > begin) load(sums, own + i);", "load(sums, own + i);", "read before written"],
    ["Team::sum(dot, scratch[row & 1])", "Team::sum(dot, scratch[0])", "scratch used again too early"],
    ["part * rows_each + (part < rows_over ? part : rows_over)", "part * rows_each", "wrong address"],
    ["begin + rows_each + (part < rows_over ? 1 : 0)", "begin + rows_each", "wrong bound"],
    ["part < parts; part += WARP) sum", "part < parts; part += WARP + 1) sum", "wrong stride"],
    [
      "warp_sum(sums[lane_of_thread()][warp_of_thread()])",
      "warp_sum(sums[warp_of_thread()][lane_of_thread()])",
      "indices swapped",
    ],
    [
      "if (lane_of_thread() == 0 && own < dim) dgain[own] += total;",
      "if (own < dim) dgain[own] += total;",
      "written by every thread",
    ],
  ],
  "rope.cu": [
    ["y[k] = x[k] * angle[k] - x[k + 1] * sine;", "y[k] = x[k] * angle[k] + x[k + 1] * sine;", "wrong sign"],
    ["place.row * input_stride + column", "place.row * width + column", "wrong stride"],
    ["rope + position * head_dim +", "rope + position * head_dim / 2 +", "wrong stride"],
    ["row_and_column(column, head_dim).column", "column", "wrong address"],
  ],
  "softmax.cu": [
    ["block_sum<THREADS>(sum, scratch[1])", "block_sum<THREADS>(sum, scratch[0])", "scratch used again too early"],
    [
      "const int64_t at = place.row * dim * inner + place.column;",
      "const int64_t at = place.row * dim + place.column;",
      "wrong stride",
    ],
  ],
  "swiglu.cu": [
    ["load(up, gate + dim);", "load(up, gate);", "wrong address"],
    ["row_and_column(i / N, dim / N).row * dim;", "row_and_column(i, dim).row;", "wrong stride"],
    ["store(dgate_up + gate + dim, dup);", "store(dgate_up + gate + dim, dgate);", "wrong value"],
  ],
};

/** Mutants that compute the same, or that differ in nothing that is promised, and why. */
export const EQUIVALENT: { file: string; text: string; kind?: string; reason: string }[] = [];
