/**
 * What the rules for integer products of dynamically quantised activations share. The original rounds activations to 8
 * bits with one scale for the whole tensor, each element by at most one step of (max - min) / 255. So does the fused op with
 * `activation_quant`, to int8 with one scale a row; without it, it multiplies them as they are and is nearer to the float
 * formula, but slower than the original where rows are many.
 */
import { DataType, dataTypeName } from '../../onnx/tensor.js';
import type { Node } from '../../onnx/node.js';
import { findConstant, whyNotConstant, type Constant } from '../constants.js';
import type { IntegerWeight } from '../dequantized.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';
import { isColumnVector, readQuantization } from '../weights/quantization.js';

/** Where DynamicQuantizeLinear puts a value, its scale and its zero point. */
export interface Activations {
  scale: string;
  zeroPoint: string;
}

/** The DynamicQuantizeLinear that a quantised value comes from. */
export function dynamicActivations(index: GraphIndex, quantized: string): Activations | undefined {
  const node = index.producers.get(quantized);
  const [output, scale, zeroPoint] = node?.outputs ?? [];
  if (!node?.is('DynamicQuantizeLinear') || output !== quantized) return undefined;
  return scale !== undefined && zeroPoint !== undefined ? { scale, zeroPoint } : undefined;
}

/** A constant int8 or uint8 weight [K, N] with one scale and zero point, or one for each column. */
export function columnWeight(
  index: GraphIndex,
  node: Node,
  names: { weight: string | undefined; scale: string | undefined; zeroPoint: string | undefined },
): Match<IntegerWeight> {
  const found: Partial<Record<keyof typeof names, Constant>> = {};
  for (const [key, what] of [
    ['weight', 'weight'],
    ['scale', 'scale of the weight'],
    ['zeroPoint', 'zero point of the weight'],
  ] as const) {
    const name = names[key];
    if (!name) continue;
    const constant = findConstant(index, name);
    if (!constant) return fail(`the ${what} is not constant: ${whyNotConstant(index, name)}`, node);
    found[key] = constant;
  }
  const { weight, scale, zeroPoint } = found;
  if (!weight || !scale) return fail(`${node.opType} lacks its weight or scale`, node);
  const { dims, type } = weight.tensor;
  if ((type !== DataType.int8 && type !== DataType.uint8) || dims.length !== 2 || dims.includes(0)) {
    return fail(
      `the weight '${weight.name}' is ${dataTypeName(type)} [${dims.join(', ')}], expected int8 or uint8 [K, N]`,
      node,
    );
  }
  const [k = 0, n = 0] = weight.transposed ? [...dims].reverse() : dims;
  for (const constant of [scale, ...(zeroPoint ? [zeroPoint] : [])]) {
    if (isColumnVector(constant, n)) continue;
    return fail(
      `'${constant.name}' has shape [${constant.tensor.dims.join(', ')}], expected one element or [N] = [${n}]`,
      node,
    );
  }
  const quantization = readQuantization(index, node, {
    k,
    n,
    block: k,
    weight,
    scale,
    zeroPoint,
    otherwise: 0,
    at: (_, column) => column,
  });
  if (!quantization.ok) return quantization;
  return {
    ok: true,
    value: { weight: { ...weight, type: DataType.float }, quantization: quantization.value, k, n },
  };
}
