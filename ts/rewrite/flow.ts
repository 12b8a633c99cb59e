/** Where a value goes on in another graph: into what nodes hold and the functions that they call, and out of these. */
import type { GraphIndex } from './graph_index.js';

export interface Value {
  index: GraphIndex;
  name: string;
}

/** The names that a value has in the graphs next to its own. */
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
      // The first output of a Loop's body says whether it goes on.
      const result = node.outputs[node.is('Loop') ? i - 1 : i];
      if (result) found.push({ index: outer, name: result });
    }
  });
  return found;
}
