/**
 * What can be proven of shapes: how many dimensions a value has, and of a shape that a graph computes (Shape, Gather, Slice,
 * Concat and the like), which dimension of which value each element is.
 *
 * Source: ONNX operators, https://onnx.ai/onnx/operators/
 */
import type { Node } from '../onnx/node.js';
import { findConstant, integersOf } from './constants.js';
import type { GraphIndex } from './graph_index.js';

const MAX_DEPTH = 200;

const ops = (names: string): ReadonlySet<string> => new Set(names.split(' '));

/** The first output has the shape of the first input. */
const SAME_SHAPE = ops(
  'Identity Cast Dropout Relu Gelu Erf Tanh Sigmoid Softmax LogSoftmax Neg Sqrt Reciprocal Abs Exp Log Clip LeakyRelu ' +
    'LayerNormalization RMSNormalization SimplifiedLayerNormalization QuantizeLinear DequantizeLinear ' +
    'SkipLayerNormalization SkipSimplifiedLayerNormalization',
);
/** As many dimensions as the first input. */
const SAME_RANK = ops(
  'Slice Split Transpose Pad Tile Concat MatMulNBits DynamicQuantizeMatMul DynamicQuantizeLinear',
);
/** Operands spread to the one with most dimensions. */
const SPREADING = ops('Add Sub Mul Div Pow Where Max Min Equal Less Greater And Or');

const ranks = new WeakMap<GraphIndex, Map<string, number | undefined>>();

/** How many dimensions a value has; undefined where that is not known. */
export function rankOf(from: GraphIndex, name: string, depth = 0): number | undefined {
  const index = from.home(name);
  const known = ranks.get(index) ?? new Map<string, number | undefined>();
  ranks.set(index, known);
  if (known.has(name)) return known.get(name);
  if (depth > MAX_DEPTH) return undefined;
  known.set(name, undefined); // while it is being looked for
  const rank =
    index.dimsOf(name)?.length ??
    index.graph.initializers.get(name)?.dims.length ??
    rankOfArguments(index, name, depth) ??
    rankBehind(index, name, depth);
  known.set(name, rank);
  return rank;
}

function rankOfArguments(index: GraphIndex, name: string, depth: number): number | undefined {
  const [first, ...others] = index
    .argumentsFor(name)
    .map((call) => rankOf(call.index, call.value, depth + 1));
  return others.every((rank) => rank === first) ? first : undefined;
}

function rankBehind(index: GraphIndex, name: string, depth: number): number | undefined {
  const node = index.producers.get(name);
  if (!node || (node.domain !== '' && node.domain !== 'com.microsoft') || !node.is(node.opType, node.domain))
    return undefined;
  const { opType, inputs, outputs } = node;
  const rank = (at: number): number | undefined =>
    inputs[at] ? rankOf(index, inputs[at], depth + 1) : undefined;
  if (SAME_SHAPE.has(opType) && outputs[0] === name) return rank(0);
  if (SAME_RANK.has(opType) && (outputs[0] === name || opType === 'Split')) return rank(0);
  if (SPREADING.has(opType)) return largest(inputs.map((_, at) => rank(at)));
  switch (opType) {
    case 'MatMul': {
      const both = [rank(0), rank(1)];
      return both.every((of) => of !== undefined && of >= 2) ? largest(both) : undefined;
    }
    case 'Gemm':
    case 'FusedGemm':
      return 2;
    case 'Gather': {
      const [data, indices] = [rank(0), rank(1)];
      return data === undefined || indices === undefined ? undefined : data + indices - 1;
    }
    case 'ReduceMean':
      return node.integer('keepdims', 1) === 1 ? rank(0) : undefined;
    case 'Constant':
      return findConstant(index, name)?.tensor.dims.length;
    case 'Reshape': {
      const target = inputs[1] ?? '';
      const stated = index.dimsOf(target)?.[0] ?? -1;
      const elements = dimensionsIn(index, target);
      if (elements?.every((element) => typeof element === 'number' || element.axis !== 'leading'))
        return elements.length;
      return stated >= 0 ? stated : undefined;
    }
    default:
      return undefined;
  }
}

function largest(all: readonly (number | undefined)[]): number | undefined {
  return all.includes(undefined) ? undefined : Math.max(...(all as number[]));
}

/** An element of a shape: a number, a dimension of a value, or, as several elements, all dimensions of it but the last. */
export type Dimension = number | { of: string; axis: number | 'leading' };

