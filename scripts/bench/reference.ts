/** The block in float64, at sampled rows and columns. */
import { EPSILON, type Block } from './block.js';

export interface Sample {
  rows: readonly number[];
  columns: readonly number[];
}

/** First, last and some rows and columns between, so that edges of tiles and of the three outputs are among them. */
export function sampleOf(block: Block, m: number): Sample {
  const spread = (count: number, most: number): number[] =>
    Array.from({ length: Math.min(count, most) }, (_, i) =>
      Math.round((i * (count - 1)) / Math.max(1, Math.min(count, most) - 1)),
    );
  const edges = block.splits.map((_, i) => block.splits.slice(0, i).reduce((sum, c) => sum + c, 0));
  const columns = [...spread(block.n, 61), ...edges, ...edges.slice(1).map((edge) => edge - 1)];
  return { rows: [...new Set(spread(m, 3))], columns: [...new Set(columns)] };
}

/** Values row by row. `weight` gives the weight as stored, by its index into [k, n]. */
export function reference(
  block: Block,
  x: Float32Array,
  { rows, columns }: Sample,
  weight: (i: number) => number,
): Float64Array {
  const { k, n } = block;
  const normalised = rows.map((row) => normalise(block, x.subarray(row * k, (row + 1) * k)));
  const result = new Float64Array(rows.length * columns.length);
  columns.forEach((column, c) => {
    const values = Float64Array.from({ length: k }, (_, i) => weight(i * n + column));
    normalised.forEach((a, r) => {
      let sum = block.biases?.[column] ?? 0;
      for (let i = 0; i < k; i++) sum += (a[i] ?? NaN) * (values[i] ?? NaN);
      result[r * columns.length + c] = sum;
    });
  });
  return result;
}

function normalise(block: Block, x: Float32Array): Float64Array {
  const mean = block.norm === 'layer_norm' ? x.reduce((sum, value) => sum + value, 0) / block.k : 0;
  const square = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / block.k;
  const factor = 1 / Math.sqrt(square + EPSILON);
  return Float64Array.from(
    x,
    (value, i) => (value - mean) * factor * (block.gamma[i] ?? NaN) + (block.beta?.[i] ?? 0),
  );
}

/** The same places of the outputs, which hold `block.splits` columns each. */
export function pick(
  block: Block,
  outputs: readonly Float32Array[],
  { rows, columns }: Sample,
): Float64Array {
  const places = columns.map((column) => {
    let output = 0;
    let rest = column;
    while (rest >= (block.splits[output] ?? Infinity)) rest -= block.splits[output++] ?? 0;
    return { output, rest, width: block.splits[output] ?? 0 };
  });
  return Float64Array.from(
    rows.flatMap((row) =>
      places.map(({ output, rest, width }) => outputs[output]?.[row * width + rest] ?? NaN),
    ),
  );
}

/** Largest difference over the largest magnitude of `expected`; Infinity where anything is missing or not finite. */
export function relativeDifference(expected: ArrayLike<number>, actual: ArrayLike<number>): number {
  if (expected.length !== actual.length) return Infinity;
  let largest = 0;
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs((expected[i] ?? NaN) - (actual[i] ?? NaN));
    if (!(difference < Infinity)) return Infinity;
    worst = Math.max(worst, difference);
    largest = Math.max(largest, Math.abs(expected[i] ?? 0));
  }
  return largest === 0 ? worst : worst / largest;
}
