/** Small models for the tests of sessions, written message by message, and the numbers that they must give. */
import { qkvGemmModel, type Operand, type Operands, type QkvGemmSpec } from '../../models/qkv_gemm.js';
import { encodeAttribute, encodeNode, type AttributeValue } from '../../ts/onnx/node.js';
import { DataType, encodeTensor } from '../../ts/onnx/tensor.js';
import { MessageWriter } from '../../ts/onnx/wire.js';
import { reference } from './reference.js';

export const K = 8;
export const N = 16;
export const ROWS = 3;
export const EPSILON = 1e-5;

/** Numbers between -1 and 1 that look random and are the same in every run. */
export function numbers(count: number, seed: number): Float32Array<ArrayBuffer> {
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

const DEFAULT_FORM: FusedForm = { gamma: true, beta: true };

function specOf(form: FusedForm): QkvGemmSpec {
  const { gamma, beta, bias, ...rest } = form;
  const present = Object.entries({ gamma, beta, bias }).filter(([, wanted]) => wanted);
  const vectors = Object.fromEntries(present.map(([name]) => [name, DataType.float]));
  return { dims: [ROWS, K], n: N, epsilon: EPSILON, ...rest, ...vectors };
}

function operandsOf(form: FusedForm): Operands {
  const operand = (dims: number[], values: Float32Array<ArrayBuffer>): Operand => ({
    type: DataType.float,
    dims,
    values,
  });
  return {
    input: operand([ROWS, K], x),
    weight: operand([K, N], weight),
    ...(form.gamma ? { gamma: operand([K], gamma) } : {}),
    ...(form.beta ? { beta: operand([K], beta) } : {}),
    ...(form.bias ? { bias: operand([N], bias) } : {}),
  };
}

/** One com.deepspeed.QKVGemm node, with no function body: it loads only where the library is registered. */
export function fusedModel(form: FusedForm = DEFAULT_FORM): Uint8Array {
  return qkvGemmModel(specOf(form), operandsOf(form), { inputDims: ['rows', K] }).bytes;
}

/** What `fusedModel(form)` gives for `x`, by output name, in float64. */
export function expected(form: FusedForm = DEFAULT_FORM): Record<string, number[]> {
  const outputs = Object.entries(reference(specOf(form), operandsOf(form)));
  return Object.fromEntries(outputs.map(([name, { values }]) => [name, Array.from(values)]));
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
