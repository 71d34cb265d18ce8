// Attention in bfloat16 where products of pairs are in hardware (matmul_bf16.h): the same walks as in attention.cpp and
// attention_backward.cpp, with operands packed for the unit. Q, K (rotated), the weights P and their gradients dS are
// rounded to bfloat16 for the products; scores, sums, softmax and its derivative are float32.
//
// Blocks of a head are packed once and used as often as they are met. Strips hold op(A) of a product by ROWS rows,
// panels hold op(B) by COLUMNS columns; each has all of its depth in one piece (see matmul_bf16.h).
#pragma once

#if defined(__AVX512F__)

#include "attention.h"
#include "matmul_bf16.h"

MANTOU_NAMESPACE

// Hands out a thread's scratch piece by piece, each at a whole vector.
struct ScratchParts {
  float* rest;

  float* take(int64_t words) {
    float* const taken = rest;
    rest += round_up(words, LANES);
    return taken;
  }
  template <typename Half = bfloat16>
  Half* take_halves(int64_t elements) {
    return reinterpret_cast<Half*>(take(elements / 2));
  }
};

// Packing and products of one block of at most BLOCK queries and BLOCK keys.
template <typename Unit>
class PairBlocks {
 public:
  static constexpr int64_t ROWS = Unit::ROWS, COLUMNS = Unit::COLUMNS;
  static constexpr int64_t MOST_ROWS = round_up(BLOCK, ROWS);
  static_assert(BLOCK % COLUMNS == 0 && BLOCK / 2 % Unit::STEP == 0, "whole panels");

  // Words of strips of a block's rows with `k` elements each, and of panels of `columns` columns as deep as a block.
  static int64_t strip_words(int64_t k) { return MOST_ROWS * pairs_of<Unit>(k) + LANES; }
  static int64_t panel_words(int64_t columns, int64_t k) { return round_up(columns, COLUMNS) * pairs_of<Unit>(k); }

  static void pack_strips(int64_t rows, int64_t k, const bfloat16* a, int64_t lda, float* strips) {
    for (int64_t r = 0; r < rows; r += ROWS)
      Unit::pack_rows(false, smaller(ROWS, rows - r), k, a + r * lda, lda, strips + r * pairs_of<Unit>(k));
  }

  static void pack_panels(bool transposed, int64_t columns, int64_t k, const bfloat16* b, int64_t ldb, float* panels) {
    for (int64_t c = 0; c < columns; c += COLUMNS)
      pack_panel<Unit>(transposed, smaller(COLUMNS, columns - c), k, b + (transposed ? c * ldb : c), ldb,
                       panels + c * pairs_of<Unit>(k));
  }
};

// Rows of dim elements, rotated and times `factor`, as bfloat16 [rows, dim]; `room` has BLOCK rows of `width` floats.
inline void load_halves(int64_t rows, int64_t dim, int64_t width, const bfloat16* from, int64_t stride,
                        Rotation rotation, float factor, float* room, bfloat16* to) {
  load_tile(rows, dim, width, from, stride, rotation, factor, room);
  for (int64_t r = 0; r < rows; r++)
    for_vectors(dim, [&](int64_t c, auto part) { store(to + r * dim + c, load(room + r * width + c, part), part); });
}

// ---- forward --------------------------------------------------------------------------------------------------------

template <typename Unit>
class PairWorker {
 public:
  PairWorker(const Attention<bfloat16>& problem, float* scratch)
      : p(problem), width(round_up(problem.dim, COLUMNS)), pairs(pairs_of<Unit>(problem.dim)) {
    ScratchParts parts = {scratch};
    scores = parts.take(Blocks::MOST_ROWS * BLOCK);
    sums = parts.take(Blocks::MOST_ROWS * width);
    rows = parts.take(BLOCK * width);
    weights = parts.take_halves<Factor>(BLOCK * BLOCK);
    halves = parts.take_halves(BLOCK * width);
    strip = parts.take(Blocks::strip_words(BLOCK));
    queries = parts.take(Blocks::panel_words(BLOCK, p.dim));
    key_words = Blocks::strip_words(p.dim);
    const int64_t slot_words = round_up(key_words + Blocks::panel_words(p.dim, BLOCK), LANES);
    slots = {parts.rest, scratch + SCRATCH_BYTES / 4, slot_words};
  }

