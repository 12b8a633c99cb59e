/**
 * What looks like a norm spelt out in arithmetic and is none that a rule knows: squares, their mean, and a root or
 * reciprocal not far behind. Nothing is fused there; a report says what was expected instead.
 */
import type { Node } from '../../onnx/node.js';
import { findConstant, scalarOf, whyNotConstant } from '../constants.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Failure } from '../match.js';
import { addScalar, meanOf, squareOf } from './norm.js';

export interface NearMiss {
  /** The mean of squares. */
  node: Node;
  rule: string;
  failure: Failure;
}

/** Ops that hand a value on, rounded or not. */
const PASSING = new Set(['QuantizeLinear', 'DequantizeLinear', 'Cast', 'Identity']);
const PASSES = 4;
/** Steps from the mean of squares to what divides by its root. */
const STEPS = 8;

/** @param explained nodes of norms that a rule found, and nodes at which one refused. */
export function findNearMisses(index: GraphIndex, explained: ReadonlySet<Node>): NearMiss[] {
  const misses: NearMiss[] = [];
  for (const node of index.graph.nodes) {
    const [value] = node.outputs;
    const square = value === undefined ? undefined : squareOf(index, value);
    if (!square || value === undefined || explained.has(node)) continue;
    const found = meanBehind(index, value);
    if (!found || behind(index, found.mean).some((later) => explained.has(later))) continue;
    if (!behind(index, found.mean).some((later) => isRoot(index, later))) continue;
    const centred = index.producers.get(square.input)?.is('Sub') ?? false;
    misses.push({
      node: found.mean,
      rule: centred ? 'decomposed-layer-norm' : 'decomposed-rms-norm',
      failure: deviation(index, found),
    });
  }
  return misses;
}

/** The ReduceMean of a value, directly or through what hands it on. */
function meanBehind(index: GraphIndex, value: string): { mean: Node; passing: Node | undefined } | undefined {
  let name = value;
  let passing: Node | undefined;
  for (let step = 0; step <= PASSES; step++) {
    const [reader] = index.readers(name);
    if (reader?.is('ReduceMean')) return { mean: reader, passing };
    const output = reader?.outputs[0];
    if (!reader || output === undefined || !PASSING.has(reader.opType)) return undefined;
    passing ??= reader;
    name = output;
  }
  return undefined;
}

/** Nodes up to some steps behind one. */
function behind(index: GraphIndex, start: Node): Node[] {
  const found = new Set([start]);
  let front = [start];
  for (let step = 0; step < STEPS && front.length > 0; step++) {
    front = front.flatMap((node) => node.outputs.flatMap((name) => [...index.readers(name)]));
    front = front.filter((node) => !found.has(node));
    for (const node of front) found.add(node);
  }
  return [...found];
}

function isRoot(index: GraphIndex, node: Node): boolean {
  return (
    node.is('Sqrt') ||
    node.is('Reciprocal') ||
    (node.is('Pow') && [0.5, -0.5].includes(scalarOf(index, node.inputs[1]) ?? 0))
  );
}

/** The first step that is not as the rules expect it. */
function deviation(index: GraphIndex, { mean, passing }: { mean: Node; passing: Node | undefined }): Failure {
  if (passing)
    return fail(`the squares go through ${passing.opType}, expected their ReduceMean right behind`, passing);
  const value = mean.outputs[0] ?? '';
  const checked = meanOf(index, value);
  if (checked && !checked.ok) return checked;
  const [sum] = index.readers(value);
  const radicand = sum?.outputs[0] ?? '';
  if (!sum?.is('Add')) return fail(`${readBy('the mean of squares', sum)}, expected Add of epsilon`, sum);
  if (!addScalar(index, radicand)) return fail(whyNoEpsilon(index, sum, value), sum);
  const [root] = index.readers(radicand);
  if (!root || !isRoot(index, root) || root.is('Reciprocal'))
    return fail(
      `${readBy('the mean of squares and epsilon', root)}, expected Sqrt or Pow by 0.5 or -0.5`,
      root,
    );
  const [next] = index.readers(root.outputs[0] ?? '');
  return fail(`${readBy('the deviation', next)}, expected a division of what was squared`, next);
}

/** Why what is added to the mean of squares is no number. */
function whyNoEpsilon(index: GraphIndex, sum: Node, mean: string): string {
  const name = sum.inputs.find((input) => input !== mean) ?? mean;
  const constant = findConstant(index, name);
  return constant
    ? `epsilon '${name}' has shape [${constant.tensor.dims.join(', ')}], expected one number`
    : `epsilon is not constant: ${whyNotConstant(index, name)}`;
}

const readBy = (what: string, reader: Node | undefined): string =>
  reader ? `${what} is read by ${reader.opType}` : `${what} is read by nothing`;
