/**
 * com.microsoft MatMulIntegerToFloat behind a DynamicQuantizeLinear, and DynamicQuantizeMatMul, which is both in one: what
 * ONNX Runtime's extended optimisations make of the form in matmul_integer.ts.
 *
 * Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
 */
import type { Node } from '../../onnx/node.js';
import { findConstant, vectorLength, whyNotConstant, type Constant } from '../constants.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';
import { columnWeight, dynamicActivations } from './dynamic_quantization.js';
import { isFloat, projectionOf, type Projection, type ProjectionRule } from './projection.js';

/** Operands by name; '' and undefined are absent ones. */
interface Operands {
  scale: string | undefined;
  zeroPoint: string | undefined;
  bias: string | undefined;
}

function projectionAt(
  index: GraphIndex,
  rule: string,
  node: Node,
  value: string,
  { scale, zeroPoint, bias: biasName }: Operands,
): Match<Projection> {
  const found = columnWeight(index, node, { weight: node.inputs[1], scale, zeroPoint });
  if (!found.ok) return found;
  const { n } = found.value;
  let bias: Constant | undefined;
  if (biasName) {
    bias = findConstant(index, biasName);
    if (!bias) return fail(`the bias is not constant: ${whyNotConstant(index, biasName)}`, node);
    if (vectorLength(bias) !== n || !isFloat(bias.type))
      return fail(`the bias has shape [${bias.tensor.dims.join(', ')}], expected [N] = [${n}]`, node);
  }
  const projection = projectionOf(index, rule, node, value, found.value, { bias });
  return { ok: true, value: { ...projection, roundsActivations: true } };
}

export const matMulIntegerToFloat: ProjectionRule = {
  name: 'matmul-integer-to-float',
  match(index, node, value) {
    if (!node.is('MatMulIntegerToFloat', 'com.microsoft') || node.inputs[0] !== value) return undefined;
    const activations = dynamicActivations(index, value);
    if (!activations) return undefined;
    const [, , scaleOfActivations, scale, zeroOfActivations, zeroPoint, bias] = node.inputs;
    if (scaleOfActivations !== activations.scale || zeroOfActivations !== activations.zeroPoint)
      return fail(`${node.opType} does not take scale and zero point from DynamicQuantizeLinear`, node);
    return projectionAt(index, 'matmul-integer-to-float', node, value, { scale, zeroPoint, bias });
  },
};

export const dynamicQuantizeMatMul: ProjectionRule = {
  name: 'dynamic-quantize-matmul',
  match(index, node, value) {
    if (!node.is('DynamicQuantizeMatMul', 'com.microsoft') || node.inputs[0] !== value) return undefined;
    const [, , scale, zeroPoint, bias] = node.inputs;
    return projectionAt(index, 'dynamic-quantize-matmul', node, value, { scale, zeroPoint, bias });
  },
};
