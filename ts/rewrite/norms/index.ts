/** The norm rules, in the order in which they are tried. */
import { decomposedLayerNorm, decomposedRmsNorm } from './decomposed.js';
import { embedLayerNormalization } from './embed_layer_normalization.js';
import { layerNormalization, rmsNormalization, simplifiedLayerNormalization } from './layer_normalization.js';
import type { NormRule } from './norm.js';
import { skipLayerNormalization, skipSimplifiedLayerNormalization } from './skip_layer_normalization.js';

export const normRules: readonly NormRule[] = [
  layerNormalization,
  rmsNormalization,
  simplifiedLayerNormalization,
  skipLayerNormalization,
  skipSimplifiedLayerNormalization,
  embedLayerNormalization,
  decomposedLayerNorm,
  decomposedRmsNorm,
];
