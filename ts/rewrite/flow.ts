/**
 * Where a value goes on in another graph, or in the next round of a loop: into what nodes hold and the functions that they
 * call, and out of these.
 *
 * Source: ONNX operators Loop, Scan (9 and newer) and SequenceMap.
 */
import type { Node } from '../onnx/node.js';
import type { GraphIndex } from './graph_index.js';

export interface Value {
  index: GraphIndex;
  name: string;
}

/**
 * The input of a body that has an output's value in the next round, of those that Loop and Scan carry. A Loop's body takes
 * [iteration, condition, carried ...] and gives [condition, carried ..., one for each round ...]; a Scan's takes
 * [carried ..., one for each round ...] and gives the same.
 */
function nextRound(node: Node, inputs: number, output: number): number | undefined {
  if (node.is('Loop')) return output > 0 && output + 1 < inputs ? output + 1 : undefined;
  if (!node.is('Scan')) return undefined;
  return output < inputs - node.integer('num_scan_inputs', 0) ? output : undefined;
}

/** The names that a value has in the graphs next to its own, and in its own in the next round. */
export function passages({ index, name }: Value): Value[] {
  const found: Value[] = [];
  for (const reader of index.readers(name)) {
    for (const inner of index.within.get(reader) ?? []) {
      // A graph that a node holds sees what is around it; a function does not.
      if (inner.parent === index && !inner.defines(name)) found.push({ index: inner, name });
      reader.inputs.forEach((input, i) => {
        const own = inner.graph.inputs[i]?.name;
        if (input === name && own !== undefined) found.push({ index: inner, name: own });
      });
    }
  }
  index.graph.outputs.forEach((output, i) => {
    if (output.name !== name) return;
    for (const { index: outer, node } of index.users) {
      const next = nextRound(node, index.graph.inputs.length, i);
      const carried = next === undefined ? undefined : index.graph.inputs[next]?.name;
      if (carried !== undefined) found.push({ index, name: carried });
      // The first output of a Loop's body says whether it goes on.
      const result = node.outputs[node.is('Loop') ? i - 1 : i];
      if (result) found.push({ index: outer, name: result });
    }
  });
  return found;
}
