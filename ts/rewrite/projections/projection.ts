/** What a projection rule finds, and the pieces that rules share. */
import { DataType, dataTypeName } from '../../onnx/tensor.js';
import type { Node } from '../../onnx/node.js';
import { findConstant, vectorLength, whyNotConstant, type Constant } from '../constants.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';
import type { Quantization } from '../weights/quantization.js';

/** output = value * weight + bias, over the last axis of the value. */
export interface Projection {
  rule: string;
  /** The value that the projection reads: the norm's output, or what Identity and the like make of it. */
  input: string;
  output: string;
  k: number;
  n: number;
  weight: Constant;
  /** The weight's tensor, as stored, is [N, K]. */
  weightTransposed: boolean;
  /** What an integer weight's elements stand for; `weight.type` is the type of those values then. Absent: floats. */
  quantization?: Quantization | undefined;
  /** Factor on the weight (Gemm's alpha). */
  alpha: number;
  bias: Constant | undefined;
  /** Factor on the bias (Gemm's beta). */
  biasFactor: number;
  /**
   * The norm's result was cast from float32 to this 16-bit type (DataType) before the product, whose result has that type.
   * The fused op takes the norm's float32 and rounds its own result to it, once.
   */
  narrowed?: number;
  /** The model rounds the value to 8 bits before the product, with a scale that it finds when it runs. */
  roundsActivations?: true;
  /** The output has two dimensions, all leading ones made into one (Reshape before a Gemm). */
  flattened: boolean;
  /** Outputs in place of `output`, where it is only read in pieces along the last axis; their columns add up to n. */
  pieces?: readonly { output: string; n: number }[];
  /** The node that multiplies. */
  node: Node;
  nodes: Node[];
}

/** A rule returns undefined for a node that is no such projection of `value`. It holds no state. */
export interface ProjectionRule {
  name: string;
  match(index: GraphIndex, node: Node, value: string): Match<Projection> | undefined;
}

/** Is this an element type (DataType) that the op calculates in? */
export function isFloat(type: number): boolean {
  return type === DataType.float || type === DataType.float16 || type === DataType.bfloat16;
}

/** The weight of a projection: constant, two dimensions, a float type. */
export function weightOf(
  index: GraphIndex,
  node: Node,
  position: number,
): Match<{ weight: Constant; k: number; n: number; quantization?: undefined }> {
  const name = node.inputs[position] ?? '';
  const weight = findConstant(index, name);
  if (!weight) return fail(`the weight is not constant: ${whyNotConstant(index, name)}`, node);
  const { dims, type } = weight.tensor;
  if (dims.length !== 2)
    return fail(`the weight '${name}' has shape [${dims.join(', ')}], expected two dimensions`, node);
  if (!isFloat(type)) {
    return fail(`the weight '${name}' is ${dataTypeName(type)}, expected float32, float16 or bfloat16`, node);
  }
  const [rows = 0, columns = 0] = dims;
  if (rows === 0 || columns === 0) return fail(`the weight '${name}' is empty, [${dims.join(', ')}]`, node);
  return {
    ok: true,
    value: { weight, k: weight.transposed ? columns : rows, n: weight.transposed ? rows : columns },
  };
}

/** An Add of a constant [N] behind a product, if the product is read by nothing else. */
export function biasBehind(
  index: GraphIndex,
  product: string,
  n: number,
): { node: Node; bias: Constant; output: string } | undefined {
  const [reader, ...others] = index.readers(product);
  const output = reader?.outputs[0];
  if (!reader?.is('Add') || others.length > 0 || output === undefined || index.isGraphOutput(product))
    return undefined;
  const [a, b] = reader.inputs;
  const other = a === product ? b : a;
  const bias = other === undefined || other === product ? undefined : findConstant(index, other);
  if (!bias || vectorLength(bias) !== n) return undefined;
  return isFloat(bias.type) ? { node: reader, bias, output } : undefined;
}

/**
 * One node that multiplies `value`, with the Add of a bias behind it where it has no bias of its own.
 *
 * @param rule the name of the rule; an Add appends `+add`.
 */
export function projectionOf(
  index: GraphIndex,
  rule: string,
  node: Node,
  value: string,
  { weight, quantization, k, n }: Pick<Projection, 'weight' | 'quantization' | 'k' | 'n'>,
  {
    bias,
    weightTransposed = weight.transposed,
  }: { bias?: Constant | undefined; weightTransposed?: boolean } = {},
): Projection {
  const product = node.outputs[0] ?? '';
  const add = bias ? undefined : biasBehind(index, product, n);
  return {
    rule: add ? `${rule}+add` : rule,
    input: value,
    output: add?.output ?? product,
    k,
    n,
    weight,
    weightTransposed,
    quantization,
    alpha: 1,
    bias: bias ?? add?.bias,
    biasFactor: 1,
    flattened: false,
    node,
    nodes: add ? [node, add.node] : [node],
  };
}
