/** Small models for the tests of sessions, written message by message, and the numbers that they must give. */
import { encodeAttribute, encodeNode, type AttributeValue } from '../../ts/onnx/node.js';
import { DataType, encodeTensor } from '../../ts/onnx/tensor.js';
import { MessageWriter } from '../../ts/onnx/wire.js';

export const K = 8;
export const N = 16;
export const ROWS = 3;
export const EPSILON = 1e-5;

/** Numbers between -1 and 1 that look random and are the same in every run. */
export function numbers(count: number, seed: number): Float32Array {
  return Float32Array.from({ length: count }, (_, i) => Math.sin((i + 1) * 12.9898 + seed * 78.233));
}

export const x = numbers(ROWS * K, 1);
export const weight = numbers(K * N, 2);
export const gamma = numbers(K, 3);
export const beta = numbers(K, 4);
export const bias = numbers(N, 5);

export interface Value {
  name: string;
  type?: number;
  dims?: readonly (number | string)[];
}

export interface ModelParts {
  nodes: Uint8Array[];
  inputs: Value[];
  outputs: Value[];
  initializers?: { name: string; dims: readonly number[]; data: Float32Array }[];
  opsets?: Record<string, number>;
}

function valueInfo({ name, type = DataType.float, dims }: Value): Uint8Array {
  const tensor = new MessageWriter().integer(1, type);
  if (dims) {
    const shape = new MessageWriter();
    for (const dim of dims) {
      const writer = new MessageWriter();
      shape.bytes(1, (typeof dim === 'number' ? writer.integer(1, dim) : writer.string(2, dim)).finish());
    }
    tensor.bytes(2, shape.finish());
  }
  const typeProto = new MessageWriter().bytes(1, tensor.finish()).finish();
  return new MessageWriter().string(1, name).bytes(2, typeProto).finish();
}

export function model(parts: ModelParts): Uint8Array {
  const graph = new MessageWriter();
  for (const node of parts.nodes) graph.bytes(1, node);
  graph.string(2, 'test');
  for (const { name, dims, data } of parts.initializers ?? []) {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    graph.bytes(5, encodeTensor(name, DataType.float, dims, bytes));
  }
  for (const input of parts.inputs) graph.bytes(11, valueInfo(input));
  for (const output of parts.outputs) graph.bytes(12, valueInfo(output));
  const writer = new MessageWriter().integer(1, 8).bytes(7, graph.finish());
  for (const [domain, version] of Object.entries({ '': 17, ...parts.opsets }))
    writer.bytes(8, new MessageWriter().string(1, domain).integer(2, version).finish());
  return writer.finish();
}

export function node(
  opType: string,
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: Record<string, AttributeValue> = {},
  domain = '',
): Uint8Array {
  return encodeNode({
    opType,
    domain,
    inputs,
    outputs,
    attributes: Object.entries(attributes).map(([name, value]) => encodeAttribute(name, value)),
  });
}

export interface FusedForm {
  norm?: 'layer_norm' | 'rms_norm' | 'none';
  gamma?: boolean;
  beta?: boolean;
  bias?: boolean;
  splits?: readonly number[];
  emitNorm?: boolean;
}

/** One com.deepspeed.QKVGemm node, with no function body: it loads only where the library is registered. */
export function fusedModel(form: FusedForm = { gamma: true, beta: true }): Uint8Array {
  const { norm = 'layer_norm', splits = [N], emitNorm = false } = form;
  const inputs = ['x', 'weight', form.gamma ? 'gamma' : '', form.beta ? 'beta' : '', form.bias ? 'bias' : ''];
  while (inputs.at(-1) === '') inputs.pop();
  const outputs = ['y', emitNorm ? 'norm' : '', ...splits.slice(1).map((_, i) => `y${i + 1}`)];
  while (outputs.at(-1) === '') outputs.pop();
  const all = [
    { name: 'weight', dims: [K, N], data: weight },
    { name: 'gamma', dims: [K], data: gamma },
    { name: 'beta', dims: [K], data: beta },
    { name: 'bias', dims: [N], data: bias },
  ];
  return model({
    nodes: [
      node(
        'QKVGemm',
        inputs,
        outputs,
        {
          norm_type: { string: norm },
          epsilon: { float: EPSILON },
          ...(splits.length > 1 ? { splits: { integers: splits } } : {}),
          ...(emitNorm ? { emit_norm: { integer: 1 } } : {}),
        },
        'com.deepspeed',
      ),
    ],
    inputs: [{ name: 'x', dims: ['rows', K] }],
    outputs: outputs.filter((name) => name !== '').map((name) => ({ name })),
    initializers: all.filter(({ name }) => inputs.includes(name)),
    opsets: { 'com.deepspeed': 1 },
  });
}

