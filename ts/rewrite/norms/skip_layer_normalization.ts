/**
 * SkipLayerNormalization and SkipSimplifiedLayerNormalization (com.microsoft): the norm of input + skip (+ bias). The sum
 * is output 3; whoever reads it, and the fused node, read an Add in its place.
 *
 * Source: ONNX Runtime's contrib operators, "com.microsoft.SkipLayerNormalization".
 */
import type { Node } from '../../onnx/node.js';
import { normOperands, unusedStatistics } from './layer_normalization.js';
import type { Norm, NormRule } from './norm.js';

/** ONNX Runtime's default of both operators. */
const EPSILON = Math.fround(1e-12);

function skip(opType: string, ruleName: string, normType: Norm['normType']): NormRule {
  return {
    name: ruleName,
    match(index, node: Node) {
      if (!node.is(opType, 'com.microsoft')) return undefined;
      const [input, other] = node.inputs;
      const [output, mean = '', deviation = '', sum = ''] = node.outputs;
      if (input === undefined || other === undefined || output === undefined) return undefined;
      const unused = unusedStatistics(index, node, [mean, deviation]);
      if (!unused.ok) return unused;
      const shift = normType === 'layer_norm' ? 3 : undefined;
      const operands = normOperands(index, node, { scale: 2, shift, epsilon: EPSILON });
      if (!operands.ok) return operands;
      const bias = node.inputs[normType === 'layer_norm' ? 4 : 3] ?? '';
      return {
        ok: true,
        value: {
          rule: ruleName,
          normType,
          ...operands.value,
          input,
          sum: { terms: bias === '' ? [input, other] : [input, other, bias], output: sum },
          output,
          node,
          nodes: [node],
        },
      };
    },
  };
}

export const skipLayerNormalization = skip(
  'SkipLayerNormalization',
  'skip-layer-normalization',
  'layer_norm',
);
export const skipSimplifiedLayerNormalization = skip(
  'SkipSimplifiedLayerNormalization',
  'skip-simplified-layer-normalization',
  'rms_norm',
);
