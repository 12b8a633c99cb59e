/**
 * Which projections of a norm one node can take: those whose K, types and kind of weights are alike. The others stay as
 * they are and read the norm's result.
 */
import { dataTypeName } from '../onnx/tensor.js';
import type { GraphIndex } from './graph_index.js';
import { fail, type Failure } from './match.js';
import type { Norm } from './norms/norm.js';
import type { Projection } from './projections/projection.js';

export interface Choice {
  /** In the order in which they came. */
  projections: Projection[];
  /** Element type of the node's input and outputs; undefined where only the weights say it. */
  type: number;
  /** The others, and why. */
  others: { projection: Projection; failure: Failure }[];
}

/**
 * @param stated element type of the norm's input, where it is known.
 * @param first projections that count before all others: those that lead to attention.
 * @returns the largest set, or why even the first projection cannot be fused.
 */
export function chooseCompatible(
  index: GraphIndex,
  norm: Norm,
  projections: readonly Projection[],
  stated: number | undefined,
  first: ReadonlySet<Projection>,
): Choice | Failure {
  const others: Choice['others'] = [];
  const kinds = new Map<string, Projection[]>();
  for (const projection of projections) {
    const failure = misfit(index, norm, projection, stated);
    if (failure) others.push({ projection, failure });
    else {
      const kind = kindOf(projection);
      kinds.set(kind, [...(kinds.get(kind) ?? []), projection]);
    }
  }
  const [best, ...rest] = [...kinds.values()].sort((a, b) => compare(sizeOf(b, first), sizeOf(a, first)));
  const [chosen] = best ?? [];
  if (!best || !chosen) return others[0]?.failure ?? fail('it has no projections');
  for (const projection of rest.flat()) others.push({ projection, failure: difference(projection, chosen) });
  return { projections: best, type: stated ?? chosen.weight.type, others };
}

/** What projections of one node have in common. */
const kindOf = ({ k, quantization, weight, narrowed }: Projection): string =>
  [k, quantization ? 'integers' : 'floats', weight.type, narrowed ?? ''].join();

function sizeOf(projections: readonly Projection[], first: ReadonlySet<Projection>): number[] {
  const columns = projections.reduce((sum, { n }) => sum + n, 0);
  return [projections.filter((projection) => first.has(projection)).length, projections.length, columns];
}

function compare(a: readonly number[], b: readonly number[]): number {
  const at = a.findIndex((value, i) => value !== b[i]);
  return at < 0 ? 0 : (a[at] ?? 0) - (b[at] ?? 0);
}

/** Why a projection does not go with its norm, if it does not. */
function misfit(
  index: GraphIndex,
  norm: Norm,
  { k, weight, node, flattened, narrowed }: Projection,
  stated: number | undefined,
): Failure | undefined {
  for (const [what, vector] of [
    ['scale', norm.gamma],
    ['shift', norm.beta],
  ] as const) {
    if (vector && vector.tensor.count !== k)
      return fail(
        `the ${what} '${vector.name}' has ${vector.tensor.count} elements, the weights have K = ${k}`,
      );
  }
  const length = index.dimsOf(norm.input)?.at(-1) ?? -1;
  if (length >= 0 && length !== k)
    return fail(`the norm's input '${norm.input}' has ${length} columns, the weights have K = ${k}`);
  // A Reshape may cut rows in pieces of K; a scale or shift of K elements says that it does not.
  if (length < 0 && !norm.gamma && !norm.beta && flattened)
    return fail(`how long the rows before Reshape are is not known (K = ${k} behind it)`, node);
  const expected = narrowed ?? stated;
  if (expected !== undefined && weight.type !== expected)
    return fail(
      `the norm's input is ${dataTypeName(expected)}, the weight '${weight.name}' ${dataTypeName(weight.type)}`,
      node,
    );
  return undefined;
}

/** What sets a projection apart from those of the node. */
function difference({ k, weight, quantization, narrowed, node }: Projection, chosen: Projection): Failure {
  const name = weight.name;
  if (k !== chosen.k) return fail(`weights have K = ${chosen.k} and K = ${k}`, node);
  if ((quantization === undefined) !== (chosen.quantization === undefined)) {
    const [is, other] = quantization ? ['an integer', 'are none'] : ['no integer', 'are'];
    return fail(
      `the weight '${name}' is ${is}, '${chosen.weight.name}' and those of its node ${other}: one node has one type of weights`,
      node,
    );
  }
  const typed = (type: number, cast: number | undefined): string =>
    `${dataTypeName(type)}${cast === undefined ? '' : ', behind a Cast of the norm'}`;
  return fail(
    `the weight '${name}' is ${typed(weight.type, narrowed)}, '${chosen.weight.name}' ${typed(chosen.weight.type, chosen.narrowed)}: one node has one type of weights`,
    node,
  );
}
