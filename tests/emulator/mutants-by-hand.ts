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
  "attention.cu": { tests: [...attention, ...kernels], pattern: "(1|17|64|65|77|33)\\], |a cache that|a slot that" },
  "attention.h": { tests: [...attention, ...kernels], pattern: "(1|17|64|65|77|33)\\], |a cache that|a slot that" },
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
  "matmul.cu": [
    ["K_BY_ROWS) from += DEPTH * stride, rows -= DEPTH;", "K_BY_ROWS) from += DEPTH * stride;", "bound not moved"],
    ["else from += DEPTH, columns -= DEPTH;", "else from += DEPTH;", "bound not moved"],
    ["warp / 2 * (SIDE / 2), warp_column = warp % 2", "warp % 2 * (SIDE / 2), warp_column = warp % 2", "wrong quarter"],
    ["lane % 4 * 2;", "lane % 4;", "wrong column"],
    ["lane / 4;", "lane / 8;", "wrong row"],
    ["static_cast<int64_t>(part) * p.m * p.n", "0", "parts on top of each other"],
    ["partial + part * size + index", "partial + index", "wrong stride"],
    ["x += to_float(to[0]);", "x = to_float(to[0]);", "term dropped"],
    ["before.y + y", "y", "term dropped"],
    ["load_b.fetch(tile_b(step % STAGES));", "load_b.fetch(tile_b(0));", "wrong buffer"],
    ["fetch(step + STAGES - 1);", "fetch(step + STAGES);", "wrong step"],
    ["first + within % height", "first + within / height", "wrong tile"],
  ],
  "tensor_tile.h": [
    ["chunk(row + (lane & 15)", "chunk(row + (lane & 7)", "wrong address"],
    ["column / CHUNK + (lane >> 4)", "column / CHUNK", "wrong address"],
    ["row + (lane & 7) + (lane >> 4) * 8", "row + (lane & 7)", "wrong address"],
    ["((lane >> 3) & 1)", "(lane >> 4)", "wrong address"],
  ],
  "attention.h": [
    ["pair.x * angle.x - pair.y * angle.y", "pair.x * angle.x + pair.y * angle.y", "wrong sign"],
    ["positions ? positions[r] : first + r", "first + r", "positions dropped"],
    ["make_float2(angle.x, -angle.y)", "angle", "wrong sign"],
    ["rotation.row(first + r, Tile::COLUMNS)", "rotation.row(r, Tile::COLUMNS)", "wrong address"],
    ["make_float2(two.x, two.y)", "make_float2(one.x, one.y)", "wrong angle"],
    ["rotation.row(first + r, FRAGMENTS * 8)", "rotation.row(r, FRAGMENTS * 8)", "wrong address"],
    ["last_first ? blocks - 1 - block : block", "last_first ? blocks - block : block", "wrong block"],
  ],
  "attention.cu": [
    ["> ahead + i * 16 + e / 2 * 8", ">= ahead + i * 16 + e / 2 * 8", "mask off by one"],
    ["if (ahead < STRIP - 1) {", "if (ahead < STRIP - 33) {", "mask missing"],
    ["if (ahead + DOWN * 16 <= 0) break;", "if (ahead + DOWN * 16 <= 16) break;", "bound wrong"],
    ["maxima[i][half] = most;", "", "maximum forgotten"],
    ["values(block), strip);", "values(block), 0);", "wrong address"],
    ["(block & 1) * KEYS", "0 * KEYS", "buffer used too early"],
    ["head.v + key * p.kv_stride", "head.v", "wrong address"],
    ["work.head / (p.heads / p.kv_heads);", "work.head % p.kv_heads;", "wrong head"],
    ["places.start(sequence) + row % p.length;", "row % p.length;", "wrong place"],
    ["key += WARPS * AT_ONCE) {", "key += WARPS) {", "wrong stride"],
    ["weights[w] = expf(warp_maxima[w] - most);", "weights[w] = 1;", "correction dropped"],
  ],
  "attention_backward.cu": [
    ["<= ahead + i * 16 + e / 2 * 8", "< ahead + i * 16 + e / 2 * 8", "mask off by one"],
    [">= behind + i * 16 + e / 2 * 8", "> behind + i * 16 + e / 2 * 8", "mask off by one"],
    ["(which * 2 + (step & 1)) * PASSING", "(which * 2) * PASSING", "buffer used too early"],
    ["lses[step & 1][thread] = next_lse", "lses[0][thread] = next_lse", "wrong buffer"],
    ["(e % 2 ? delta.y : delta.x)", "delta.x", "wrong column"],
    ["scale_all(sums, p.scale);", "", "scale dropped"],
    ["turn_back(dk, rotation, first + warp_row", "turn_back(dk, rotation, first", "wrong angle"],
    ["work.head * group + step / blocks", "work.head * group", "wrong head"],
    ["if (behind >= STRIP) continue;", "if (behind >= 0) continue;", "bound wrong"],
    ["deltas[r] = sum;", "deltas[r] = 0;", "value dropped"],
  ],
  "attention_scalar.cu": [
    ["tx() + j * SIDE <= last ?", "tx() + j * SIDE < last ?", "mask off by one"],
    ["<= first + ty() + i * SIDE, p.scale", "< first + ty() + i * SIDE, p.scale", "mask off by one"],
    ["exists && first + ty() + i * SIDE <= query", "exists && first + ty() + i * SIDE < query", "mask off by one"],
    ["const float2 pair = c % 2 ?", "const float2 pair = c % 2 == 0 ?", "pair exchanged"],
    ["totals[i] = totals[i] * correction + row_sum(total);", "totals[i] += row_sum(total);", "correction dropped"],
    ["key + tx() + j * SIDE", "tx() + j * SIDE", "wrong key"],
  ],
};

/** Mutants that compute the same, or that differ in nothing that is promised, and why. */
export const EQUIVALENT: { file: string; text: string; kind?: string; reason: string }[] = ["most", "total"].map(
  (name) => ({
    file: "attention.cu",
    text: `__shfl_xor_sync(ALL_LANES, ${name}, 2)`,
    kind: "shuffle from another lane",
    reason: "after lanes 1 apart have met, those 2 and 3 apart hold the same",
  }),
);
