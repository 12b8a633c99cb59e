/** Weights behind a DequantizeLinear: int8 and uint8 constants with their scales and zero points. */
import { DataType, dataTypeName } from '../onnx/tensor.js';
import type { Node } from '../onnx/node.js';
import { findConstant, whyNotConstant, type Constant } from './constants.js';
import type { GraphIndex } from './graph_index.js';
import { fail, type Match } from './match.js';
import { readQuantization, type Quantization } from './weights/quantization.js';

/** Products of integers, and where their second operand stands. */
export const INTEGER_PRODUCTS = new Map([
  ['MatMulInteger', 1],
  ['MatMulIntegerToFloat', 1],
  ['DynamicQuantizeMatMul', 1],
  ['QLinearMatMul', 3],
]);

export interface IntegerWeight {
  /** The integers; its `type` is that of the values that they stand for. */
  weight: Constant;
  quantization: Quantization;
  /** Rows and columns of the value. */
  k: number;
  n: number;
}

const MAX_DEPTH = 8;

/** The DequantizeLinear of a constant behind a value, Identity and Transpose between them or not. */
function dequantizeBehind(
  from: GraphIndex,
  name: string,
): { index: GraphIndex; node: Node; stored: Constant; transposed: boolean } | undefined {
  let index = from;
  let transposed = false;
  let value: string | undefined = name;
  for (let depth = 0; depth < MAX_DEPTH && value !== undefined; depth++) {
    index = index.home(value);
    const node = index.producers.get(value);
    const input: string | undefined = node?.inputs[0];
    if (!node || input === undefined) return undefined;
    if (node.is('DequantizeLinear')) {
      const stored = findConstant(index, input);
      return stored && { index, node, stored, transposed };
    }
    if (node.is('Transpose')) {
      const perm = node.integers('perm') ?? [1, 0];
      if (perm.length !== 2 || perm[0] !== 1 || perm[1] !== 0) return undefined;
      transposed = !transposed;
    } else if (!node.is('Identity')) return undefined;
    value = input;
  }
  return undefined;
}

/**
 * The integer weight at a node's input; undefined where no DequantizeLinear of a constant stands behind it.
 *
 * @param swapped the node multiplies by the value's transpose, which is [K, N] (Gemm's transB).
 */
export function dequantizedWeight(
  from: GraphIndex,
  reader: Node,
  position: number,
  swapped: boolean,
): Match<IntegerWeight> | undefined {
  const name = reader.inputs[position] ?? '';
  const found = dequantizeBehind(from, name);
  if (!found) return undefined;
  const { index, node, stored, transposed } = found;
  const { dims, type } = stored.tensor;
  if (type !== DataType.int8 && type !== DataType.uint8)
    return fail(`the weight '${name}' is made of ${dataTypeName(type)}, expected int8 or uint8`, node);
  if (dims.length !== 2 || dims.includes(0)) {
    const shape = `[${dims.join(', ')}]`;
    return fail(`the weight '${name}' is made of shape ${shape}, expected two dimensions, not empty`, node);
  }
  const constants = ['scale', 'zero point'].map((what, i) => {
    const input = node.inputs[i + 1];
    if (!input) return { ok: true as const, value: undefined };
    const value = findConstant(index, input);
    return value
      ? { ok: true as const, value }
      : fail(`the ${what} of '${name}' is not constant: ${whyNotConstant(index, input)}`, node);
  });
  const [scale, zeroPoint] = constants;
  if (!scale?.ok) return scale ?? fail(`'${name}' has no scale`, node);
  if (!zeroPoint?.ok) return zeroPoint ?? fail(`'${name}' has no zero point`, node);
  if (!scale.value) return fail(`'${name}' has no scale`, node);
  const output = node.integer('output_dtype', 0);
  if (output !== 0 && output !== scale.value.type)
    return fail(`output_dtype is ${dataTypeName(output)}, expected that of the scale`, node);

  const [rows = 0, columns = 0] = stored.transposed ? [...dims].reverse() : dims;
  // Behind DequantizeLinear the weight lies as [K, N], or as [N, K].
  const turned = transposed !== swapped;
  const [k, n] = turned ? [columns, rows] : [rows, columns];
  const layout = scalesAlongK(node, name, scale.value, zeroPoint.value, k, n, turned);
  if (!layout.ok) return layout;
  const quantization = readQuantization(index, node, {
    k,
    n,
    ...layout.value,
    weight: stored,
    scale: scale.value,
    zeroPoint: zeroPoint.value,
    otherwise: 0,
  });
  if (!quantization.ok) return quantization;
  const weight: Constant = {
    ...stored,
    name,
    transposed: stored.transposed !== transposed,
    type: scale.value.type,
  };
  return {
    ok: true,
    value: {
      weight,
      quantization: quantization.value,
      k: transposed ? columns : rows,
      n: transposed ? rows : columns,
    },
  };
}

/**
 * How the scales of a DequantizeLinear lie over its weight: one for all, one for each output column, or, with block_size
 * (opset 21), one for each block along K of a column.
 */
function scalesAlongK(
  node: Node,
  name: string,
  scale: Constant,
  zeroPoint: Constant | undefined,
  k: number,
  n: number,
  turned: boolean,
): Match<{ block: number; at: (block: number, column: number) => number }> {
  const { dims } = scale.tensor;
  const shape = `[${dims.join(', ')}]`;
  if (zeroPoint && zeroPoint.tensor.dims.join() !== dims.join()) {
    const other = `[${zeroPoint.tensor.dims.join(', ')}]`;
    return fail(`the scale of '${name}' has shape ${shape}, its zero point ${other}`, node);
  }
  const attribute = node.integer('axis', 1);
  const axis = attribute < 0 ? attribute + 2 : attribute;
  const axisOfK = turned ? 1 : 0;
  const size = node.integer('block_size', 0);
  if (size === 0) {
    if (scale.tensor.count === 1 && dims.length <= 1)
      return { ok: true, value: { block: k, at: (_, column) => (n === 1 ? 0 : column) } };
    if (axis === axisOfK)
      return fail(
        `'${name}' has a scale of shape ${shape} along K, expected one for each output column`,
        node,
      );
    if (dims.length !== 1 || dims[0] !== n)
      return fail(`the scale of '${name}' has shape ${shape}, expected [N] = [${n}]`, node);
    return { ok: true, value: { block: k, at: (_, column) => column } };
  }
  if (axis !== axisOfK) return fail(`'${name}' has blocks along N, expected them along K`, node);
  const blocks = Math.ceil(k / size);
  const expected = turned ? [n, blocks] : [blocks, n];
  if (size < 0 || dims.join() !== expected.join()) {
    return fail(
      `the scale of '${name}' has shape ${shape}, expected [${expected.join(', ')}] (block_size ${size})`,
      node,
    );
  }
  const at = turned
    ? (block: number, column: number) => column * blocks + block
    : (block: number, column: number) => block * n + column;
  return { ok: true, value: { block: size, at } };
}
