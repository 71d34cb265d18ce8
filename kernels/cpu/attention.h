// What the files of attention share: tiles of BLOCK queries or keys of one head, loaded into a thread's scratch.
//
// A tile lies either by rows, [BLOCK, width] with width = head_dim rounded up to whole vectors, or transposed,
// [width, BLOCK]. The register tile of tile.h wants both of its operands with the summed index first, so scores are
// taken from transposed tiles (summed over head_dim) and weighted sums from tiles by rows (summed over rows).
#pragma once

#include <cmath>

#include "rope.h"

MANTOU_NAMESPACE

// Queries and keys per tile: a tile of scores (16 KiB) and the tiles that it comes from stay in the first-level cache.
constexpr int64_t BLOCK = 64;

// Where rows stand: row r at positions[r], or at first + r where positions is null. No rotation where table is null.
struct Rotation {
  const float* table;
  const int32_t* positions;
  int64_t first;

  const float* row(int64_t r, int64_t dim) const { return table + (positions ? positions[r] : first + r) * dim; }

  // The same for rows that begin `rows` later.
  Rotation from(int64_t rows) const { return {table, positions ? positions + rows : nullptr, first + rows}; }
};

// Fetches what the next head has where `rows` rows of this one are about to be read, into the second-level cache: each row
// lies in another page, so that no hardware sees them coming. (Past the last head that is harmless.)
template <typename T>
inline void prefetch_next_head(int64_t rows, int64_t dim, const T* row, int64_t stride) {
  constexpr int64_t LINE = 64 / sizeof(T);
  for (int64_t r = 0; r < rows; r++, row += stride)
    for (int64_t c = 0; c < dim; c += LINE) __builtin_prefetch(row + dim + c, 0, 2);
}

// Loads `rows` rows of dim elements, rotated and times `factor`, into tile [rows rounded up to LANES, width], zeros in
// the padding.
template <typename T>
inline void load_tile(int64_t rows, int64_t dim, int64_t width, const T* from, int64_t stride, Rotation rotation,
                      float factor, float* tile) {
  prefetch_next_head(rows, dim, from, stride);
  for (int64_t r = 0; r < rows; r++, from += stride, tile += width) {
    if (dim < width) store(tile + width - LANES, Vector{});
    if (rotation.table) {
      rotate_row(dim, rotation.row(r, dim), false, from, tile);
      if (factor != 1.0f)
        for (int64_t c = 0; c < width; c += LANES) store(tile + c, load(tile + c) * factor);
    } else {
      for_vectors(dim, [&](int64_t c, auto part) { store(tile + c, load(from + c, part) * factor, part); });
    }
  }
  for (int64_t i = 0; i < (round_up(rows, LANES) - rows) * width; i += LANES) store(tile + i, Vector{});
}

// to [columns, rows] = the transpose of from [rows, columns], each with its row stride, where rows and columns are
// multiples of LANES.
inline void transpose_tile(int64_t rows, int64_t columns, const float* from, int64_t stride, float* to,
                           int64_t to_stride) {
  for (int64_t c = 0; c < columns; c += LANES)
    for (int64_t r = 0; r < rows; r += LANES) {
      Vector block[LANES];
      MANTOU_UNROLL for (int i = 0; i < LANES; i++) block[i] = load(from + (r + i) * stride + c);
      transpose(block);
      MANTOU_UNROLL for (int i = 0; i < LANES; i++) store(to + (c + i) * to_stride + r, block[i]);
    }
}

// c [rows, columns] (+)= A^T B for operands of any size, tile by tile.
inline void multiply_tiles(int64_t rows, int64_t columns, int64_t k, const float* a, int64_t a_stride, const float* b,
                           int64_t b_stride, float* c, int64_t ldc, bool accumulate) {
  for (int64_t r = 0; r < rows; r += MR)
    for (int64_t j = 0; j < columns; j += NR)
      tile(smaller(MR, rows - r), smaller(NR, columns - j), k, a + r, a_stride, b + j, b_stride, c + r * ldc + j, ldc,
           accumulate);
}

// Packed blocks of a head that a thread keeps in the rest of its scratch: the first ones each in a slot of its own, as
// far as that reaches, and the others, one after the other, in the last.
class Slots {
 public:
  Slots() = default;
  Slots(float* rest, const float* end, int64_t words) : first(rest), words(words), count((end - rest) / words) {}

  // Forgets the blocks of another head.
  void of_head(int64_t sequence, int64_t head) {
    if (sequence == present_sequence && head == present_head) return;
    present_sequence = sequence, present_head = head, loaded = 0;
  }

  float* at(int64_t block) const { return first + smaller(block, count - 1) * words; }

