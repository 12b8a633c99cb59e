/** The names of a model's values and nodes, and new ones that collide with none of them. */
import type { Graph } from '../onnx/graph.js';
import { readFields, text } from '../onnx/wire.js';

export class Names {
  private readonly taken = new Set<string>();

  constructor(graph: Graph) {
    for (const node of graph.nodes) {
      for (const name of [node.name, ...node.inputs, ...node.outputs]) this.taken.add(name);
      for (const bytes of node.graphs) this.reserve(bytes, 0);
    }
    for (const list of [graph.inputs, graph.outputs]) for (const { name } of list) this.taken.add(name);
    for (const names of [graph.initializers.keys(), graph.sparseInitializers, graph.valueInfos.keys()])
      for (const name of names) this.taken.add(name);
  }

  /** `base`, or `base_1`, `base_2`, ... where that is taken. */
  readonly unique = (base: string): string => {
    let name = base;
    for (let i = 1; this.taken.has(name); i++) name = `${base}_${i}`;
    this.taken.add(name);
    return name;
  };

  /** Names inside subgraphs shadow or read outer ones: none of them is used anew. */
  private reserve(graph: Uint8Array, depth: number): void {
    if (depth > 32) return;
    for (const field of readFields(graph, 'a subgraph')) {
      if (field.number === 1) {
        for (const inner of readFields(field.value, 'a node')) {
          if (inner.number <= 3) this.taken.add(text(inner));
          if (inner.number !== 5) continue;
          for (const part of readFields(inner.value, 'an attribute')) {
            if (part.number === 6 || part.number === 11) this.reserve(part.value, depth + 1);
          }
        }
      } else if ([5, 11, 12].includes(field.number)) {
        const name = readFields(field.value, 'a value').find(
          (f) => f.number === (field.number === 5 ? 8 : 1),
        );
        if (name) this.taken.add(text(name));
      }
    }
  }
}
