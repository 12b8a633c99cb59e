/**
 * The norms that are one node: LayerNormalization (ONNX 17), RMSNormalization (ONNX 23) and SimplifiedLayerNormalization
 * (ONNX Runtime, in the default domain).
 */
import type { Node } from '../../onnx/node.js';
import { isFloat } from '../folded.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';
import { checkEpsilon, checkLastAxis, skipWidening, vectorInput, type Norm, type NormRule } from './norm.js';

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

/**
 * A norm with what casts x up to float32 before it, and the result back to x's type behind it, as mixed-precision models
 * have it: the fused op does both by itself. The norm as it was where the types differ or the result is read in float32.
 */
function withCasts(index: GraphIndex, norm: Norm): Norm {
  const { source, cast } = skipWidening(index, norm.input);
  const [last, ...others] = index.readers(norm.output);
  const type = index.typeOf(source);
  const output = last?.outputs[0];
  if (last?.inputs[0] !== norm.output || others.length > 0 || index.isGraphOutput(norm.output)) return norm;
  if (output === undefined || type === undefined || !isFloat(type) || index.castTo(last) !== type)
    return norm;
  const value = cast?.outputs[0] ?? '';
  // The Cast may serve other readers as well; it goes with the norm only if nobody else needs it.
  const alone = cast && !index.isGraphOutput(value) && index.readers(value).length === 1;
  return { ...norm, input: source, output, nodes: [...(alone ? [cast] : []), ...norm.nodes, last] };
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
      const norm = { rule: ruleName, normType, ...operands.value, input, output, node, nodes: [node] };
      return { ok: true, value: withCasts(index, norm) };
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