  // Whether block `block` lies in its slot. If not, the caller puts it there: blocks come in their order.
  bool holds(int64_t block) {
    if (block < loaded) return true;
    if (block < count - 1) loaded = block + 1;
    return false;
  }

 private:
  float* first = nullptr;
  int64_t words = 0, count = 0, loaded = 0;  // blocks [0, loaded) lie in slots of their own
  int64_t present_sequence = -1, present_head = -1;
};

// ---- forward --------------------------------------------------------------------------------------------------------

// `queries` rows per sequence, of which row t sees the keys 0 .. start + t; the keys and values of a sequence lie in its
// slot. T is the type of q, k, v and output.
template <typename T>
struct Attention {
  int64_t batch, queries, heads, kv_heads, dim;
  const int32_t *starts, *slots;  // [batch], or null: all start at 0, sequence b in slot b
  float scale;
  const T* q;
  int64_t q_stride;
  const T *k, *v;
  int64_t kv_stride, kv_rows;  // kv_rows: rows from one slot to the next
  const float *q_rope, *k_rope;
  const int32_t* positions;  // [batch, queries] or null
  T* output;
  float* lse;  // may be null

  int64_t start(int64_t sequence) const { return starts ? starts[sequence] : 0; }
  int64_t slot(int64_t sequence) const { return slots ? slots[sequence] : sequence; }

  // Of all the sequences'.
  int64_t largest_start() const {
    int64_t result = 0;
    for (int64_t i = 0; i < batch; i++) result = larger(result, start(i));
    return result;
  }
};

template <int... I>
constexpr IntVector lane_numbers(std::integer_sequence<int, I...>) {
  return IntVector{I...};
}

constexpr IntVector LANE = lane_numbers(std::make_integer_sequence<int, LANES>());

// Softmax over keys that come in blocks: the running maximum and sum of up to BLOCK queries. Scores are [keys, BLOCK] and
// weighted sums [head_dim, BLOCK], so that a vector holds what belongs to LANES queries.
class RunningSoftmax {
 public:
  float maxima[BLOCK], totals[BLOCK];

  void reset() {
    for (int64_t i = 0; i < BLOCK; i++) maxima[i] = -INFINITY, totals[i] = 0;
  }

  // Turns scores of `count` queries into weights exp(score - maximum), 0 where the key lies past the query: query i sees
  // keys 0 .. ahead + i. put(key, query, first, second) receives those of two keys and LANES queries, up to `rows` keys,
  // an even number; the scores of both have been read by then. exp_of(x, y) is exp(x - y). Whether earlier sums are to be
  // corrected.
  template <typename Exp, typename Put>
  bool weigh(int64_t count, int64_t keys, int64_t ahead, const float* scores, int64_t rows, const Exp& exp_of,
             const Put& put) {
    bool corrected = false;
    for (int64_t c = 0; c < count; c += LANES)
      corrected |= weigh_column(c, keys, ahead + c, scores + c, rows, exp_of,
                                [&](int64_t key, Vector first, Vector second) { put(key, c, first, second); });
    return corrected;
  }

  // Earlier sums, as of the present maxima.
  void correct(int64_t count, int64_t dim, float* sums) const {
    for (int64_t c = 0; c < count; c += LANES) {
      const Vector correction = load(corrections + c);
      for (int64_t d = 0; d < dim; d++) store(sums + d * BLOCK + c, load(sums + d * BLOCK + c) * correction);
    }
  }

 private:
  // The LANES queries from c on.
  template <typename Exp, typename Put>
  bool weigh_column(int64_t c, int64_t keys, int64_t ahead, const float* column, int64_t rows, const Exp& exp_of,
                    const Put& put) {
    // Keys that all of the queries see, and keys that any of them sees.
    const int64_t all = larger(0, smaller(keys, ahead + 1));
    const int64_t any = larger(0, smaller(keys, ahead + LANES));
    const Vector before = load(maxima + c);
    Vector most = before;
    const auto seen = [&](int64_t key) { return LANE >= static_cast<int32_t>(key - ahead); };
    for (int64_t key = 0; key < all; key++) most = maximum(load(column + key * BLOCK), most);
    for (int64_t key = all; key < any; key++)
      most = maximum(seen(key) ? load(column + key * BLOCK) : splat(-INFINITY), most);

    Vector total{};
    int64_t key = 0;
    for (; key + 2 <= all; key += 2) {
      const Vector first = exp_of(load(column + key * BLOCK), most);
      const Vector second = exp_of(load(column + (key + 1) * BLOCK), most);
      put(key, first, second);
      total += first + second;
    }
    for (; key < any; key += 2) {
      const Vector first = seen(key) ? exp_of(load(column + key * BLOCK), most) : Vector{};
      const Vector second = seen(key + 1) ? exp_of(load(column + (key + 1) * BLOCK), most) : Vector{};
      put(key, first, second);
      total += first + second;
    }
    for (; key < rows; key += 2) put(key, Vector{}, Vector{});

    const Vector correction = exp(before - most);
    store(corrections + c, correction);
    store(maxima + c, most);
    store(totals + c, load(totals + c) * correction + total);
    for (int i = 0; i < LANES; i++)
      if (corrections[c + i] != 1) return true;
    return false;
  }