/** What `fusedModel(form)` gives for `x`, by output name, in float64. */
export function expected(form: FusedForm = { gamma: true, beta: true }): Record<string, number[]> {
  const { norm = 'layer_norm', splits = [N] } = form;
  const normalised = normalise(Array.from(x), norm, form);
  const y = matmul(normalised, Array.from(weight), ROWS, K, N).map(
    (value, i) => value + (form.bias ? (bias[i % N] ?? NaN) : 0),
  );
  const result: Record<string, number[]> = {};
  let begin = 0;
  splits.forEach((size, i) => {
    const [from, to] = [begin, begin + size];
    result[i === 0 ? 'y' : `y${i}`] = y.filter((_, at) => at % N >= from && at % N < to);
    begin = to;
  });
  if (form.emitNorm) result.norm = normalised;
  return result;
}

function normalise(values: number[], norm: string, form: FusedForm): number[] {
  if (norm === 'none') return values;
  const result: number[] = [];
  for (let at = 0; at < values.length; at += K) {
    const row = values.slice(at, at + K);
    const mean = norm === 'layer_norm' ? row.reduce((sum, v) => sum + v, 0) / K : 0;
    const square = row.reduce((sum, v) => sum + (v - mean) ** 2, 0) / K;
    const scale = 1 / Math.sqrt(square + EPSILON);
    row.forEach((v, k) => {
      const g = form.gamma ? (gamma[k] ?? NaN) : 1;
      result.push((v - mean) * scale * g + (form.beta ? (beta[k] ?? NaN) : 0));
    });
  }
  return result;
}

function matmul(a: readonly number[], b: readonly number[], m: number, k: number, n: number): number[] {
  return Array.from({ length: m * n }, (_, at) => {
    const [row, column] = [Math.floor(at / n), at % n];
    let sum = 0;
    for (let i = 0; i < k; i++) sum += (a[row * k + i] ?? NaN) * (b[i * n + column] ?? NaN);
    return sum;
  });
}

/** LayerNormalization, three projections, attention, and the normalised input added to the result. */
export function attentionModel(): Uint8Array {
  const square = (name: string, seed: number): { name: string; dims: number[]; data: Float32Array } => ({
    name,
    dims: [K, K],
    data: numbers(K * K, seed),
  });
  return model({
    nodes: [
      node('LayerNormalization', ['x', 'gamma', 'beta'], ['n'], { epsilon: { float: EPSILON } }),
      node('MatMul', ['n', 'wq'], ['q']),
      node('MatMul', ['n', 'wk'], ['k']),
      node('MatMul', ['n', 'wv'], ['v']),
      node('Transpose', ['k'], ['kt'], { perm: { integers: [0, 2, 1] } }),
      node('MatMul', ['q', 'kt'], ['scores']),
      node('Softmax', ['scores'], ['p']),
      node('MatMul', ['p', 'v'], ['context']),
      node('Add', ['context', 'n'], ['y']),
    ],
    inputs: [{ name: 'x', dims: [1, ROWS, K] }],
    outputs: [{ name: 'y' }],
    initializers: [
      square('wq', 11),
      square('wk', 12),
      square('wv', 13),
      { name: 'gamma', dims: [K], data: gamma },
      { name: 'beta', dims: [K], data: beta },
    ],
  });
}

/** RMSNorm written out, three projections with biases, attention. */
export function rmsModel(): Uint8Array {
  const names = ['q', 'k', 'v'];
  return model({
    nodes: [
      node('Mul', ['x', 'x'], ['square']),
      node('ReduceMean', ['square'], ['mean'], { axes: { integers: [-1] }, keepdims: { integer: 1 } }),
      node('Add', ['mean', 'epsilon'], ['shifted']),
      node('Sqrt', ['shifted'], ['root']),
      node('Div', ['x', 'root'], ['scaled']),
      node('Mul', ['scaled', 'gamma'], ['n']),
      ...names.flatMap((name) => [
        node('MatMul', ['n', `w${name}`], [`${name}0`]),
        node('Add', [`${name}0`, `b${name}`], [name]),
      ]),
      node('Transpose', ['k'], ['kt'], { perm: { integers: [0, 2, 1] } }),
      node('MatMul', ['q', 'kt'], ['scores']),
      node('Softmax', ['scores'], ['p']),
      node('MatMul', ['p', 'v'], ['y']),
    ],
    inputs: [{ name: 'x', dims: [1, ROWS, K] }],
    outputs: [{ name: 'y' }],
    initializers: [
      { name: 'epsilon', dims: [], data: Float32Array.of(EPSILON) },
      { name: 'gamma', dims: [K], data: gamma },
      ...names.flatMap((name, i) => [
        { name: `w${name}`, dims: [K, K], data: numbers(K * K, 31 + i) },
        { name: `b${name}`, dims: [K], data: numbers(K, 41 + i) },
      ]),
    ],
  });
}

/** Largest absolute difference; Infinity where the lengths differ or anything is not a number. */
export function worst(expectedValues: readonly number[], actual: ArrayLike<number>): number {
  if (expectedValues.length !== actual.length) return Infinity;
  const worstOne = Math.max(...expectedValues.map((value, i) => Math.abs(value - (actual[i] ?? NaN))));
  return Number.isNaN(worstOne) ? Infinity : worstOne;
}

/** Sums of 8 products of numbers below 10 in float32 against float64. */
export const TOLERANCE = 1e-5;
