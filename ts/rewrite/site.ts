/** What becomes one node, and what is said of what does not. */
import type { Node } from '../onnx/node.js';
import { OLDEST_OPSET } from './function_body.js';
import type { GraphIndex } from './graph_index.js';
import type { Failure } from './match.js';
import type { Norm } from './norms/norm.js';
import type { Target } from './options.js';
import type { Projection } from './projections/projection.js';
import type { Refusal } from './report.js';

/** A norm and projections of its result, or projections of one value. */
export interface Site {
  /** Absent where the projections read a value as it is. */
  norm: Norm | undefined;
  /** What the node reads; with `norm.sum`, the first of its terms. */
  input: string;
  /** The value that the projections read, and now the node, where other nodes move the rows of the norm's result: rows.ts. */
  moved?: string | undefined;
  projections: Projection[];
  targets: Target[];
  /** Element type of the input and of the node's outputs (DataType). */
  type: number;
}

/** The nodes that a site's node replaces. */
export function nodesOf({ norm, projections }: Site): Node[] {
  return [...(norm?.nodes ?? []), ...projections.flatMap((p) => p.nodes)];
}

export function refusal(node: Node, rule: string, failure: Failure): Refusal {
  const at = failure.at && failure.at !== node ? { at: failure.at.label } : {};
  return { node: node.label, opType: node.opType, rule, reason: failure.reason, ...at };
}

/** Why a model's opset is too old, if it is. */
export function checkOpset({ model: { opset } }: GraphIndex): Failure | undefined {
  if (opset >= OLDEST_OPSET) return undefined;
  const found = opset ? `is in opset ${opset}` : 'names no opset';
  return { ok: false, reason: `the model ${found}, expected ${OLDEST_OPSET} or newer` };
}
