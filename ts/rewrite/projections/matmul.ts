/** MatMul by a constant [K, N], with an Add of a constant [N] behind it in either order, or without. */
import { biasBehind, weightOf, type ProjectionRule } from './projection.js';

export const matMul: ProjectionRule = {
  name: 'matmul',
  match(index, node, value) {
    const product = node.outputs[0];
    if (!node.is('MatMul') || node.inputs[0] !== value || node.inputs[1] === value || product === undefined)
      return undefined;
    const found = weightOf(index, node, 1);
    if (!found.ok) return found;
    const { weight, k, n } = found.value;
    const add = biasBehind(index, product, n);
    return {
      ok: true,
      value: {
        rule: add ? 'matmul+add' : 'matmul',
        input: value,
        output: add?.output ?? product,
        k,
        n,
        weight,
        weightTransposed: weight.transposed,
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
