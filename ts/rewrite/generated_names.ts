/**
 * Names that ONNX Runtime gives to the shapes before and behind a Gemm, when it makes one of MatMul and Add. It sees to it that
 * no node has such a name, but an initialiser of a model that it saved after optimising may: if another pair becomes a Gemm
 * when that model is loaded again, the session fails with "Attempt to replace the existing tensor". A rewrite makes other
 * pairs, in the function body or where the pattern of attention kept ONNX Runtime from touching them, so that these
 * initialisers get other names.
 *
 * Source: onnxruntime/core/optimizer/matmul_add_fusion.cc, which takes the name from Graph::GenerateNodeName.
 */
import type { Node } from '../onnx/node.js';
import { DataType, type Tensor } from '../onnx/tensor.js';
import { OP } from './function_body.js';
import type { Names } from './names.js';
import type { Scope } from './scopes.js';

const GENERATED = /^gemm_(in|out)put_shape(_token_\d+)?$/;

export interface Renamed {
  tensor: Tensor;
  name: string;
  readers: readonly Node[];
}

/** Initialisers of such names that nodes of the graph itself read, and no graph inside of it, and the names that they get. */
export function generatedNames({ index, children }: Scope, names: Names): Renamed[] {
  const renamed: Renamed[] = [];
  for (const [name, tensor] of index.graph.initializers) {
    if (!GENERATED.test(name) || tensor.type !== DataType.int64 || tensor.external) continue;
    if (index.isGraphInput(name) || index.isGraphOutput(name)) continue;
    if (children.some((child) => captures(child, name))) continue;
    const readers = index.readers(name).filter((node) => node.inputs.includes(name));
    if (readers.some((node) => node.graphs.length > 0)) continue;
    renamed.push({ tensor, name: names.unique(`${name}/${OP}`), readers });
  }
  return renamed;
}

/** Does a graph, or one inside of it, read a value of that name from around it? */
function captures({ index, children }: Scope, name: string): boolean {
  if (index.defines(name)) return false;
  return (
    index.isGraphOutput(name) ||
    index.readers(name).some((node) => node.inputs.includes(name)) ||
    children.some((child) => captures(child, name))
  );
}
