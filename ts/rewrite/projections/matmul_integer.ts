/**
 * DynamicQuantizeLinear -> MatMulInteger by a constant -> Cast to float -> Mul by both scales, in one or two nodes and any
 * order -> Add of a bias, or without: the form of onnxruntime.quantization.quantize_dynamic. Q, K and V share one
 * DynamicQuantizeLinear, which stays where something else reads it. Before it may be a Reshape to two dimensions, which
 * is what a Gemm becomes.
 */
import { DataType, dataTypeName } from '../../onnx/tensor.js';
import type { Node } from '../../onnx/node.js';
import { findConstant } from '../constants.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';
import { columnWeight, dynamicActivations } from './dynamic_quantization.js';
import { biasBehind, type ProjectionRule } from './projection.js';

/** The one reader of a value that is no graph output. */
function onlyReader(index: GraphIndex, value: string): Node | undefined {
  const [reader, ...others] = index.readers(value);
  return others.length > 0 || index.isGraphOutput(value) ? undefined : reader;
}

interface Scaled {
  output: string;
  /** Name of the weight's scale. */
  scale: string;
  nodes: Node[];
}

/** value * activation scale * weight scale. */
function scaledBy(index: GraphIndex, value: string, activationScale: string, at: Node): Match<Scaled> {
  const nodes: Node[] = [];
  let output = value;
  let scale: string | undefined;
  let activations = false;
  while (!activations || scale === undefined) {
    const node = onlyReader(index, output);
    const [a, b] = node?.inputs ?? [];
    const factor = a === output ? b : a;
    const result = node?.outputs[0];
    if (!node?.is('Mul') || factor === undefined || factor === output || result === undefined)
      return fail(`'${output}' is not multiplied by the scales of activations and weight`, at);
    const product = index.producers.get(factor);
    if (factor === activationScale && !activations) activations = true;
    else if (findConstant(index, factor) && scale === undefined) scale = factor;
    else if (
      product?.is('Mul') &&
      product.inputs.includes(activationScale) &&
      !activations &&
      scale === undefined
    ) {
      scale = product.inputs.find((input) => input !== activationScale);
      activations = true;
      if (scale === undefined) return fail(`'${factor}' is the square of the activations' scale`, product);
      if (onlyReader(index, factor)) nodes.push(product);
    } else return fail(`'${factor}' is no scale of these activations or a constant`, node);
    nodes.push(node);
    output = result;
  }
  return { ok: true, value: { output, scale, nodes } };
}

/** The product behind a Reshape of a value to two dimensions and DynamicQuantizeLinear, which only it reads. */
function flattenedBefore(
  index: GraphIndex,
  reshape: Node,
  value: string,
): Match<{ node: Node; quantized: string; nodes: Node[] }> | undefined {
  const reshaped = reshape.outputs[0];
  if (!reshape.is('Reshape') || reshape.inputs[0] !== value || reshaped === undefined) return undefined;
  const dynamic = onlyReader(index, reshaped);
  const quantized = dynamic?.outputs[0];
  if (!dynamic?.is('DynamicQuantizeLinear') || quantized === undefined) return undefined;
  const node = onlyReader(index, quantized);
  if (!node?.is('MatMulInteger')) return undefined;
  const rank = index.dimsOf(reshaped)?.length;
  if (rank !== 2)
    return fail(`'${reshaped}' has ${rank ?? 'an unknown number of'} dimensions, expected two`, reshape);
  return { ok: true, value: { node, quantized, nodes: [reshape, dynamic] } };
}

export const matMulInteger: ProjectionRule = {
  name: 'matmul-integer',
  match(index, start, value) {
    const flat = flattenedBefore(index, start, value);
    if (flat && !flat.ok) return flat;
    const { node, quantized } = flat?.value ?? { node: start, quantized: value };
    const product = node.outputs[0];
    if (!node.is('MatMulInteger') || node.inputs[0] !== quantized || product === undefined) return undefined;
    const activations = dynamicActivations(index, quantized);
    if (!activations) return undefined;
    const [, weightName, zeroOfActivations, zeroPoint] = node.inputs;
    if (zeroOfActivations !== activations.zeroPoint)
      return fail(`MatMulInteger does not take its zero point from DynamicQuantizeLinear`, node);
    const cast = onlyReader(index, product);
    if (!cast?.is('Cast') || cast.integer('to', 0) !== DataType.float) {
      const found = cast?.is('Cast') ? `a Cast to ${dataTypeName(cast.integer('to', 0))}` : 'something else';
      return fail(`'${product}' is read by ${found}, expected one Cast to float32`, node);
    }
    const scaled = scaledBy(index, cast.outputs[0] ?? '', activations.scale, cast);
    if (!scaled.ok) return scaled;
    const { output, scale, nodes } = scaled.value;
    const found = columnWeight(index, node, { weight: weightName, scale, zeroPoint });
    if (!found.ok) return found;
    const { weight, quantization, k, n } = found.value;
    const add = biasBehind(index, output, n);
    const behind = [node, cast, ...nodes, ...(add ? [add.node] : [])];
    // What others read as well stays, and so does what it reads.
    const before = flat?.value.nodes ?? [];
    const shared = before
      .at(-1)
      ?.outputs.some((name) => index.readers(name).some((reader) => !behind.includes(reader)));
    return {
      ok: true,
      value: {
        rule: `${flat ? 'reshape+' : ''}matmul-integer${add ? '+add' : ''}`,
        input: value,
        output: add?.output ?? output,
        k,
        n,
        weight,
        weightTransposed: weight.transposed,
        quantization,
        alpha: 1,
        bias: add?.bias,
        biasFactor: 1,
        roundsActivations: true,
        flattened: flat !== undefined,
        node,
        nodes: shared ? behind : [...before, ...behind],
      },
    };
  },
};
