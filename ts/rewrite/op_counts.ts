/** How many nodes of each operator a graph has. */
import type { Node } from '../onnx/node.js';

/** Nodes of each operator: `MatMul`, with a domain `com.microsoft.FusedMatMul`. */
export type OpCounts = Record<string, number>;

/** `MatMul`, `com.microsoft.FusedMatMul`. */
export function opName(domain: string, opType: string): string {
  return domain === '' ? opType : `${domain}.${opType}`;
}

/** Sorted by name; operators that no node has left are not among them. */
export function countOps(
  ops: Iterable<Pick<Node, 'domain' | 'opType'>>,
  start: OpCounts = {},
  by = 1,
): OpCounts {
  const counts = new Map(Object.entries(start));
  for (const { domain, opType } of ops) {
    const name = opName(domain, opType);
    counts.set(name, (counts.get(name) ?? 0) + by);
  }
  return Object.fromEntries(
    [...counts].filter(([, count]) => count > 0).sort(([a], [b]) => (a < b ? -1 : 1)),
  );
}
