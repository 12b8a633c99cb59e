/** Layers whose weights are integers, and what the integers of a model and of what it becomes stand for. */
import type * as ort from 'onnxruntime-node';
import { uniform, type ModelBuilder } from '../../models/builder.js';
import { DataType } from '../../ts/onnx/tensor.js';
import { toFloat32 } from '../../ts/rewrite/weights/convert.js';
import type { Fused } from './fused.js';
import { layer, xTensor, type Layer } from './layers.js';

export const NAMES = ['q', 'k', 'v'] as const;

/** Integers [K, N] with a scale and a zero point for each block of rows of a column: [ceil(K / block), N]. */
export interface Integers {
  k: number;
  n: number;
  block: number;
  /** -128 to 127. */
  values: Int8Array;
  scale: Float32Array;
  zeroPoint: Int8Array;
}

/** Random ones; `symmetric`: all zero points are 0. */
export function integers(k: number, n: number, seed: number, block = k, symmetric = false): Integers {
  const scales = Math.ceil(k / block) * n;
  return {
    k,
    n,
    block,
    values: Int8Array.from(uniform(k * n, 128, seed), Math.floor),
    scale: uniform(scales, 1 / 512, seed + 1, 1 / 256),
    zeroPoint: symmetric ? new Int8Array(scales) : Int8Array.from(uniform(scales, 40, seed + 2), Math.floor),
  };
}

/** [K, N], in float64 as the formula says it: (q - zero point) * scale. */
export function meaning({ k, n, block, values, scale, zeroPoint }: Integers): Float64Array {
  return Float64Array.from({ length: k * n }, (_, i) => {
    const at = Math.floor(Math.floor(i / n) / block) * n + (i % n);
    return ((values[i] ?? NaN) - (zeroPoint[at] ?? NaN)) * (scale[at] ?? NaN);
  });
}

/** Rows and columns exchanged. */
export function turned<T extends Int8Array | Uint8Array | Float32Array>(data: T, rows: number): T {
  const columns = data.length / rows;
  return data.map((_, i) => data[(i % rows) * columns + Math.floor(i / rows)] ?? NaN) as T;
}

/** Integers as uint8: 128 more. */
export const unsigned = (values: Int8Array): Uint8Array => Uint8Array.from(values, (value) => value + 128);

export const bytesOf = (data: ArrayBufferView): Uint8Array =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** What the weight of a fused node stands for: [K, N] of each split, from its initialisers alone. */
export function carried({ model, nodes }: Fused, which = 0): Float64Array[] {
  const node = nodes[which];
  const tensor = (at: number): { dims: readonly number[]; bytes: Uint8Array; type: number } | undefined => {
    const found = model.graph.initializers.get(node?.inputs[at] ?? '');
    return found && { dims: found.dims, bytes: found.bytes(), type: found.type };
  };
  const [weight, scales, zeros] = [tensor(1), tensor(5), tensor(6)];
  if (!node || weight?.type !== DataType.int8 || !scales) throw new Error('no node with an int8 weight');
  const transposed = node.integer('transposed', 0) === 1;
  const [k = 0, n = 0] = transposed ? [...weight.dims].reverse() : weight.dims;
  const scale = toFloat32(scales.bytes, scales.type);
  const rows = scales.dims.length === 2 ? (scales.dims[0] ?? 1) : 1;
  const groups = scales.dims.length === 2 ? n : (scales.dims[0] ?? 1);
  let from = 0;
  return (node.integers('splits') ?? [n]).map((width) => {
    const first = from;
    from += width;
    return Float64Array.from({ length: k * width }, (_, i) => {
      const [row, column] = [Math.floor(i / width), first + (i % width)];
      const q = ((weight.bytes[transposed ? column * k + row : row * n + column] ?? NaN) << 24) >> 24;
      const at = Math.floor((row * rows) / k) * groups + Math.floor((column * groups) / n);
      return (q - (((zeros?.bytes[at] ?? 0) << 24) >> 24)) * (scale[at] ?? NaN);
    });
  });
}

/** A layer of K columns with one LayerNormalization, and something for it to read. */
export function layerOf(k: number, project: Layer['project'], options: Layer = {}): Uint8Array {
  const norm = (m: ModelBuilder, x: string): string => {
    const gamma = m.floats('gamma', [k], uniform(k, 0.4, 3, 1), options.type);
    const beta = m.floats('beta', [k], uniform(k, 0.3, 4), options.type);
    return m.node('LayerNormalization', [x, gamma, beta], ['h'], {
      attributes: { axis: { integer: -1 }, epsilon: { float: 1e-5 } },
    });
  };
  return layer({ dims: ['batch', 'sequence', k], norm, ...(project ? { project } : {}), ...options });
}

export const inputOf = (k: number): ort.Tensor[] => [xTensor([2, 5, k])];

/** The same layer with the numbers that the integers stand for: float32 weights, and biases where given. */
export function floatLayer(
  k: number,
  weights: readonly Float64Array[],
  biases: (Float32Array | undefined)[] = [],
): Uint8Array {
  return layerOf(k, (m, h) =>
    weights.map((data, i) => {
      const name = NAMES[i] ?? '';
      const n = data.length / k;
      const bias = biases[i];
      const w = m.floats(`w_${name}`, [k, n], data);
      if (!bias) return m.node('MatMul', [h, w], [name]);
      return m.node(
        'Add',
        [m.node('MatMul', [h, w], [`${name}0`]), m.floats(`b_${name}`, [n], bias)],
        [name],
      );
    }),
  );
}
