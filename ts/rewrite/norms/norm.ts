/** What a norm rule finds, and the pieces that rules share. */
import { DataType, dataTypeName } from '../../onnx/tensor.js';
import type { Node } from '../../onnx/node.js';
import {
  findConstant,
  integersOf,
  scalarOf,
  vectorLength,
  whyNotConstant,
  type Constant,
} from '../constants.js';
import { isFloat, isNarrow } from '../folded.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';

/** A norm over the last axis: output = norm(input) * gamma + beta. */
export interface Norm {
  rule: string;
  normType: 'layer_norm' | 'rms_norm';
  epsilon: number;
  /** What is normalised; with `sum`, the first of its terms, which has the sum's shape and type. */
  input: string;
  /**
   * What is normalised is a sum that the norm's node makes by itself: its terms, in the order in which they are added, and
   * the name under which the node gives the sum to others ('' if it does not).
   */
  sum?: { terms: string[]; output: string };
  output: string;
  gamma: Constant | undefined;
  beta: Constant | undefined;
  /** The node that reports name. */
  node: Node;
  /** All nodes that the norm consists of; what they produce, other than `output`, is used by nothing else. */
  nodes: Node[];
}

/** A rule returns undefined for a node at which its pattern does not begin. It holds no state. */
export interface NormRule {
  name: string;
  match(index: GraphIndex, node: Node): Match<Norm> | undefined;
}

/** The nodes' intermediate values are read by these nodes only and are no graph outputs. */
export function checkEnclosed(index: GraphIndex, nodes: readonly Node[], output: string): Match<undefined> {
  const inside = new Set(nodes);
  for (const node of nodes) {
    for (const name of node.outputs) {
      if (name === '' || name === output) continue;
      if (index.isGraphOutput(name)) return fail(`intermediate value '${name}' is a graph output`, node);
      const outside = index.readers(name).find((reader) => !inside.has(reader));
      if (outside)
        return fail(
          `intermediate value '${name}' is also read by ${outside.opType} '${outside.label}'`,
          node,
        );
    }
  }
  return { ok: true, value: undefined };
}

/** A constant vector [K] (or [1, ..., K]) of a float type for gamma or beta; undefined where there is no such input. */
export function vectorInput(
  index: GraphIndex,
  node: Node,
  position: number,
  what: string,
): Match<Constant | undefined> {
  const name = node.inputs[position];
  if (name === undefined || name === '') return { ok: true, value: undefined };
  const constant = findConstant(index, name);
  if (!constant) return fail(`${what} is not constant: ${whyNotConstant(index, name)}`, node);
  if (constant.tensor.dims.length !== 1) {
    return fail(
      `${what} '${name}' has shape [${constant.tensor.dims.join(', ')}], expected one dimension [K]`,
      node,
    );
  }
  return checkFloat(constant, what, node);
}

export function checkFloat(constant: Constant, what: string, node: Node): Match<Constant> {
  if (!isFloat(constant.type)) {
    return fail(
      `${what} '${constant.name}' is ${dataTypeName(constant.type)}, expected float32, float16 or bfloat16`,
      node,
    );
  }
  return { ok: true, value: constant };
}

/** An epsilon that the op takes. */
export function checkEpsilon(epsilon: number, node: Node): Match<undefined> {
  return epsilon >= 0 && Number.isFinite(epsilon)
    ? { ok: true, value: undefined }
    : fail(`epsilon is ${epsilon}, expected a number >= 0`, node);
}

/** The axis is the last one. A positive axis needs a known rank. */
export function checkLastAxis(index: GraphIndex, axis: number, value: string, node: Node): Match<undefined> {
  if (axis === -1) return { ok: true, value: undefined };
  const dims = index.dimsOf(value);
  if (axis > 0 && dims && axis === dims.length - 1) return { ok: true, value: undefined };
  return fail(
    `axis is ${axis}${dims ? ` of ${dims.length} dimensions` : ', rank unknown'}, expected the last (-1)`,
    node,
  );
}

/** ReduceMean over the last axis with keepdims: what it reduces. Axes are an attribute or, from opset 18 on, an input. */
export function meanOf(
  index: GraphIndex,
  name: string | undefined,
): Match<{ node: Node; input: string }> | undefined {
  const node = name === undefined ? undefined : index.producers.get(name);
  const input = node?.inputs[0];
  if (!node?.is('ReduceMean') || input === undefined) return undefined;
  const axesInput = node.inputs[1];
  const axes = axesInput ? integersOf(findConstant(index, axesInput), index.source) : node.integers('axes');
  if (axes?.length !== 1)
    return fail(
      `ReduceMean has axes [${axes?.slice(0, 8).join(', ') ?? 'not constant, or all'}], expected [-1]`,
      node,
    );
  const axis = checkLastAxis(index, axes[0] ?? 0, input, node);
  if (!axis.ok) return axis;
  if (node.integer('keepdims', 1) !== 1) return fail('ReduceMean has keepdims=0, expected 1', node);
  return { ok: true, value: { node, input } };
}

