/**
 * Norms spelt out in arithmetic, as exporters for older opsets and for RMSNorm write them. Both begin at the node that
 * divides by the deviation: Div(d, Sqrt(v)), Mul(d, Reciprocal(Sqrt(v))), Mul(d, Div(1, Sqrt(v))), Mul(d, Pow(v, -0.5)),
 * with v = ReduceMean(d * d) + epsilon, and d = x - ReduceMean(x) for LayerNorm, d = x for RMSNorm.
 */
import { DataType, dataTypeName } from '../../onnx/tensor.js';
import type { Node } from '../../onnx/node.js';
import { scalarOf } from '../constants.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';
import {
  addScalar,
  checkEpsilon,
  checkEnclosed,
  meanOf,
  readTail,
  skipCast,
  skipExact,
  skipWidening,
  squareOf,
  type Norm,
  type NormRule,
} from './norm.js';

/** v, where a node divides a value by sqrt(v). */
interface Division {
  dividend: string;
  radicand: string;
  nodes: Node[];
  /** Brings the deviation, or its inverse, to the type of the dividend. */
  cast: Node | undefined;
}

function sqrtOf(index: GraphIndex, name: string): { node: Node; radicand: string } | undefined {
  const node = index.producers.get(name);
  const [a, b] = node?.inputs ?? [];
  if (!node || a === undefined) return undefined;
  return node.is('Sqrt') || (node.is('Pow') && scalarOf(index, b) === 0.5)
    ? { node, radicand: a }
    : undefined;
}

function reciprocalSqrtOf(index: GraphIndex, name: string): { nodes: Node[]; radicand: string } | undefined {
  const node = index.producers.get(name);
  const [a, b] = node?.inputs ?? [];
  if (!node || a === undefined) return undefined;
  if (node.is('Pow') && scalarOf(index, b) === -0.5) return { nodes: [node], radicand: a };
  const inner = node.is('Reciprocal') ? a : node.is('Div') && scalarOf(index, a) === 1 ? b : undefined;
  const root = inner === undefined ? undefined : sqrtOf(index, inner);
  return root && { nodes: [node, root.node], radicand: root.radicand };
}

function divisionAt(index: GraphIndex, node: Node): Division | undefined {
  const [a, b] = node.inputs;
  if (a === undefined || b === undefined) return undefined;
  if (node.is('Div')) {
    const { source, cast } = skipCast(index, b);
    const root = sqrtOf(index, source);
    return root && scalarOf(index, a) === undefined
      ? { dividend: a, radicand: root.radicand, nodes: [node, root.node, ...(cast ? [cast] : [])], cast }
      : undefined;
  }
  if (!node.is('Mul')) return undefined;
  for (const [dividend, factor] of [
    [a, b],
    [b, a],
  ] as const) {
    const { source, cast } = skipCast(index, factor);
    const inverse = reciprocalSqrtOf(index, source);
    if (!inverse) continue;
    const nodes = [node, ...inverse.nodes, ...(cast ? [cast] : [])];
    return { dividend, radicand: inverse.radicand, nodes, cast };
  }
  return undefined;
}

/** d = x - ReduceMean(x): x and the nodes; undefined where d is no such difference. */
function centred(index: GraphIndex, d: string): Match<{ input: string; nodes: Node[] }> | undefined {
  const node = index.producers.get(d);
  const [x, m] = node?.inputs ?? [];
  if (!node?.is('Sub') || x === undefined) return undefined;
  const mean = meanOf(index, m);
  if (!mean) return undefined;
  if (!mean.ok) return mean;
  return mean.value.input === x
    ? { ok: true, value: { input: x, nodes: [node, mean.value.node] } }
    : undefined;
}

/**
 * x is cast up for the statistics, and what comes of it back. That is what the fused op does by itself, in float32, giving
 * x's type.
 *
 * @param inner Casts inside of the norm: of what is squared, and of the deviation or its inverse.
 */
function checkCasts(
  index: GraphIndex,
  entry: { source: string; cast: Node | undefined },
  [squared, deviation]: readonly [Node | undefined, Node | undefined],
  tail: { output: string; nodes: readonly Node[] },
): Match<undefined> {
  const last = tail.nodes.filter((node) => index.castTo(node) !== undefined);
  const first = entry.cast ?? squared ?? deviation ?? last[0];
  if (!first) return { ok: true, value: undefined };
  const from = index.typeOf(entry.source);
  const to = index.typeOf(tail.output);
  if (from === undefined || from !== to) {
    const name = (type: number | undefined): string =>
      type === undefined ? 'an unknown type' : dataTypeName(type);
    return fail(
      `x is ${name(from)} and the normalised value ${name(to)}; the fused op gives x's type`,
      first,
    );
  }
  // float16 in between a float32 input and result, or an integer, loses what the fused op keeps.
  for (const [what, cast] of [
    ...last.map((node) => ['the normalised value', node] as const),
    ['the deviation', deviation] as const,
  ]) {
    const type = index.castTo(cast);
    if (cast && type !== undefined && type !== DataType.float && type !== from)
      return fail(`${what} is cast to ${dataTypeName(type)}, expected float32 or x's type`, cast);
  }
  return { ok: true, value: undefined };
}

