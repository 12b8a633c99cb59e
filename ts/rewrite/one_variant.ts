/**
 * Nodes of several kinds brought to one function body, where all that sets them apart is what a node can state as well: how
 * many outputs its columns are cut into, and that its bias is zeros. Several bodies need `overload`, which ONNX Runtime
 * before 1.27 does not know; where they are needed anyway, nodes stay as they are.
 */
import { encodeVector, variantKey, type Variant } from './function_body.js';
import type { BuiltNode } from './fused_node.js';
import type { GraphIndex } from './graph_index.js';
import type { Names } from './names.js';

/** Position of the operator's input. */
const BIAS = 4;

/** @returns whether all nodes have one body now. */
export function toOneVariant(
  built: readonly { node: BuiltNode; index: GraphIndex }[],
  names: Names,
): boolean {
  const count = (keyOf: (variant: Omit<Variant, 'norm'>) => string): number =>
    new Set(built.map(({ node }) => keyOf(node.variant))).size;
  if (count(variantKey) <= 1) return true;
  if (count((variant) => variantKey({ ...variant, splits: 0, bias: true })) > 1) return false;
  const splits = Math.max(...built.map(({ node }) => node.splits.length));
  const bias = built.some(({ node }) => node.variant.bias);
  for (const { node, index } of built) {
    // Pieces without columns; nothing reads them, and kernels pass over them.
    while (node.splits.length < splits) node.splits.push(0);
    if (bias && !node.variant.bias) {
      const name = names.unique(`${node.name}.bias`);
      const parts = [encodeVector(name, new Float32Array(node.report.n))];
      node.initializers.push({ home: index, parts });
      while (node.inputs.length < BIAS) node.inputs.push('');
      node.inputs[BIAS] = name;
    }
    node.variant = { ...node.variant, splits, bias };
  }
  return true;
}
