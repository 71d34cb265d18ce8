// attention_backward.cpp's walk with products of pairs (attention_bf16.h).
#pragma once

#if defined(__AVX512F__)

#include "attention_bf16.h"

MANTOU_NAMESPACE

template <typename Unit>
class PairBackwardWorker {
 public:
  PairBackwardWorker(const AttentionBackward<bfloat16>& problem, float* scratch)
      : p(problem), width(round_up(problem.dim, COLUMNS)), pairs(pairs_of<Unit>(problem.dim)) {
    ScratchParts parts = {scratch};
    scores = parts.take(BLOCK * BLOCK);
    dscores = parts.take(BLOCK * BLOCK);
    dkeys = parts.take(width * BLOCK);
    dvalues = parts.take(width * BLOCK);
    rows = parts.take(BLOCK * width);
    other_rows = parts.take(BLOCK * width);
    halves = parts.take_halves(BLOCK * width);
    weights = parts.take(Blocks::panel_words(BLOCK, BLOCK));
    changes = parts.take(Blocks::panel_words(BLOCK, BLOCK));
    change_rows = parts.take_halves<Factor>(BLOCK * BLOCK);
    strip = parts.take(Blocks::strip_words(ROWS, BLOCK));
    transposed_keys = parts.take(Blocks::panel_words(BLOCK, p.dim));
    transposed_values = parts.take(Blocks::panel_words(BLOCK, p.dim));
    keys = parts.take(Blocks::panel_words(p.dim, BLOCK));
    strip_words = round_up(Blocks::strip_words(BLOCK, p.dim), LANES);
    transposed_words = round_up(Blocks::strip_words(p.dim, BLOCK), LANES);
    slots = {parts.rest, scratch + SCRATCH_BYTES / 4, 2 * (strip_words + transposed_words)};
  }

  // All of a key/value head of a sequence.
  void run(int64_t sequence, int64_t kv_head) {
    p.walk(kv_head, [&](int64_t head, int64_t key, bool accumulate) {
      add_keys(sequence, head, kv_head, key, accumulate);
    });
  }

 private:
  using Blocks = PairBlocks<Unit>;
  using Factor = typename Unit::Factor;
  static constexpr int64_t ROWS = Unit::ROWS, COLUMNS = Unit::COLUMNS, STEP = Unit::STEP;

  // Of a block of queries: Q (rotated and scaled) and dO, and the transpose of each, in strips.
  struct Queries {
    float *queries, *doutput, *transposed, *transposed_doutput;
  };

  // The block of keys from `key` on, against all queries of `head`.
  void add_keys(int64_t sequence, int64_t head, int64_t kv_head, int64_t key, bool accumulate) {
    const int64_t count = smaller(BLOCK, p.length - key);
    const int64_t row = sequence * p.length + key;
    const int64_t offset = row * p.kv_stride + kv_head * p.dim;
    prefetch_next_head(count, p.dim, p.v + offset, p.kv_stride);
    Blocks::pack_panels(true, count, p.dim, p.v + offset, p.kv_stride, transposed_values);
    load_halves(count, p.dim, width, p.k + offset, p.kv_stride, p.rotation_on_load(row), 1, rows, halves);
    Blocks::pack_panels(true, count, p.dim, halves, p.dim, transposed_keys);
    Blocks::pack_panels(false, p.dim, count, halves, p.dim, keys);

    for (int64_t query = key; query < p.length; query += BLOCK) add_tile(sequence, head, key, count, query);

    transpose_tile(width, round_up(count, LANES), dkeys, BLOCK, rows, width);
    transpose_tile(width, round_up(count, LANES), dvalues, BLOCK, other_rows, width);
    p.write_keys(row, kv_head, count, width, rows, other_rows, accumulate);
  }

