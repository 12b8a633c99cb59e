/** Small layers for tests of the rewriter: a norm, projections, and a product of what they give. */
import * as ort from 'onnxruntime-node';
import { ModelBuilder, uniform } from '../../models/builder.js';
import { DataType } from '../../ts/onnx/tensor.js';

/** Length of the normalised axis. */
export const K = 12;
/** Columns of one projection. */
export const N = 8;
export const SHAPE = [2, 5, K];

export interface Layer {
  opset?: number;
  irVersion?: number;
  opsets?: Record<string, number>;
  /** Of the graph's input `x` (default ['batch', 'sequence', K]). */
  dims?: readonly (number | string)[] | undefined;
  /** Element type of `x` and of the graph's outputs (default float). */
  type?: number;
  /** Writes the norm of a value; returns its output's name (default: one LayerNormalization, `h`). */
  norm?: (m: ModelBuilder, x: string) => string;
  /** Writes the projections; returns their outputs' names (default: three MatMul, `q`, `k`, `v`). */
  project?: (m: ModelBuilder, h: string) => readonly string[];
  /** Writes what else there is, behind the rest. */
  after?: (m: ModelBuilder, h: string) => void;
  /** Rank of the projections' outputs (default: that of x). */
  attendRank?: number;
  /** Are the projections' outputs outputs of the graph (default true)? */
  expose?: boolean;
}

/** A model's bytes. */
export function layer(options: Layer = {}): Uint8Array {
  const { dims = ['batch', 'sequence', K], type = DataType.float, expose = true } = options;
  const m = new ModelBuilder({ '': options.opset ?? 17, ...options.opsets }, options.irVersion);
  m.input('x', dims, type);
  const h = (options.norm ?? layerNorm)(m, 'x');
  const results = (options.project ?? threeMatMul)(m, h);
  m.output(attend(m, results, options.attendRank ?? dims.length), undefined, type);
  if (expose) for (const name of results) m.output(name, undefined, type);
  options.after?.(m, h);
  return m.finish();
}

/** A product of computed values in which every projection takes part, as in attention: (Q^T K) V^T. */
export function attend(m: ModelBuilder, results: readonly string[], rank = 3): string {
  const perm = Array.from({ length: Math.max(rank, 2) }, (_, i) => i);
  perm.push(...perm.splice(-2).reverse());
  const transposed = (name: string): string =>
    m.node('Transpose', [name], [`${name}_t`], { attributes: { perm: { integers: perm } } });
  const row = (name: string): string =>
    rank === 1 ? m.node('Reshape', [name, m.integers(`${name}_dims`, [2], [1, -1])], [`${name}_row`]) : name;
  const [q = '', k = q, v] = results.map(row);
  m.node('MatMul', [transposed(q), k], [v ? 'scores' : 'y']);
  return v ? m.node('MatMul', ['scores', transposed(v)], ['y']) : 'y';
}

export const gammaOf = (m: ModelBuilder, type: number = DataType.float): string =>
  m.floats('gamma', [K], uniform(K, 0.4, 3, 1), type);
export const betaOf = (m: ModelBuilder, type: number = DataType.float): string =>
  m.floats('beta', [K], uniform(K, 0.3, 4), type);

export function layerNorm(m: ModelBuilder, x: string): string {
  return m.node('LayerNormalization', [x, gammaOf(m), betaOf(m)], ['h'], {
    attributes: { axis: { integer: -1 }, epsilon: { float: 1e-5 } },
  });
}

/** The values of a weight: another matrix for each seed. */
export const weightValues = (count: number, seed: number): Float32Array => uniform(count, 0.5, 20 + seed);

export const weight = (m: ModelBuilder, name: string, seed: number, dims: readonly number[] = [K, N]): string =>
  m.floats(name, dims, weightValues(dims.reduce((a, b) => a * b, 1), seed)); // prettier-ignore

export function threeMatMul(m: ModelBuilder, h: string): string[] {
  return ['q', 'k', 'v'].map((name, i) => m.node('MatMul', [h, weight(m, `w_${name}`, i)], [name]));
}

/** Random rows for `x`: the first is zeros, the second has a mean far from zero, one channel is an outlier. */
export function rows(shape: readonly number[] = SHAPE): Float32Array {
  const length = shape.at(-1) ?? 1;
  const data = uniform(shape.reduce((a, b) => a * b, 1), 1, 7); // prettier-ignore
  return data.map((value, i) => {
    const row = Math.floor(i / length);
    if (row === 0) return 0;
    return (row === 1 ? value + 3 : value) * (i % length === 3 ? 10 : 1);
  });
}

export const xTensor = (shape: readonly number[] = SHAPE): ort.Tensor =>
  new ort.Tensor('float32', rows(shape), [...shape]);
