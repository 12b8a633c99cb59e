/** The scales and zero points of integer weights, in the one layout that fused nodes are built from. */
import { DataType, dataTypeName } from '../../onnx/tensor.js';
import { floatsOf, type Constant } from '../constants.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';
import type { Node } from '../../onnx/node.js';

/**
 * What the elements of an int8 weight stand for: (element - zeroPoint) * scale. uint8 elements are taken as int8 by
 * subtracting 128, and so are their zero points: the differences stay what they were.
 */
export interface Quantization {
  /** Rows of a column that share a scale; divides K, and is K where a column has one scale. */
  block: number;
  /** [K / block, N] */
  scale: Float32Array;
  /** As `scale`; undefined where all are 0. */
  zeroPoint: Int8Array | undefined;
}

/** Scales and zero points as a model stores them. */
export interface StoredScales {
  k: number;
  n: number;
  /** Rows of a column that share a scale; the last block may be shorter. */
  block: number;
  /** int8 or uint8 */
  weight: Constant;
  scale: Constant;
  zeroPoint: Constant | undefined;
  /** Zero point where none is stored, as an element of that type. */
  otherwise: number;
  /** Where the scale of a block of a column stands among those stored. A lone one is for all. */
  at: (block: number, column: number) => number;
}

/** Shorter blocks would make scales of 4 bytes that take more than half as much memory as the weights. */
export const SHORTEST_BLOCK = 8;

/** The largest length in whose multiples both lengths can be cut. */
export function commonBlock(a: number, b: number): number {
  return b === 0 ? a : commonBlock(b, a % b);
}

/**
 * Reads scales and zero points and repeats them where that is needed for blocks that divide K; nothing is rounded, but
 * for scales of 16 bits that become float32.
 */
export function readQuantization(index: GraphIndex, node: Node, stored: StoredScales): Match<Quantization> {
  const { k, n, weight, scale, zeroPoint, otherwise, at } = stored;
  const { type } = weight.tensor;
  const length = Math.min(stored.block, k);
  const block = commonBlock(length, k);
  if (block < Math.min(SHORTEST_BLOCK, length)) {
    return fail(
      `K = ${k} and its blocks of ${length} rows have no common divisor of ${SHORTEST_BLOCK} or more (found ${block})`,
      node,
    );
  }
  const scales = floatsOf(scale, index.source);
  if (!scales || scale.transposed)
    return fail(
      `the scale '${scale.name}' is ${dataTypeName(scale.type)}, expected float32 or 16 bits`,
      node,
    );
  const wrong = scales.findIndex((value) => !Number.isFinite(value));
  if (wrong >= 0)
    return fail(`the scale '${scale.name}' holds ${scales[wrong]}, expected finite numbers`, node);
  if (zeroPoint && (zeroPoint.tensor.type !== type || zeroPoint.transposed)) {
    const found = dataTypeName(zeroPoint.tensor.type);
    return fail(`zero point '${zeroPoint.name}' is ${found}, expected ${dataTypeName(type)}`, node);
  }
  // Nothing but the weight's own bytes bounds the N that one scale is repeated for: are they there?
  if (scales.length === 1) weight.tensor.bytes(index.source);
  const zeros = zeroPoint?.tensor.bytes(index.source);
  const blocks = k / block;
  const result = new Float32Array(blocks * n);
  const zero = new Int8Array(blocks * n);
  const shift = type === DataType.uint8 ? 128 : 0;
  for (let b = 0; b < blocks; b++) {
    const from = Math.floor((b * block) / length);
    for (let column = 0; column < n; column++) {
      const i = at(from, column);
      result[b * n + column] = scales[scales.length === 1 ? 0 : i] ?? NaN;
      const q = zeros ? (zeros[zeros.length === 1 ? 0 : i] ?? 0) : otherwise;
      zero[b * n + column] = q - shift; // int8 bytes wrap to their sign
    }
  }
  return {
    ok: true,
    value: { block, scale: result, zeroPoint: zero.every((value) => value === 0) ? undefined : zero },
  };
}

/** Is there one value for all, or one for each of n? */
export const isColumnVector = ({ tensor }: Constant, n: number): boolean =>
  tensor.count === 1 || (tensor.dims.length === 1 && tensor.count === n);