  // The tile of `count` keys from `key` on and the block of queries from `query` on.
  void add_tile(int64_t sequence, int64_t head, int64_t key, int64_t count, int64_t query) {
    const bool diagonal = query == key;
    const int64_t queries = smaller(BLOCK, p.length - query);
    const Queries block = load_queries(sequence, head, query, key == 0);

    for (int64_t r = 0; r < queries; r += ROWS) {
      const int64_t strip_rows = smaller(ROWS, queries - r), seen = diagonal ? smaller(count, r + strip_rows) : count;
      for (int64_t c = 0, columns; c < seen; c += columns) {
        columns = Blocks::columns_from(c, seen);
        unit.finish(strip_rows, columns, pairs, block.queries + r * pairs, Blocks::column_of(transposed_keys, c, pairs),
                    nullptr, scores + r * BLOCK + c, BLOCK, false);
        unit.finish(strip_rows, columns, pairs, block.doutput + r * pairs,
                    Blocks::column_of(transposed_values, c, pairs), nullptr, dscores + r * BLOCK + c, BLOCK, false);
      }
    }

    const int64_t depth = pairs_of<Unit>(queries), statistics = (sequence * p.heads + head) * p.length + query;
    for (int64_t r = 0; r < 2 * depth; r += 2) {
      const int64_t some = smaller(2, queries - r);
      differentiate_rows(r, count, some < 1 ? 0 : diagonal ? r + 1 : count, some < 2 ? 0 : diagonal ? r + 2 : count,
                         p.lse + statistics + r, p.delta + statistics + r, depth);
    }

    for (int64_t c = 0, columns; c < count; c += columns) {
      columns = Blocks::columns_from(c, count);
      if (diagonal) columns = smaller(columns, Unit::LEAST_COLUMNS);
      // The pairs of queries that see these keys, from a whole step on.
      const int64_t first = diagonal ? c / (2 * STEP) * STEP : 0;
      for (int64_t d = 0; d < p.dim; d += ROWS) {
        const int64_t at = d * depth + first * ROWS, dims = smaller(ROWS, p.dim - d);
        unit.finish(dims, columns, depth - first, block.transposed_doutput + at,
                    Blocks::column_of(weights, c, depth) + first * COLUMNS, nullptr, dvalues + d * BLOCK + c, BLOCK,
                    !diagonal);
        unit.finish(dims, columns, depth - first, block.transposed + at,
                    Blocks::column_of(changes, c, depth) + first * COLUMNS, nullptr, dkeys + d * BLOCK + c, BLOCK,
                    !diagonal);
      }
    }

    const int64_t row = sequence * p.length + query;
    float* const dq = p.dq_sum + statistics * p.dim;
    const int64_t key_depth = pairs_of<Unit>(count);
    for (int64_t r = 0; r < queries; r += ROWS) {
      const int64_t strip_rows = smaller(ROWS, queries - r), seen = diagonal ? smaller(count, r + strip_rows) : count;
      const Factor* const from = change_rows + r * BLOCK;
      if constexpr (!Unit::READS_ROWS) Unit::pack_rows(false, strip_rows, seen, from, BLOCK, strip);
      for (int64_t c = 0; c < p.dim; c += COLUMNS) {
        const int64_t columns = smaller(COLUMNS, p.dim - c);
        const float* const panel = keys + c * key_depth;
        float* const to = dq + r * p.dim + c;
        if constexpr (Unit::READS_ROWS)
          Unit::finish_rows(strip_rows, columns, pairs_of<Unit>(seen), from, BLOCK, panel, nullptr, to, p.dim, key > 0);
        else unit.finish(strip_rows, columns, pairs_of<Unit>(seen), strip, panel, nullptr, to, p.dim, key > 0);
      }
    }
    if (!diagonal) return;
    bfloat16* const to = p.dq + row * p.q_stride + head * p.dim;
    for (int64_t r = 0; r < queries; r++) {
      float* const sum = dq + r * p.dim;
      for_vectors(p.dim, [&](int64_t c, auto part) { store(sum + c, load(sum + c, part) * p.scale, part); });
      if (p.rope) rotate_row(p.dim, p.rotation(row).row(r, p.dim), true, sum, to + r * p.q_stride);
      else p.write(sum, to + r * p.q_stride, false);
    }
  }

  // Queries r and r + 1 of the tile, which see the first `seen` and `seen_next` of the keys: scores and dscores become
  // weights and their gradients, 0 for the other keys.
  void differentiate_rows(int64_t r, int64_t count, int64_t seen, int64_t seen_next, const float* lse, const float* delta,
                          int64_t depth) {
    const auto of_row = [&](int64_t row, int64_t c, int64_t keys_seen, float row_lse, float row_delta, Vector& change) {
      const IntVector visible = LANE < static_cast<int32_t>(keys_seen - c);
      const Vector weight = coarse_exp(load(scores + row * BLOCK + c), splat(row_lse));
      change = visible ? weight * (load(dscores + row * BLOCK + c) - row_delta) : Vector{};
      return visible ? weight : Vector{};
    };
    for (int64_t c = 0; c < round_up(count, COLUMNS); c += LANES) {
      Vector weight{}, next_weight{}, change{}, next_change{};
      if (c < seen) weight = of_row(r, c, seen, lse[0], delta[0], change);
      if (c < seen_next) next_weight = of_row(r + 1, c, seen_next, lse[1], delta[1], next_change);
      store_pairs<Factor>(Blocks::column_of(weights, c, depth) + r / 2 * COLUMNS, weight, next_weight);
      store_pairs<Factor>(Blocks::column_of(changes, c, depth) + r / 2 * COLUMNS, change, next_change);
      store(change_rows + r * BLOCK + c, change);
      store(change_rows + (r + 1) * BLOCK + c, next_change);
    }
  }

  // The block of queries from `query` on. delta is computed on the first walk.
  Queries load_queries(int64_t sequence, int64_t head, int64_t query, bool first_walk) {
    const int64_t block = query / BLOCK;
    slots.of_head(sequence, head);
    float* const slot = slots.at(block);
    float* const transposed = slot + 2 * strip_words;
    const Queries result = {slot, slot + strip_words, transposed, transposed + transposed_words};
    if (slots.holds(block)) return result;
    const int64_t count = smaller(BLOCK, p.length - query);
    const int64_t row = sequence * p.length + query;
    const int64_t offset = (row * p.heads + head) * p.dim, stride = p.heads * p.dim;
    load_halves(count, p.dim, width, p.q + row * p.q_stride + head * p.dim, p.q_stride, p.rotation_on_load(row), p.scale,
                rows, halves);
    Blocks::pack_strips(false, count, p.dim, halves, p.dim, result.queries);
    Blocks::pack_strips(true, p.dim, count, halves, p.dim, result.transposed);
    prefetch_next_head(count, p.dim, p.doutput + offset, stride);
    Blocks::pack_strips(false, count, p.dim, p.doutput + offset, stride, result.doutput);
    Blocks::pack_strips(true, p.dim, count, p.doutput + offset, stride, result.transposed_doutput);
    if (first_walk) p.write_delta(sequence, head, query, count);
    return result;
  }

  const AttentionBackward<bfloat16>& p;
  const int64_t width, pairs;
  Unit unit;
  float *scores, *dscores, *dkeys, *dvalues;                // the last two transposed
  float *rows, *other_rows, *strip;
  float *weights, *changes;                                 // P and dS, in panels
  float *transposed_keys, *transposed_values, *keys;        // in panels
  Factor* change_rows;                                      // dS
  bfloat16* halves;
  int64_t strip_words, transposed_words;
  Slots slots;  // blocks of queries
};

}
}  // namespace mantou

#endif
