/** MatMul by a constant [K, N], also an int8 or uint8 one behind DequantizeLinear, with an Add of a constant [N] behind it in either order, or without. */
import { dequantizedWeight } from '../dequantized.js';
import { biasBehind, weightOf, type ProjectionRule } from './projection.js';

export const matMul: ProjectionRule = {
  name: 'matmul',
  match(index, node, value) {
    const product = node.outputs[0];
    if (!node.is('MatMul') || node.inputs[0] !== value || node.inputs[1] === value || product === undefined)
      return undefined;
    const found = dequantizedWeight(index, node, 1, false) ?? weightOf(index, node, 1);
    if (!found.ok) return found;
    const { weight, quantization, k, n } = found.value;
    const add = biasBehind(index, product, n);
    return {
      ok: true,
      value: {
        rule: `${quantization ? 'dequantize+' : ''}matmul${add ? '+add' : ''}`,
        input: value,
        output: add?.output ?? product,
        k,
        n,
        weight,
        weightTransposed: weight.transposed,
        quantization,
        alpha: 1,
        bias: add?.bias,
        biasFactor: 1,
        flattened: false,
        node,
        nodes: add ? [node, add.node] : [node],
      },
    };
  },
};
