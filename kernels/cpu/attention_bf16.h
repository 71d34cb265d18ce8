// Attention in bfloat16 where products of pairs are in hardware (matmul_bf16.h): the same walks as in attention.cpp and
// attention_backward.cpp, with operands packed for the unit. Q, K (rotated), the weights P and their gradients dS are
// rounded to bfloat16 for the products; scores, sums, softmax and its derivative are float32.
//
// Blocks of a head are packed once and used as often as they are met. Strips hold op(A) of a product by ROWS rows,
// panels hold op(B) by COLUMNS columns; each has all of its depth in one piece (see matmul_bf16.h).
//
// Products are turned so that what is computed on the way is op(B) of the next one: softmax and its derivative, which have
// two summed rows at hand, write P and dS as panels, and the sums O, dK and dV come out transposed. dQ alone sums over
// keys: it reads dS by rows, as they are where the unit can.
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

// Packing of one block of at most BLOCK queries and BLOCK keys.
template <typename Unit>
class PairBlocks {
 public:
  static constexpr int64_t ROWS = Unit::ROWS, COLUMNS = Unit::COLUMNS;
  static_assert(BLOCK % COLUMNS == 0 && BLOCK / 2 % Unit::STEP == 0, "whole panels");

  // Words of strips and panels with `k` elements a row and a column.
  static int64_t strip_words(int64_t rows, int64_t k) { return round_up(rows, ROWS) * pairs_of<Unit>(k) + LANES; }
  static int64_t panel_words(int64_t columns, int64_t k) { return round_up(columns, COLUMNS) * pairs_of<Unit>(k); }

  static void pack_strips(bool transposed, int64_t rows, int64_t k, const bfloat16* a, int64_t lda, float* strips) {
    for (int64_t r = 0; r < rows; r += ROWS)
      Unit::pack_rows(transposed, smaller(ROWS, rows - r), k, a + (transposed ? r : r * lda), lda,
                      strips + r * pairs_of<Unit>(k));
  }

  static void pack_panels(bool transposed, int64_t columns, int64_t k, const bfloat16* b, int64_t ldb, float* panels) {
    for (int64_t c = 0; c < columns; c += COLUMNS)
      pack_panel<Unit>(transposed, smaller(COLUMNS, columns - c), k, b + (transposed ? c * ldb : c), ldb,
                       panels + c * pairs_of<Unit>(k));
  }

  // Where a column's words are in panels of `depth` pairs, and how many columns, of the first `count`, a tile can take
  // that begins there: a multiple of LEAST_COLUMNS.
  static float* column_of(float* panels, int64_t column, int64_t depth) {
    return panels + column / COLUMNS * COLUMNS * depth + column % COLUMNS;
  }
  static int64_t columns_from(int64_t column, int64_t count) {
    return smaller(COLUMNS - column % COLUMNS, round_up(count - column, Unit::LEAST_COLUMNS));
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
    scores = parts.take(BLOCK * BLOCK);
    sums = parts.take(width * BLOCK);
    rows = parts.take(BLOCK * width);
    halves = parts.take_halves(BLOCK * width);
    weights = parts.take(Blocks::panel_words(BLOCK, BLOCK));
    queries = parts.take(Blocks::panel_words(BLOCK, p.dim));
    key_words = Blocks::strip_words(BLOCK, p.dim);
    const int64_t slot_words = round_up(key_words + Blocks::strip_words(p.dim, BLOCK), LANES);
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
    write_output(p, softmax, sequence, head, first, count, sums);
  }

 private:
  using Blocks = PairBlocks<Unit>;
  using Factor = typename Unit::Factor;
  static constexpr int64_t ROWS = Unit::ROWS, COLUMNS = Unit::COLUMNS, LEAST_COLUMNS = Unit::LEAST_COLUMNS;

  static int64_t columns_from(int64_t column, int64_t count) { return Blocks::columns_from(column, count); }
  static float* column_of(float* panels, int64_t column, int64_t depth) { return Blocks::column_of(panels, column, depth); }

  // Keys of the block that begins at `key`.
  int64_t keys_of(int64_t sequence, int64_t key) const { return smaller(BLOCK, p.start(sequence) + p.queries - key); }

  // Block `block` of keys, in strips, and behind it the values' transpose in strips.
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
    Blocks::pack_strips(false, count, p.dim, keys, stride, slot);
    prefetch_next_head(count, p.dim, p.v + offset, p.kv_stride);
    Blocks::pack_strips(true, p.dim, count, p.v + offset, p.kv_stride, slot + key_words);
    return slot;
  }

  // Adds the weights of `keys` keys, of the `packed` ones of a slot, to the running maxima, sums of weights and weighted
  // sums of values.
  void add_block(int64_t count, int64_t keys, int64_t ahead, const float* slot, int64_t packed, bool accumulate) {
    // From the first queries on that see a strip of keys.
    for (int64_t r = 0; r < keys; r += ROWS)
      for (int64_t c = larger(0, r - ahead) / LEAST_COLUMNS * LEAST_COLUMNS, columns; c < count; c += columns) {
        columns = columns_from(c, count);
        unit.finish(smaller(ROWS, keys - r), columns, pairs, slot + r * pairs, column_of(queries, c, pairs), nullptr,
                    scores + r * BLOCK + c, BLOCK, false);
      }

    const int64_t depth = pairs_of<Unit>(packed);
    const auto put = [=](int64_t key, int64_t query, Vector first, Vector second) {
      store_pairs<Factor>(column_of(weights, query, depth) + key / 2 * COLUMNS, first, second);
    };
    const auto exp_of = [](Vector score, Vector most) { return coarse_exp(score, most); };
    if (softmax.weigh(count, keys, ahead, scores, 2 * depth, exp_of, put) && accumulate)
      softmax.correct(count, p.dim, sums);

    for (int64_t c = 0, columns; c < count; c += columns) {
      columns = ahead + 1 < keys ? smaller(columns_from(c, count), LEAST_COLUMNS) : columns_from(c, count);
      const int64_t seen = pairs_of<Unit>(smaller(keys, ahead + c + columns));
      if (ahead + c + columns <= 0) continue;
      for (int64_t r = 0; r < p.dim; r += ROWS)
        unit.finish(smaller(ROWS, p.dim - r), columns, seen, slot + key_words + r * depth, column_of(weights, c, depth),
                    nullptr, sums + r * BLOCK + c, BLOCK, accumulate);
    }
  }

  const Attention<bfloat16>& p;
  const int64_t width, pairs;
  Unit unit;
  float *scores, *sums, *rows, *weights, *queries;
  bfloat16* halves;
  int64_t key_words;
  Slots slots;  // keys and values
  RunningSoftmax softmax;
};

}
}  // namespace mantou

#endif