/**
 * Where the norm begins and ends: with the Casts around it where they bring the result back to x's type, else, where it is
 * in float32, without them. They then serve whoever reads them.
 */
function endsOf(
  index: GraphIndex,
  input: string,
  tail: ReturnType<typeof readTail>,
): { entry: ReturnType<typeof skipWidening>; tail: ReturnType<typeof readTail> } {
  const entry = skipWidening(index, input);
  if (index.typeOf(entry.source) === index.typeOf(tail.output)) return { entry, tail };
  const last = tail.nodes.at(-1);
  const to = index.castTo(last);
  const inner =
    last && (to === DataType.float16 || to === DataType.bfloat16)
      ? { ...tail, output: last.inputs[0] ?? '', nodes: tail.nodes.slice(0, -1) }
      : tail;
  const wide = [input, inner.output].every((name) => index.typeOf(name) === DataType.float);
  return wide ? { entry: { source: input, cast: undefined }, tail: inner } : { entry, tail };
}

function match(
  index: GraphIndex,
  node: Node,
  normType: Norm['normType'],
  rule: string,
): Match<Norm> | undefined {
  const division = divisionAt(index, node);
  const sum = division && addScalar(index, division.radicand);
  const mean = sum && meanOf(index, sum.input);
  if (!division || !mean) return undefined;
  const difference = centred(index, division.dividend);
  const isLayerNorm = difference !== undefined;
  if (isLayerNorm !== (normType === 'layer_norm')) return undefined;
  if (!mean.ok) return mean;
  const square = squareOf(index, mean.value.input);
  if (!square) return fail(`the mean is not of squares (Pow 2 or Mul by itself)`, mean.value.node);
  const nodes = [...division.nodes, sum.node, mean.value.node, square.node];

  let input = division.dividend;
  let squareCast: Node | undefined;
  if (isLayerNorm) {
    if (!difference.ok) return difference;
    nodes.push(...difference.value.nodes);
    input = difference.value.input;
    // Some exporters write the difference twice.
    const other = square.input === division.dividend ? undefined : centred(index, square.input);
    if (square.input !== division.dividend) {
      if (!other?.ok || other.value.input !== input) {
        return fail(
          `the squares are of '${square.input}', not of the numerator '${division.dividend}'`,
          square.node,
        );
      }
      nodes.push(...other.value.nodes);
    }
  } else if (square.input !== input) {
    const [a, b] = [skipExact(index, square.input), skipExact(index, input)];
    if (a.source !== b.source)
      return fail(`the squares are of '${square.input}', not of the numerator '${input}'`, square.node);
    squareCast = a.cast;
    if (squareCast) nodes.push(squareCast);
  }
  const epsilon = sum.scalar;
  const positive = checkEpsilon(epsilon, sum.node);
  if (!positive.ok) return positive;

  const value = node.outputs[0] ?? '';
  const { entry, tail } = endsOf(index, input, readTail(index, value, isLayerNorm));
  nodes.push(...tail.nodes);
  const types = checkCasts(index, entry, [squareCast, division.cast], tail);
  if (!types.ok) return types;
  if (entry.cast) {
    input = entry.source;
    // The Cast may serve other readers as well; it goes with the norm only if nobody else needs it.
    if (index.readers(entry.cast.outputs[0] ?? '').every((reader) => nodes.includes(reader)))
      nodes.push(entry.cast);
  }
  const unique = [...new Set(nodes)].sort((a, b) => index.position(a) - index.position(b));
  const enclosed = checkEnclosed(index, unique, tail.output);
  if (!enclosed.ok) return enclosed;
  return {
    ok: true,
    value: {
      rule,
      normType,
      epsilon,
      input,
      output: tail.output,
      gamma: tail.gamma,
      beta: tail.beta,
      node,
      nodes: unique,
    },
  };
}

export const decomposedLayerNorm: NormRule = {
  name: 'decomposed-layer-norm',
  match: (index, node) => match(index, node, 'layer_norm', 'decomposed-layer-norm'),
};

export const decomposedRmsNorm: NormRule = {
  name: 'decomposed-rms-norm',
  match: (index, node) => match(index, node, 'rms_norm', 'decomposed-rms-norm'),
};
