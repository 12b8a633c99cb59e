/** How many rows a model's projections have: with the sizes that are given, by what its inputs look like. */
import type { Sizes } from '../generated_inputs.js';

export interface Shaped {
  /** float32, int64, ... */
  type: string;
  /** Sizes and symbols; absent where the rank is unknown. */
  shape: readonly (number | string)[] | undefined;
}

/** A shape with symbols replaced; undefined where one of them has no size. */
export function sized(shape: Shaped['shape'], sizes: Sizes): number[] | undefined {
  const dims = shape?.map((dim) => (typeof dim === 'number' && dim >= 0 ? dim : sizes[dim]));
  return dims?.every((dim) => dim !== undefined) ? dims : undefined;
}

const product = (dims: readonly number[]): number => dims.reduce((all, dim) => all * dim, 1);

/**
 * Rows by the first input that tells: all elements of integers [batch, sequence], which are token ids; all dimensions but
 * the last of floats of rank 2 or 3. `samples` is that input's first dimension.
 */
export function rowsOf(
  inputs: readonly Shaped[],
  sizes: Sizes,
): { rows: number; samples: number } | undefined {
  for (const { type, shape } of inputs) {
    const dims = sized(shape, sizes);
    if (!dims) continue;
    const tokens = /^u?int/.test(type) && dims.length === 2;
    const hidden = /float/.test(type) && (dims.length === 2 || dims.length === 3);
    if (tokens || hidden) return { rows: product(tokens ? dims : dims.slice(0, -1)), samples: dims[0] ?? 1 };
  }
  return undefined;
}
