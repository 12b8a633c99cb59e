/**
 * EmbedLayerNormalization (com.microsoft): the norm of a sum of embeddings that it looks up by itself. This rule never
 * matches: there is no value that the fused op could normalise, and the sum would have to be spelt out for it.
 *
 * Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
 */
import { fail } from '../match.js';
import type { NormRule } from './norm.js';

export const embedLayerNormalization: NormRule = {
  name: 'embed-layer-normalization',
  match: (_, node) =>
    node.is('EmbedLayerNormalization', 'com.microsoft')
      ? fail(
          'it normalises embeddings that it looks up itself; there is no value before it to begin at',
          node,
        )
      : undefined,
};
