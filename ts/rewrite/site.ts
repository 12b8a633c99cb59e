/** What becomes one node, and what is said of what does not. */
import type { Node } from '../onnx/node.js';
import { OLDEST_OPSET } from './function_body.js';
import type { GraphIndex } from './graph_index.js';
import type { Failure } from './match.js';
import type { Norm } from './norms/norm.js';
import type { Target } from './options.js';
import type { Projection } from './projections/projection.js';
import type { Refusal } from './report.js';
import type { Moved } from './rows.js';
import { rankOf } from './shapes.js';

/** A norm and projections of its result, or projections of one value. */
export interface Site {
  /** The graph that the projections stand in, and now the node. */
  index: GraphIndex;
  /** Absent where the projections read a value as it is. */
  norm: Norm | undefined;
  /** The norm stands in a graph around `index`. It stays where others read it, and goes with the values that nobody reads. */
  outside?: boolean;
  /** What the node reads; with `norm.sum`, the first of its terms. */
  input: string;
  /** The value that the projections read, and now the node, where other nodes move the rows of the norm's result: rows.ts. */
  moved?: string | undefined;
  /** Casts that went with what moves them. */
  recast?: Moved['recast'];
  projections: Projection[];
  targets: Target[];
  /** Those of the projections that lead to attention. */
  attention: ReadonlySet<Node>;
  /** Element type of the input and of the node's outputs (DataType). */
  type: number;
}

/** The nodes that a site's node replaces. */
export function nodesOf({ norm, outside, recast, projections }: Site): Node[] {
  return [
    ...(norm && !outside ? norm.nodes : []),
    ...(recast?.casts ?? []),
    ...projections.flatMap((p) => p.nodes),
  ];
}

/** The node of its graph that a site is named after, and the rule that reports name. */
export function headOf({ norm, outside, projections: [first] }: Site): { node: Node; rule: string } {
  const node = norm && !outside ? norm.node : first?.node;
  if (!node) throw new TypeError('a site without nodes');
  return { node, rule: norm?.rule ?? first?.rule ?? '' };
}

export function refusal(index: GraphIndex, node: Node, rule: string, failure: Failure): Refusal {
  const at = failure.at && failure.at !== node ? { at: failure.at.label } : {};
  const { scope } = index;
  return {
    node: node.label,
    opType: node.opType,
    ...(scope === undefined ? {} : { scope }),
    rule,
    reason: failure.reason,
    ...at,
    position: index.ordinals.get(node) ?? -1,
  };
}

/** Why the opset of a model, or of one of its functions, is too old, if it is. */
export function checkOpset({ opset, scope, model }: GraphIndex): Failure | undefined {
  for (const [what, version] of [
    ['the model', model.opset],
    [`the ${scope ?? 'model'}`, opset],
  ] as const) {
    if (version >= OLDEST_OPSET) continue;
    const found = version ? `is in opset ${version}` : 'names no opset';
    return { ok: false, reason: `${what} ${found}, expected ${OLDEST_OPSET} or newer` };
  }
  return undefined;
}

/**
 * In a function, types cannot be stated, and of an input without known rank the op's shape inference says nothing: such a
 * model would not load with the library. Nor would one with the op in the body of a SequenceMap: ONNX Runtime (1.29) makes
 * a Loop of it and loses what is stated there.
 */
export function checkRank(index: GraphIndex, input: string): Failure | undefined {
  const map = sequenceMapAround(index);
  if (map) {
    const reason = `it is in the body of SequenceMap '${map.label}', of which ONNX Runtime makes a Loop that states no types; the fused op needs them`;
    return { ok: false, reason, at: map };
  }
  if (!index.inFunction || rankOf(index, input) !== undefined) return undefined;
  const reason = `how many dimensions its input '${input}' has is not known; in a function, ONNX Runtime needs to know`;
  return { ok: false, reason };
}

/** The SequenceMap in whose body a graph is, or a call of the function that it belongs to. */
function sequenceMapAround(index: GraphIndex, seen = new Set<GraphIndex>()): Node | undefined {
  if (seen.has(index)) return undefined;
  seen.add(index);
  for (const { index: around, node } of index.users) {
    const found = node.is('SequenceMap') ? node : sequenceMapAround(around, seen);
    if (found) return found;
  }
  return undefined;
}
