/**
 * Which projections of a norm lead to attention, and to which: by the flow of data, not by names. A projection leads to
 * attention if its result reaches a product of two computed values (Q K^T, P V) or an attention operator before any
 * product with a constant. The result of an MLP's projection meets a constant weight first.
 */
import type { Node } from '../onnx/node.js';
import { INTEGER_PRODUCTS } from './dequantized.js';
import type { GraphIndex } from './graph_index.js';
import type { Projection } from './projections/projection.js';

const ATTENTION_OPS = new Set([
  'Attention',
  'MultiHeadAttention',
  'GroupQueryAttention',
  'PagedAttention',
  'SparseAttention',
  'DecoderMaskedMultiHeadAttention',
  'PackedMultiHeadAttention',
]);
/** Products of two values, each of which may be constant. */
const PRODUCTS = new Set(
  'MatMul FusedMatMul TransposeMatMul FusedMatMulActivation Gemm FusedGemm GemmFastGelu Einsum'.split(' '),
);
/** Ops whose result says how large a value is, not what it is. */
const SHAPE_OPS = new Set(['Shape', 'Size']);
/** Products with constants under other names; what lies behind them is another layer. */
const WEIGHTED_OPS = new Set(['MatMulNBits', 'MatMulBnb4', 'Conv', 'ConvInteger']);
const MAX_NODES = 4000;

/** The attention that a value leads to: its products of computed values and attention operators. */
export function attentionBehind(index: GraphIndex, value: string): Set<Node> {
  const found = new Set<Node>();
  const seen = new Set<Node>();
  const queue = [value];
  while (queue.length > 0 && seen.size < MAX_NODES) {
    const name = queue.shift() ?? '';
    for (const node of index.readers(name)) {
      if (seen.has(node) || SHAPE_OPS.has(node.opType)) continue;
      seen.add(node);
      if (PRODUCTS.has(node.opType)) {
        if (node.inputs.some((input) => index.isConstant(input))) continue;
        found.add(node);
      } else if (INTEGER_PRODUCTS.has(node.opType)) {
        const operand = node.inputs[INTEGER_PRODUCTS.get(node.opType) ?? 1] ?? '';
        if (index.isConstant(operand)) continue;
        found.add(node);
      } else if (WEIGHTED_OPS.has(node.opType)) {
        continue;
      } else if (ATTENTION_OPS.has(node.opType)) {
        found.add(node);
        continue;
      }
      // A dynamic scale and zero point say how large a value is; they go round the product that it meets.
      const outputs = node.is('DynamicQuantizeLinear') ? node.outputs.slice(0, 1) : node.outputs;
      for (const output of outputs) if (output !== '') queue.push(output);
    }
  }
  return found;
}

/** Projections that lead to the same attention, in graph order, and those that lead to none. */
export function groupByAttention(
  index: GraphIndex,
  projections: readonly Projection[],
): { groups: Projection[][]; others: Projection[] } {
  const groups: { members: Projection[]; attention: Set<Node> }[] = [];
  const others: Projection[] = [];
  for (const projection of projections) {
    const attention = attentionBehind(index, projection.output);
    if (attention.size === 0) {
      others.push(projection);
      continue;
    }
    const touching = groups.filter((group) => [...attention].some((node) => group.attention.has(node)));
    const merged = { members: [...touching.flatMap((group) => group.members), projection], attention };
    for (const group of touching) {
      for (const node of group.attention) attention.add(node);
      groups.splice(groups.indexOf(group), 1);
    }
    groups.push(merged);
  }
  const byPosition = (a: Projection, b: Projection): number =>
    index.position(a.node) - index.position(b.node);
  return { groups: groups.map((group) => group.members.sort(byPosition)), others };
}