  float corrections[BLOCK];
};

// Writes the rows of output and lse that belong to queries [first, first + count) of a head from sums [head_dim rounded
// up to LANES, BLOCK].
template <typename T>
inline void write_output(const Attention<T>& p, const RunningSoftmax& softmax, int64_t sequence, int64_t head,
                         int64_t first, int64_t count, const float* sums) {
  const int64_t stride = p.heads * p.dim;
  T* to = p.output + ((sequence * p.queries + first) * p.heads + head) * p.dim;
  for (int64_t i = 0; i < count; i += LANES, to += LANES * stride, sums += LANES) {
    const int64_t rows = smaller(LANES, count - i);
    const Vector factor = 1.0f / load(softmax.totals + i);
    for_vectors(p.dim, [&](int64_t c, auto part) {
      Vector block[LANES];
      MANTOU_UNROLL for (int d = 0; d < LANES; d++) block[d] = load(sums + (c + d) * BLOCK) * factor;
      transpose(block);
      for (int64_t r = 0; r < rows; r++) store(to + r * stride + c, block[r], part);
    });
  }
  if (!p.lse) return;
  for (int64_t i = 0; i < count; i++)
    p.lse[(sequence * p.heads + head) * p.queries + first + i] = softmax.maxima[i] + std::log(softmax.totals[i]);
}

// ---- backward -------------------------------------------------------------------------------------------------------

// T is the type of all but the statistics.
template <typename T>
struct AttentionBackward {
  int64_t batch, length, heads, kv_heads, dim;
  float scale;
  const T* doutput;
  const T* q;
  int64_t q_stride;
  const T *k, *v;
  int64_t kv_stride;
  const float* rope;
  const int32_t* positions;
  bool rotated;  // q and k are rotated already
  const T* output;
  const float* lse;
  T *dq, *dk, *dv;
  float* delta;   // [batch, heads, length]
  float* dq_sum;  // where dq grows: [batch, heads, length, dim]

  Rotation rotation(int64_t row) const { return {rope, positions ? positions + row : nullptr, row % length}; }
  Rotation rotation_on_load(int64_t row) const { return rotated ? Rotation{} : rotation(row); }

  // All of a key/value head: add_keys(head, key, accumulate) for the blocks of keys of every query head that reads it.
  template <typename AddKeys>
  void walk(int64_t kv_head, const AddKeys& add_keys) const {
    const int64_t group = heads / kv_heads;
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
      for (int64_t key = 0; key < length; key += BLOCK) add_keys(head, key, head > kv_head * group);
  }

  // Writes the gradients of `count` keys and values from row `row` on, rotating the keys' back in place.
  void write_keys(int64_t row, int64_t kv_head, int64_t count, int64_t width, float* dkeys, const float* dvalues,
                  bool accumulate) const {
    const int64_t offset = row * kv_stride + kv_head * dim;
    for (int64_t i = 0; i < count; i++) {
      if (rope) rotate_row(dim, rotation(row).row(i, dim), true, dkeys + i * width, dkeys + i * width);
      write(dkeys + i * width, dk + offset + i * kv_stride, accumulate);
      write(dvalues + i * width, dv + offset + i * kv_stride, accumulate);
    }
  }

  // delta of `count` queries of a head from `query` on.
  void write_delta(int64_t sequence, int64_t head, int64_t query, int64_t count) const {
    float* const to = delta + (sequence * heads + head) * length + query;
    const int64_t stride = heads * dim, offset = (sequence * length + query) * stride + head * dim;
    prefetch_next_head(count, dim, output + offset, stride);
    for (int64_t r = 0; r < count; r++) {
      Vector sum{};
      for_vectors(dim, [&](int64_t c, auto part) {
        sum += load(doutput + offset + r * stride + c, part) * load(output + offset + r * stride + c, part);
      });
      to[r] = horizontal_sum(sum);
    }
  }

  void write(const float* from, T* to, bool accumulate) const {
    for_vectors(dim, [&](int64_t c, auto part) {
      const Vector value = load(from + c, part);
      store(to + c, accumulate ? load(to + c, part) + value : value, part);
    });
  }
};

}
}  // namespace mantou
