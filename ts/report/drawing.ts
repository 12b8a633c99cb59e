/** The part of a graph that a report draws: some nodes, and what they are connected with. */
import type { Node } from '../onnx/node.js';
import { dataTypeName, type Tensor } from '../onnx/tensor.js';
import type { GraphIndex } from '../rewrite/graph_index.js';
import { opName } from '../rewrite/op_counts.js';

export interface DrawnNode {
  op: string;
  name: string;
  /** Its constant inputs, a line each. */
  constants: string[];
  /** `inside`: what is spoken of; `refused`: where it failed; `value`: an input or output of the graph. */
  kind: 'inside' | 'refused' | 'outside' | 'value';
}

export interface Drawing {
  nodes: DrawnNode[];
  /** Between positions in `nodes`. */
  edges: { from: number; to: number; value: string }[];
  /** Neighbours that are left out. */
  hidden: number;
}

/** Nodes of a drawing: more cannot be read, and layout takes time. */
const MOST_NODES = 80;
const MOST_EDGES = 300;
const MOST_CONSTANTS = 6;

const shapeText = (index: GraphIndex, value: string): string => {
  const { graph } = index.model;
  const info = graph.valueInfos.get(value) ?? graph.inputs.find(({ name }) => name === value);
  return info?.shape ? ` [${info.shape.map((dim) => (dim === '' ? '?' : dim)).join(', ')}]` : '';
};

/** The tensor behind a name, where it is an initialiser or the value of a Constant node. */
function constantOf(index: GraphIndex, value: string): Tensor | undefined {
  const initializer = index.model.graph.initializers.get(value);
  if (initializer) return initializer;
  const producer = index.producers.get(value);
  return producer?.is('Constant') ? producer.attributes.get('value')?.tensor : undefined;
}

/** @param refused of the nodes, the one that is marked. */
export function drawingOf(index: GraphIndex, inside: readonly Node[], refused?: Node): Drawing {
  const nodes: DrawnNode[] = [];
  const edges: Drawing['edges'] = [];
  const places = new Map<Node | string, number>();
  let hidden = 0;
  const core = new Set(inside);
  const constantLine = (value: string): string | undefined => {
    const tensor = constantOf(index, value);
    if (tensor) return `${value}: ${dataTypeName(tensor.type)} [${tensor.dims.join(', ')}]`;
    return index.producers.get(value)?.is('Constant') || index.model.graph.sparseInitializers.has(value)
      ? value
      : undefined;
  };
  const add = (key: Node | string, drawn: () => DrawnNode): number | undefined => {
    const known = places.get(key);
    if (known !== undefined) return known;
    if (nodes.length >= MOST_NODES) {
      hidden++;
      return undefined;
    }
    places.set(key, nodes.length);
    return nodes.push(drawn()) - 1;
  };
  const addNode = (node: Node): number | undefined =>
    add(node, () => {
      const constants = node.inputs.flatMap((value) => constantLine(value) ?? []);
      const more = constants.length - MOST_CONSTANTS;
      return {
        op: opName(node.domain, node.opType),
        name: node.name,
        constants: [...constants.slice(0, MOST_CONSTANTS), ...(more > 0 ? [`and ${more} more`] : [])],
        kind: node === refused ? 'refused' : core.has(node) ? 'inside' : 'outside',
      };
    });
  const addValue = (value: string, what: string): number | undefined =>
    add(`${what} ${value}`, () => ({ op: what, name: value, constants: [], kind: 'value' }));
  const connect = (from: number | undefined, to: number | undefined, value: string): void => {
    if (from === undefined || to === undefined) return;
    const text = `${value}${shapeText(index, value)}`;
    if (edges.length >= MOST_EDGES) return;
    if (edges.some((edge) => edge.from === from && edge.to === to && edge.value === text)) return;
    edges.push({ from, to, value: text });
  };
  for (const node of inside) addNode(node);
  for (const node of inside) {
    const own = places.get(node);
    for (const value of new Set(node.inputs)) {
      if (value === '' || constantLine(value) !== undefined) continue;
      const producer = index.producers.get(value);
      connect(producer ? addNode(producer) : addValue(value, 'input'), own, value);
    }
    for (const value of node.outputs) {
      if (value === '') continue;
      for (const reader of index.readers(value)) if (!core.has(reader)) connect(own, addNode(reader), value);
      if (index.isGraphOutput(value)) connect(own, addValue(value, 'output'), value);
    }
  }
  return { nodes, edges, hidden };
}
