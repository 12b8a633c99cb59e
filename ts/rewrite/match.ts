/** What rules return: a match, or the check that failed with the node it looked at. */
import type { Node } from '../onnx/node.js';

export interface Failure {
  ok: false;
  /** The failed check with the values it saw. */
  reason: string;
  at?: Node;
}

export type Match<T> = { ok: true; value: T } | Failure;

export function fail(reason: string, at?: Node): Failure {
  return at ? { ok: false, reason, at } : { ok: false, reason };
}
