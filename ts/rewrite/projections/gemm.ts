/**
 * Gemm with a constant B and C: y = alpha * A * B + beta * C, directly behind a two-dimensional norm or behind a Reshape
 * to two dimensions. Gemm itself says that its A is [M, K] with B's K, so such a Reshape joins the leading dimensions.
 */
import { findConstant, vectorLength, whyNotConstant } from '../constants.js';
import { dequantizedWeight } from '../dequantized.js';
import { fail } from '../match.js';
import { weightOf, type ProjectionRule } from './projection.js';

export const gemm: ProjectionRule = {
  name: 'gemm',
  match(index, start, value) {
    let node = start;
    let input = value;
    const flattened = start.is('Reshape');
    if (flattened) {
      const reshaped = start.outputs[0] ?? '';
      const [reader, ...others] = index.readers(reshaped);
      if (start.inputs[0] !== value || !reader?.is('Gemm')) return undefined;
      if (others.length > 0 || index.isGraphOutput(reshaped)) {
        return fail(`'${reshaped}', the value made two-dimensional, is also used elsewhere`, start);
      }
      node = reader;
      input = reshaped;
    }
    const output = node.outputs[0];
    if (!node.is('Gemm') || node.inputs[0] !== input || node.inputs[1] === input || output === undefined)
      return undefined;
    if (node.integer('transA', 0) !== 0) return fail('Gemm has transA=1, expected 0', node);
    const transB = node.integer('transB', 0) !== 0;
    const found = dequantizedWeight(index, node, 1, transB) ?? weightOf(index, node, 1);
    if (!found.ok) return found;
    const { weight, quantization } = found.value;
    const [k, n] = transB ? [found.value.n, found.value.k] : [found.value.k, found.value.n];
    const c = node.inputs[2];
    const bias = c ? findConstant(index, c) : undefined;
    const biasFactor = node.float('beta', 1);
    if (c && !bias) return fail(`C is not constant: ${whyNotConstant(index, c)}`, node);
    const length =
      bias?.tensor.dims.length === 2 && bias.tensor.dims[0] === 1 ? bias.tensor.dims[1] : vectorLength(bias);
    if (bias && biasFactor !== 0 && (length !== n || bias.transposed)) {
      return fail(`C has shape [${bias.tensor.dims.join(', ')}], expected [N] = [${n}]`, node);
    }
    return {
      ok: true,
      value: {
        rule: `${quantization ? 'dequantize+' : ''}${flattened ? 'reshape+' : ''}gemm`,
        input: value,
        output,
        k,
        n,
        weight,
        weightTransposed: weight.transposed !== transB,
        quantization,
        alpha: node.float('alpha', 1),
        bias: biasFactor === 0 ? undefined : bias,
        biasFactor,
        flattened,
        node,
        nodes: flattened ? [start, node] : [node],
      },
    };
  },
};
