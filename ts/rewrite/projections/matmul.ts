/** MatMul by a constant [K, N], also an int8 or uint8 one behind DequantizeLinear, with an Add of a constant [N] behind it in either order, or without. */
import { dequantizedWeight } from '../dequantized.js';
import { projectionOf, weightOf, type ProjectionRule } from './projection.js';

export const matMul: ProjectionRule = {
  name: 'matmul',
  match(index, node, value) {
    if (!node.is('MatMul') || node.inputs[0] !== value || node.inputs[1] === value || !node.outputs[0])
      return undefined;
    const found = dequantizedWeight(index, node, 1, false) ?? weightOf(index, node, 1);
    if (!found.ok) return found;
    const rule = found.value.quantization ? 'dequantize+matmul' : 'matmul';
    return { ok: true, value: projectionOf(index, rule, node, value, found.value) };
  },
};
