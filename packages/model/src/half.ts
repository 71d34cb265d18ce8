/** 16-bit floats in files, to and from float32; rounding is to nearest, ties to even. */

/** bfloat16: the upper half of a float32. A NaN stays one. */
export function toBfloat16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const result = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i]!;
    const isNaN = (word & 0x7fff_ffff) > 0x7f80_0000;
    result[i] = isNaN ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return result;
}

export function fromBfloat16(words: Uint16Array): Float32Array {
  const result = new Float32Array(words.length);
  const bits = new Uint32Array(result.buffer);
  for (let i = 0; i < words.length; i++) bits[i] = words[i]! << 16;
  return result;
}

/** IEEE 754 half precision; beyond ±65504 infinite. */
export function toFloat16(values: Float32Array): Uint16Array {
  const result = new Float16Array(values.length);
  result.set(values);
  return new Uint16Array(result.buffer);
}

export function fromFloat16(words: Uint16Array): Float32Array {
  return Float32Array.from(new Float16Array(words.buffer, words.byteOffset, words.length));
}
