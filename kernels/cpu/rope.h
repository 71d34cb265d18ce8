// Rotary position embedding (Su et al. 2021, "RoFormer", section 3.2) of one head of one row: the pair (2i, 2i + 1) is
// turned by the angle whose cos and sin are table[2i] and table[2i + 1].
#pragma once

#include "tile.h"

MANTOU_NAMESPACE

template <int... I>
inline Vector rotate_pairs(Vector x, Vector table, Vector sign, std::integer_sequence<int, I...>) {
  const Vector cos = MANTOU_SHUFFLE(table, table, (I & ~1)...);
  const Vector sin = MANTOU_SHUFFLE(table, table, (I | 1)...);
  const Vector swapped = MANTOU_SHUFFLE(x, x, (I ^ 1)...);
  return x * cos + swapped * (sin * sign);
}

template <int... I>
inline Vector alternating(float even, std::integer_sequence<int, I...>) {
  return Vector{(I & 1 ? -even : even)...};
}

// output = input rotated, or rotated back; output may be input. table [dim / 2, 2].
template <typename From, typename To>
inline void rotate_row(int64_t dim, const float* table, bool inverse, const From* input, To* output) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>();
  const Vector sign = alternating(inverse ? 1.0f : -1.0f, lanes);
  for_vectors(dim, [&](int64_t i, auto part) {
    store(output + i, rotate_pairs(load(input + i, part), load(table + i, part), sign, lanes), part);
  });
}

}
}  // namespace mantou
