/**
 * The norms that are one node: LayerNormalization (ONNX 17), RMSNormalization (ONNX 23) and SimplifiedLayerNormalization
 * (ONNX Runtime, in the default domain).
 */
import type { Node } from '../../onnx/node.js';
import { fail } from '../match.js';
import { checkEpsilon, checkLastAxis, vectorInput, type NormRule } from './norm.js';

function single(opType: string, ruleName: string, normType: 'layer_norm' | 'rms_norm'): NormRule {
  return {
    name: ruleName,
    match(index, node: Node) {
      if (!node.is(opType)) return undefined;
      const [input] = node.inputs;
      const [output, ...further] = node.outputs;
      if (input === undefined || output === undefined) return undefined;
      const axis = checkLastAxis(index, node.integer('axis', -1), input, node);
      if (!axis.ok) return axis;
      const extra = further.find(
        (name) => name !== '' && (index.readers(name).length > 0 || index.isGraphOutput(name)),
      );
      if (extra !== undefined)
        return fail(`output '${extra}' (a statistic) is used, and the fused op does not give it`, node);
      // float32 statistics are what the fused op computes; 16-bit ones would be another result.
      const stash = node.integer('stash_type', 1);
      if (stash !== 1) return fail(`stash_type is ${stash}, expected 1 (float32 statistics)`, node);
      const gamma = vectorInput(index, node, 1, 'the scale');
      if (!gamma.ok) return gamma;
      const beta =
        normType === 'layer_norm'
          ? vectorInput(index, node, 2, 'the shift')
          : { ok: true as const, value: undefined };
      if (!beta.ok) return beta;
      const epsilon = node.float('epsilon', Math.fround(1e-5));
      const positive = checkEpsilon(epsilon, node);
      if (!positive.ok) return positive;
      return {
        ok: true,
        value: {
          rule: ruleName,
          normType,
          epsilon,
          input,
          output,
          gamma: gamma.value,
          beta: beta.value,
          node,
          nodes: [node],
        },
      };
    },
  };
}

export const layerNormalization = single('LayerNormalization', 'layer-normalization', 'layer_norm');
export const rmsNormalization = single('RMSNormalization', 'rms-normalization', 'rms_norm');
export const simplifiedLayerNormalization = single(
  'SimplifiedLayerNormalization',
  'simplified-layer-normalization',
  'rms_norm',
);
