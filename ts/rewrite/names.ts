/** The names of a model's values and nodes, in all its graphs, and new ones that collide with none of them. */
import type { Graph } from '../onnx/graph.js';

export class Names {
  private readonly taken = new Set<string>();

  /** @param graphs the model's own, and all that names must not be shadowed in or read from. */
  constructor(graphs: Iterable<Graph>) {
    for (const graph of graphs) {
      for (const node of graph.nodes)
        for (const name of [node.name, ...node.inputs, ...node.outputs]) this.taken.add(name);
      for (const list of [graph.inputs, graph.outputs]) for (const { name } of list) this.taken.add(name);
      for (const names of [graph.initializers.keys(), graph.sparseInitializers, graph.valueInfos.keys()])
        for (const name of names) this.taken.add(name);
    }
  }

  /** `base`, or `base_1`, `base_2`, ... where that is taken. */
  readonly unique = (base: string): string => {
    let name = base;
    for (let i = 1; this.taken.has(name); i++) name = `${base}_${i}`;
    this.taken.add(name);
    return name;
  };
}
