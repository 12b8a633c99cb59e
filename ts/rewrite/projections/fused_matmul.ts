/**
 * FusedMatMul (com.microsoft): alpha * A * B, or B transposed, with an Add of a bias behind it or without. ONNX Runtime's
 * extended optimisations make it of MatMul and a Transpose or a factor before or behind it.
 *
 * Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
 */
import { fail } from '../match.js';
import { projectionOf, weightOf, type ProjectionRule } from './projection.js';

export const fusedMatMul: ProjectionRule = {
  name: 'fused-matmul',
  match(index, node, value) {
    if (!node.is('FusedMatMul', 'com.microsoft')) return undefined;
    if (node.inputs[0] !== value || node.inputs[1] === value || !node.outputs[0]) return undefined;
    const found = weightOf(index, node, 1);
    if (!found.ok) return found;
    const turns = ['transA', 'transBatchA', 'transBatchB'].find((name) => node.integer(name, 0) !== 0);
    if (turns !== undefined) return fail(`FusedMatMul has ${turns}=1, expected 0`, node);
    const { weight, k, n } = found.value;
    const swapped = node.integer('transB', 0) !== 0;
    const shape = swapped ? { weight, k: n, n: k } : { weight, k, n };
    const projection = projectionOf(index, 'fused-matmul', node, value, shape, {
      weightTransposed: weight.transposed !== swapped,
    });
    return { ok: true, value: { ...projection, alpha: node.float('alpha', 1) } };
  },
};
