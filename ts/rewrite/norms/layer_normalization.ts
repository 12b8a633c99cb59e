/**
 * The norms that are one node: LayerNormalization (ONNX 17), RMSNormalization (ONNX 23) and SimplifiedLayerNormalization
 * (ONNX Runtime, in the default domain).
 */
import type { Node } from '../../onnx/node.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';
import { checkEpsilon, checkLastAxis, vectorInput, type Norm, type NormRule } from './norm.js';

/** Scale, shift and epsilon of a norm that is one node; `shift` undefined: it has none. */
export function normOperands(
  index: GraphIndex,
  node: Node,
  at: { scale: number; shift: number | undefined; epsilon: number },
): Match<Pick<Norm, 'gamma' | 'beta' | 'epsilon'>> {
  const gamma = vectorInput(index, node, at.scale, 'the scale');
  if (!gamma.ok) return gamma;
  const beta =
    at.shift === undefined
      ? { ok: true as const, value: undefined }
      : vectorInput(index, node, at.shift, 'the shift');
  if (!beta.ok) return beta;
  const epsilon = node.float('epsilon', at.epsilon);
  const positive = checkEpsilon(epsilon, node);
  if (!positive.ok) return positive;
  return { ok: true, value: { gamma: gamma.value, beta: beta.value, epsilon } };
}

/** Nobody reads these outputs of a norm: mean and the like. */
export function unusedStatistics(
  index: GraphIndex,
  node: Node,
  outputs: readonly string[],
): Match<undefined> {
  const used = outputs.find(
    (name) => name !== '' && (index.readers(name).length > 0 || index.isGraphOutput(name)),
  );
  return used === undefined
    ? { ok: true, value: undefined }
    : fail(`output '${used}' (a statistic) is used, and the fused op does not give it`, node);
}

function single(opType: string, ruleName: string, normType: Norm['normType']): NormRule {
  return {
    name: ruleName,
    match(index, node: Node) {
      if (!node.is(opType)) return undefined;
      const [input] = node.inputs;
      const [output, ...further] = node.outputs;
      if (input === undefined || output === undefined) return undefined;
      const axis = checkLastAxis(index, node.integer('axis', -1), input, node);
      if (!axis.ok) return axis;
      const unused = unusedStatistics(index, node, further);
      if (!unused.ok) return unused;
      // float32 statistics are what the fused op computes; 16-bit ones would be another result.
      const stash = node.integer('stash_type', 1);
      if (stash !== 1) return fail(`stash_type is ${stash}, expected 1 (float32 statistics)`, node);
      const operands = normOperands(index, node, {
        scale: 1,
        shift: normType === 'layer_norm' ? 2 : undefined,
        epsilon: Math.fround(1e-5),
      });
      if (!operands.ok) return operands;
      return {
        ok: true,
        value: { rule: ruleName, normType, ...operands.value, input, output, node, nodes: [node] },
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
