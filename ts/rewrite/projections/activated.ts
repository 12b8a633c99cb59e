/**
 * Products with the activation behind them in one node (com.microsoft), as ONNX Runtime's extended optimisations write them,
 * directly behind a value or behind a Reshape. The fused op has no activation, so that this rule never matches; it says why.
 *
 * Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
 */
import type { Node } from '../../onnx/node.js';
import { fail } from '../match.js';
import type { ProjectionRule } from './projection.js';

/** What stands for the attribute `activation` of those that have none. */
const ACTIVATED = new Map([
  ['FusedGemm', 'its activation'],
  ['FusedMatMulActivation', 'its activation'],
  ['GemmFastGelu', 'FastGelu'],
]);

const isActivated = (node: Node): boolean =>
  ACTIVATED.has(node.opType) && node.is(node.opType, 'com.microsoft');

export const activated: ProjectionRule = {
  name: 'activated',
  match(index, start, value) {
    if (start.inputs[0] !== value) return undefined;
    const behind = start.is('Reshape') ? index.readers(start.outputs[0] ?? '') : [start];
    const node = behind.find(isActivated);
    if (!node || (node !== start && node.inputs[0] !== start.outputs[0])) return undefined;
    const activation = node.attributes.get('activation')?.string ?? ACTIVATED.get(node.opType) ?? '';
    return fail(
      `${node.opType} applies ${activation} to its product, which the fused op does not; in the model before ONNX Runtime's extended optimisations they are nodes of their own`,
      node,
    );
  },
};
