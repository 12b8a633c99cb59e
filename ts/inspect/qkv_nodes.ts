/** The com.deepspeed.QKVGemm nodes that a model has. */
import type { Model } from '../onnx/model.js';
import type { Node } from '../onnx/node.js';
import { elementSize, type DataSource } from '../onnx/tensor.js';
import { findConstant, type Constant } from '../rewrite/constants.js';
import { DOMAIN, OP } from '../rewrite/function_body.js';
import type { GraphIndex } from '../rewrite/graph_index.js';
import { scopesOf } from '../rewrite/scopes.js';

export interface QkvNode {
  node: Node;
  /** Of the graph that holds it: the main graph, a subgraph or a function. */
  index: GraphIndex;
  /** Absent where the weight is computed, or comes with each call. */
  weight?: { tensor: Constant['tensor']; k: number; n: number };
}

/** All of them, in the graph, its subgraphs and the functions that it calls. */
export function qkvNodes(model: Model, source?: DataSource): QkvNode[] {
  return scopesOf(model, source).flatMap(({ index }) =>
    index.graph.nodes.filter((node) => node.is(OP, DOMAIN)).map((node) => describe(node, index)),
  );
}

function describe(node: Node, index: GraphIndex): QkvNode {
  const tensor = findConstant(index, node.inputs[1] ?? '')?.tensor;
  const [k, n] = (node.integer('transposed', 0) === 1 ? tensor?.dims.toReversed() : tensor?.dims) ?? [];
  return tensor && k !== undefined && n !== undefined
    ? { node, index, weight: { tensor, k, n } }
    : { node, index };
}

/** Bytes of the constants at these inputs of a node. */
export function operandBytes({ node, index }: QkvNode, inputs: readonly number[]): number {
  return inputs.reduce((sum, i) => {
    const tensor = findConstant(index, node.inputs[i] ?? '')?.tensor;
    return sum + (tensor ? tensor.count * (elementSize(tensor.type) ?? 0) : 0);
  }, 0);
}