/** name = d * d, as Pow(d, 2) or Mul(d, d). */
export function squareOf(index: GraphIndex, name: string): { node: Node; input: string } | undefined {
  const node = index.producers.get(name);
  const [a, b] = node?.inputs ?? [];
  if (!node || a === undefined) return undefined;
  if (node.is('Mul') && a === b) return { node, input: a };
  if (node.is('Pow') && scalarOf(index, b) === 2) return { node, input: a };
  return undefined;
}

/** name = a + c with a constant scalar c, in either order. */
export function addScalar(
  index: GraphIndex,
  name: string,
): { node: Node; input: string; scalar: number } | undefined {
  const node = index.producers.get(name);
  const [a, b] = node?.inputs ?? [];
  if (!node?.is('Add') || a === undefined || b === undefined) return undefined;
  const right = scalarOf(index, b);
  if (right !== undefined) return { node, input: a, scalar: right };
  const left = scalarOf(index, a);
  return left === undefined ? undefined : { node, input: b, scalar: left };
}

/**
 * The rest of a decomposed norm behind its normalised value: Cast, Mul by gamma [K], and, for LayerNorm, Add of beta [K].
 * Follows a value only while it has one reader, so that what is read elsewhere ends the norm.
 */
export function readTail(
  index: GraphIndex,
  value: string,
  allowBeta: boolean,
): { output: string; gamma: Constant | undefined; beta: Constant | undefined; nodes: Node[] } {
  let output = value;
  let gamma: Constant | undefined;
  let beta: Constant | undefined;
  const nodes: Node[] = [];
  for (;;) {
    const [reader, ...others] = index.readers(output);
    const result = reader?.outputs[0];
    if (!reader || others.length > 0 || result === undefined || index.isGraphOutput(output)) break;
    if (reader.inputs[0] === output && index.castTo(reader) !== undefined) {
      // Taken along where the value goes on as float; the caller checks the types at both ends.
    } else if (reader.is('Mul') && !gamma && !beta) {
      const vector = otherOperand(index, reader, output);
      if (!vector) break;
      gamma = vector;
    } else if (reader.is('Add') && allowBeta && !beta) {
      const vector = otherOperand(index, reader, output);
      if (!vector) break;
      beta = vector;
    } else break;
    nodes.push(reader);
    output = result;
  }
  return { output, gamma, beta, nodes };
}

/** The other operand of a binary node, if it is a constant float vector longer than one element. */
function otherOperand(index: GraphIndex, node: Node, value: string): Constant | undefined {
  const [a, b] = node.inputs;
  const other = a === value ? b : a;
  const constant = other === undefined || other === value ? undefined : findConstant(index, other);
  if (!constant || !checkFloat(constant, '', node).ok) return undefined;
  return (vectorLength(constant) ?? 0) > 1 ? constant : undefined;
}

/** Behind a Cast or CastLike of a value: where it comes from. */
export function skipCast(index: GraphIndex, name: string): { source: string; cast: Node | undefined } {
  const cast = index.producers.get(name);
  const source = cast?.inputs[0];
  return index.castTo(cast) !== undefined && source !== undefined
    ? { source, cast }
    : { source: name, cast: undefined };
}

/** Behind a Cast that brings a value of a float type to float32, which loses nothing: where it comes from. */
export function skipExact(index: GraphIndex, name: string): { source: string; cast: Node | undefined } {
  const skipped = skipCast(index, name);
  const exact = isFloat(index.typeOf(skipped.source) ?? 0) && index.castTo(skipped.cast) === DataType.float;
  return exact ? skipped : { source: name, cast: undefined };
}

/**
 * The same, of a Cast from 16 bits only. One from float32 changes nothing, and may be the end of another norm, which leaves
 * no value before it to begin at.
 */
export function skipWidening(index: GraphIndex, name: string): { source: string; cast: Node | undefined } {
  const skipped = skipExact(index, name);
  return isNarrow(index.typeOf(skipped.source)) ? skipped : { source: name, cast: undefined };
}