/** The value that has the same shape as this one for sure, as far back as that goes. */
export function shapeSource(index: GraphIndex, name: string): string {
  let value = name;
  for (let step = 0; step < MAX_DEPTH; step++) {
    const node = index.producers.get(value);
    const [input] = node?.inputs ?? [];
    if (!node || input === undefined || node.outputs[0] !== value) return value;
    if (!SAME_SHAPE.has(node.opType) || (node.domain !== '' && node.domain !== 'com.microsoft')) return value;
    // The sum of a Skip norm has the first operand's shape only where the other one does not spread it.
    if (node.opType.startsWith('Skip')) return value;
    value = input;
  }
  return value;
}

/** The elements of an integer vector, or of an integer scalar as one element; undefined where they are not known. */
export function dimensionsIn(index: GraphIndex, name: string, depth = 0): Dimension[] | undefined {
  const constant = findConstant(index, name);
  if (constant) return constant.tensor.dims.length > 1 ? undefined : integersOf(constant, index.source);
  const node = index.producers.get(name);
  if (!node || depth > MAX_DEPTH || !node.is(node.opType)) return undefined;
  const inner = (at: number): Dimension[] | undefined =>
    node.inputs[at] ? dimensionsIn(index, node.inputs[at], depth + 1) : undefined;
  switch (node.opType) {
    case 'Identity':
    case 'Cast': // between integer types, or dimensions would not come out of it
    case 'Unsqueeze':
    case 'Squeeze':
      return inner(0);
    case 'Reshape': // of one element to a vector
      return (index.dimsOf(node.inputs[1] ?? '')?.[0] ??
        integersOf(findConstant(index, node.inputs[1] ?? ''), index.source)?.length) === 1
        ? inner(0)
        : undefined;
    case 'Concat': {
      if (node.integer('axis', 0) !== 0) return undefined;
      const parts = node.inputs.map((_, at) => inner(at));
      return parts.includes(undefined) ? undefined : (parts as Dimension[][]).flat();
    }
    case 'Shape':
      return shapeElements(index, node);
    case 'Gather':
      return gathered(index, node, inner(0));
    case 'Slice':
      return sliced(index, node, inner(0));
    default:
      return undefined;
  }
}

/** What Shape gives of a value: all its dimensions, or those from `start` to `end` (opset 15). */
function shapeElements(index: GraphIndex, node: Node): Dimension[] | undefined {
  const value = node.inputs[0] ?? '';
  const of = shapeSource(index, value);
  const rank = rankOf(index, value);
  if (rank === undefined) {
    const leading = node.integer('start', 0) === 0 && node.integer('end', 0) === -1;
    return leading ? [{ of, axis: 'leading' }] : undefined;
  }
  const all = Array.from({ length: rank }, (_, axis) => ({ of, axis }));
  const end = node.attributes.has('end') ? node.integer('end', 0) : rank;
  return all.slice(node.integer('start', 0), end);
}

/** The value whose Shape a name is, the whole of it. */
function wholeShape(index: GraphIndex, name: string | undefined): string | undefined {
  const node = index.producers.get(name ?? '');
  const whole = node?.is('Shape') && !node.attributes.has('start') && !node.attributes.has('end');
  return whole && node?.inputs[0] !== undefined ? shapeSource(index, node.inputs[0]) : undefined;
}

function gathered(index: GraphIndex, node: Node, from: Dimension[] | undefined): Dimension[] | undefined {
  const positions = integersOf(findConstant(index, node.inputs[1] ?? ''), index.source);
  if (!positions || node.integer('axis', 0) !== 0) return undefined;
  const of = wholeShape(index, node.inputs[0]);
  const elements = positions.map((position) => {
    if (from && !from.some((element) => typeof element !== 'number' && element.axis === 'leading'))
      return from.at(position);
    return of !== undefined && position >= 0 ? { of, axis: position } : undefined;
  });
  return elements.includes(undefined) ? undefined : (elements as Dimension[]);
}

function sliced(index: GraphIndex, node: Node, from: Dimension[] | undefined): Dimension[] | undefined {
  const list = (at: number, attribute: string): number[] | undefined =>
    node.inputs[at]
      ? integersOf(findConstant(index, node.inputs[at]), index.source)
      : node.integers(attribute);
  const [start, ...starts] = list(1, 'starts') ?? [];
  const [end, ...ends] = list(2, 'ends') ?? [];
  const steps = node.inputs[4] ? list(4, '') : [1];
  const axes = node.inputs[3] || node.attributes.has('axes') ? list(3, 'axes') : [0];
  if (start === undefined || end === undefined || starts.length + ends.length > 0) return undefined;
  if (steps?.join() !== '1' || axes?.join() !== '0') return undefined;
  if (from && !from.some((element) => typeof element !== 'number' && element.axis === 'leading'))
    return from.slice(start, end);
  const of = wholeShape(index, node.inputs[0]);
  return of !== undefined && start === 0 && end === -1 ? [{ of, axis: 'leading' }] : undefined;
}