  // Queries [block * BLOCK, ...) of head `head` of sequence `sequence`.
  void run(int64_t sequence, int64_t head, int64_t block) {
    const int64_t first = block * BLOCK;
    const int64_t count = smaller(BLOCK, p.queries - first);
    const int64_t row = sequence * p.queries + first;
    const int64_t start = p.start(sequence) + first;
    const Rotation rotation = {p.q_rope, p.positions ? p.positions + row : nullptr, start};
    load_halves(count, p.dim, width, p.q + row * p.q_stride + head * p.dim, p.q_stride, rotation, p.scale, rows, halves);
    Blocks::pack_panels(true, count, p.dim, halves, p.dim, queries);
    softmax.reset();

    const int64_t keys = start + count;
    for (int64_t key = 0; key < keys; key += BLOCK)
      add_block(count, smaller(BLOCK, keys - key), start - key,
                keys_and_values(sequence, head / (p.heads / p.kv_heads), key / BLOCK), keys_of(sequence, key), key > 0);
    write_output(p, softmax, sequence, head, first, count, sums, width);
  }

 private:
  using Blocks = PairBlocks<Unit>;
  using Factor = typename Unit::Factor;
  static constexpr int64_t ROWS = Unit::ROWS, COLUMNS = Unit::COLUMNS;

  // Keys of the block that begins at `key`.
  int64_t keys_of(int64_t sequence, int64_t key) const { return smaller(BLOCK, p.start(sequence) + p.queries - key); }

  // Block `block` of keys, in strips, and behind it the values in panels.
  const float* keys_and_values(int64_t sequence, int64_t kv_head, int64_t block) {
    slots.of_head(sequence, kv_head);
    float* const slot = slots.at(block);
    if (slots.holds(block)) return slot;
    const int64_t first = block * BLOCK;
    const int64_t count = keys_of(sequence, first);
    const int64_t offset = (p.slot(sequence) * p.kv_rows + first) * p.kv_stride + kv_head * p.dim;
    const int32_t* positions = p.positions ? p.positions + sequence * p.queries + first : nullptr;
    const bfloat16* keys = p.k + offset;
    int64_t stride = p.kv_stride;
    if (p.k_rope) {
      load_halves(count, p.dim, width, keys, stride, {p.k_rope, positions, first}, 1, rows, halves);
      keys = halves;
      stride = p.dim;
    }
    Blocks::pack_strips(count, p.dim, keys, stride, slot);
    Blocks::pack_panels(false, p.dim, count, p.v + offset, p.kv_stride, slot + key_words);
    return slot;
  }

  // Adds the weights of `keys` keys, of the `packed` ones of a slot, to the running maxima, sums of weights and weighted
  // sums of values.
  void add_block(int64_t count, int64_t keys, int64_t ahead, const float* slot, int64_t packed, bool accumulate) {
    for (int64_t r = 0; r < keys; r += ROWS)
      for (int64_t c = 0; c < count; c += COLUMNS)
        if (r <= ahead + c + COLUMNS - 1)
          unit.multiply(pairs, slot + r * pairs, queries + c * pairs, scores + r * BLOCK + c, BLOCK, false);
    if (softmax.weigh(count, keys, ahead, scores, weights) && accumulate) softmax.correct(count, width, sums);

    const int64_t depth = pairs_of<Unit>(packed);
    for (int64_t i = 0; i < count; i += ROWS) {
      const int64_t seen = smaller(keys, ahead + i + smaller(ROWS, count - i));
      if (seen <= 0) continue;
      Unit::pack_rows(true, smaller(ROWS, count - i), seen, weights + i, BLOCK, strip);
      for (int64_t c = 0; c < p.dim; c += COLUMNS)
        unit.multiply(pairs_of<Unit>(seen), strip, slot + key_words + c * depth, sums + i * width + c, width, accumulate);
    }
  }

  const Attention<bfloat16>& p;
  const int64_t width, pairs;
  Unit unit;
  float *scores, *sums, *rows, *strip, *queries;
  Factor* weights;
  bfloat16* halves;
  int64_t key_words;
  Slots slots;  // keys and values
  RunningSoftmax softmax;
};

}
}  // namespace mantou

#endif
