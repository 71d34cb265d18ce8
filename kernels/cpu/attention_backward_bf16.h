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
    scores = parts.take(Blocks::MOST_ROWS * BLOCK);
    dscores = parts.take(Blocks::MOST_ROWS * BLOCK);
    dkeys = parts.take(Blocks::MOST_ROWS * width);
    dvalues = parts.take(Blocks::MOST_ROWS * width);
    tile = parts.take(ROWS * COLUMNS);
    rows = parts.take(BLOCK * width);
    weights = parts.take_halves<Factor>(BLOCK * BLOCK);
    dweights = parts.take_halves<Factor>(BLOCK * BLOCK);
    halves = parts.take_halves(BLOCK * width);
    strip = parts.take(Blocks::strip_words(BLOCK));
    transposed_keys = parts.take(Blocks::panel_words(BLOCK, p.dim));
    transposed_values = parts.take(Blocks::panel_words(BLOCK, p.dim));
    keys = parts.take(Blocks::panel_words(p.dim, BLOCK));
    strip_words = round_up(Blocks::strip_words(p.dim), LANES);
    panel_words = round_up(Blocks::panel_words(p.dim, BLOCK), LANES);
    slots = {parts.rest, scratch + SCRATCH_BYTES / 4, 2 * (strip_words + panel_words)};
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
  static constexpr int64_t ROWS = Unit::ROWS, COLUMNS = Unit::COLUMNS;

  // Of a block of queries: Q (rotated and scaled) and dO, each in strips and in panels.
  struct Queries {
    float *strips, *doutput_strips, *panels, *doutput_panels;
  };

  // The block of keys from `key` on, against all queries of `head`.
  void add_keys(int64_t sequence, int64_t head, int64_t kv_head, int64_t key, bool accumulate) {
    const int64_t count = smaller(BLOCK, p.length - key);
    const int64_t row = sequence * p.length + key;
    const int64_t offset = row * p.kv_stride + kv_head * p.dim;
    Blocks::pack_panels(true, count, p.dim, p.v + offset, p.kv_stride, transposed_values);
    load_halves(count, p.dim, width, p.k + offset, p.kv_stride, p.rotation_on_load(row), 1, rows, halves);
    Blocks::pack_panels(true, count, p.dim, halves, p.dim, transposed_keys);
    Blocks::pack_panels(false, p.dim, count, halves, p.dim, keys);

    for (int64_t query = key; query < p.length; query += BLOCK) add_tile(sequence, head, key, count, query);

    p.write_keys(row, kv_head, count, width, dkeys, dvalues, accumulate);
  }

  // The tile of `count` keys from `key` on and the block of queries from `query` on.
  void add_tile(int64_t sequence, int64_t head, int64_t key, int64_t count, int64_t query) {
    const bool diagonal = query == key;
    const int64_t queries = smaller(BLOCK, p.length - query);
    const int64_t columns = round_up(count, LANES);
    const Queries block = load_queries(sequence, head, query, key == 0);

    for (int64_t r = 0; r < queries; r += ROWS)
      for (int64_t c = 0; c < (diagonal ? smaller(count, r + ROWS) : count); c += COLUMNS) {
        unit.multiply(pairs, block.strips + r * pairs, transposed_keys + c * pairs, scores + r * BLOCK + c, BLOCK, false);
        unit.multiply(pairs, block.doutput_strips + r * pairs, transposed_values + c * pairs, dscores + r * BLOCK + c,
                      BLOCK, false);
      }

    const int64_t statistics = (sequence * p.heads + head) * p.length + query;
    for (int64_t r = 0; r < queries; r++)
      differentiate(diagonal ? r + 1 : count, columns, p.lse[statistics + r], p.delta[statistics + r],
                    scores + r * BLOCK, dscores + r * BLOCK, weights + r * BLOCK, dweights + r * BLOCK);

    const int64_t depth = pairs_of<Unit>(queries);
    for (int64_t r = 0; r < count; r += ROWS) {
      // The queries that see these keys, from a whole step of pairs on.
      const int64_t first = diagonal ? r / (2 * STEP) * (2 * STEP) : 0;
      add_product(smaller(ROWS, count - r), queries - first, weights + first * BLOCK + r,
                  block.doutput_panels + first / 2 * COLUMNS, depth, dvalues + r * width, !diagonal);
      add_product(smaller(ROWS, count - r), queries - first, dweights + first * BLOCK + r,
                  block.panels + first / 2 * COLUMNS, depth, dkeys + r * width, !diagonal);
    }

    const int64_t row = sequence * p.length + query;
    float* const dq = p.dq_sum + row * p.sum_stride + head * p.dim;
    const int64_t key_depth = pairs_of<Unit>(count);
    for (int64_t r = 0; r < queries; r += ROWS) {
      const int64_t strip_rows = smaller(ROWS, queries - r);
      const int64_t seen = diagonal ? smaller(count, r + strip_rows) : count;
      Unit::pack_rows(false, strip_rows, seen, dweights + r * BLOCK, BLOCK, strip);
      for (int64_t c = 0; c < p.dim; c += COLUMNS) {
        unit.multiply(pairs_of<Unit>(seen), strip, keys + c * key_depth, tile, COLUMNS, false);
        write_tile(strip_rows, smaller(COLUMNS, p.dim - c), tile, COLUMNS, key > 0, dq + r * p.sum_stride + c,
                   p.sum_stride);
      }
    }
    if (!diagonal) return;
    bfloat16* const to = p.dq + row * p.q_stride + head * p.dim;
    for (int64_t r = 0; r < queries; r++) {
      float* const sum = dq + r * p.sum_stride;
      for_vectors(p.dim, [&](int64_t c, auto part) { store(sum + c, load(sum + c, part) * p.scale, part); });
      if (p.rope) rotate_row(p.dim, p.rotation(row).row(r, p.dim), true, sum, to + r * p.q_stride);
      else p.write(sum, to + r * p.q_stride, false);
    }
  }

  // to [count keys, width] (+)= the transpose of from [queries, keys] times panels of [queries, dim].
  void add_product(int64_t count, int64_t queries, const bfloat16* from, const float* panels, int64_t depth, float* to,
                   bool accumulate) {
    Unit::pack_rows(true, count, queries, from, BLOCK, strip);
    for (int64_t c = 0; c < p.dim; c += COLUMNS)
      unit.multiply(pairs_of<Unit>(queries), strip, panels + c * depth, to + c, width, accumulate);
  }

  // The block of queries from `query` on. delta is computed on the first walk.
  Queries load_queries(int64_t sequence, int64_t head, int64_t query, bool first_walk) {
    const int64_t block = query / BLOCK;
    slots.of_head(sequence, head);
    float* const slot = slots.at(block);
    float* const panels = slot + 2 * strip_words;
    const Queries result = {slot, slot + strip_words, panels, panels + panel_words};
    if (slots.holds(block)) return result;
    const int64_t count = smaller(BLOCK, p.length - query);
    const int64_t row = sequence * p.length + query;
    const int64_t offset = (row * p.heads + head) * p.dim, stride = p.heads * p.dim;
    load_halves(count, p.dim, width, p.q + row * p.q_stride + head * p.dim, p.q_stride, p.rotation_on_load(row), p.scale,
                rows, halves);
    Blocks::pack_strips(count, p.dim, halves, p.dim, result.strips);
    Blocks::pack_panels(false, p.dim, count, halves, p.dim, result.panels);
    Blocks::pack_strips(count, p.dim, p.doutput + offset, stride, result.doutput_strips);
    Blocks::pack_panels(false, p.dim, count, p.doutput + offset, stride, result.doutput_panels);
    if (first_walk) p.write_delta(sequence, head, query, count);
    return result;
  }

  static constexpr int64_t STEP = Unit::STEP;
  const AttentionBackward<bfloat16>& p;
  const int64_t width, pairs;
  Unit unit;
  float *scores, *dscores, *dkeys, *dvalues, *tile, *rows, *strip, *transposed_keys, *transposed_values, *keys;
  Factor *weights, *dweights;
  bfloat16* halves;
  int64_t strip_words, panel_words;
  Slots slots;  // blocks of queries
};

}
}  // namespace mantou

#endif
