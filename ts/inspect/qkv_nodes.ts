/** The com.deepspeed.QKVGemm nodes that a model has. */
import { Graph } from '../onnx/graph.js';
import type { Node } from '../onnx/node.js';
import { elementSize, type Tensor } from '../onnx/tensor.js';
import { DOMAIN, OP } from '../rewrite/function_body.js';

export interface QkvNode {
  node: Node;
  /** The graph that holds it: the main graph, or a subgraph. */
  graph: Graph;
  /** Absent where the weight is no initialiser of its graph. */
  weight?: { tensor: Tensor; k: number; n: number };
}

/** All of them, in the graph and its subgraphs. */
export function qkvNodes(graph: Graph): QkvNode[] {
  return graph.nodes.flatMap((node) => {
    const inner = node.graphs.flatMap((bytes) => qkvNodes(new Graph(bytes)));
    return node.is(OP, DOMAIN) ? [describe(node, graph), ...inner] : inner;
  });
}

function describe(node: Node, graph: Graph): QkvNode {
  const tensor = graph.initializers.get(node.inputs[1] ?? '');
  const [k, n] = (node.integer('transposed', 0) === 1 ? tensor?.dims.toReversed() : tensor?.dims) ?? [];
  return tensor && k !== undefined && n !== undefined
    ? { node, graph, weight: { tensor, k, n } }
    : { node, graph };
}

/** Bytes of the initialisers at these inputs of a node. */
export function operandBytes({ node, graph }: QkvNode, inputs: readonly number[]): number {
  return inputs.reduce((sum, i) => {
    const tensor = graph.initializers.get(node.inputs[i] ?? '');
    return sum + (tensor ? tensor.count * (elementSize(tensor.type) ?? 0) : 0);
  }, 0);
}
