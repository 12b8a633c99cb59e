/**
 * FusedMatMul (com.microsoft): alpha * A * B, or B transposed, with an Add of a bias behind it or without. ONNX Runtime's
 * extended optimisations make it of MatMul and a Transpose or a factor before or behind it. TransposeMatMul is its former name.
 *
 * Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
 */
import { dequantizedWeight } from '../dequantized.js';
import { fail } from '../match.js';
import { projectionOf, weightOf, type ProjectionRule } from './projection.js';

const NAMES = ['FusedMatMul', 'TransposeMatMul'];

export const fusedMatMul: ProjectionRule = {
  name: 'fused-matmul',
  match(index, node, value) {
    if (!NAMES.some((opType) => node.is(opType, 'com.microsoft'))) return undefined;
    if (node.inputs[0] !== value || node.inputs[1] === value || !node.outputs[0]) return undefined;
    const turns = ['transA', 'transBatchA', 'transBatchB'].find((name) => node.integer(name, 0) !== 0);
    if (turns !== undefined) return fail(`${node.opType} has ${turns}=1, expected 0`, node);
    const swapped = node.integer('transB', 0) !== 0;
    const found = dequantizedWeight(index, node, 1, swapped) ?? weightOf(index, node, 1);
    if (!found.ok) return found;
    const { weight, quantization, k, n } = found.value;
    const shape = swapped ? { weight, quantization, k: n, n: k } : { weight, quantization, k, n };
    const rule = quantization ? 'dequantize+fused-matmul' : 'fused-matmul';
    const projection = projectionOf(index, rule, node, value, shape, {
      weightTransposed: weight.transposed !== swapped,
    });
    return { ok: true, value: { ...projection, alpha: node.float('alpha', 1) } };
  },
};
