/**
 * What stands between a norm and its projections and only puts rows elsewhere: Transpose that leaves the last axis where it
 * is, Reshape of the leading dimensions, Slice and Concat along one of them. A row's norm is the same before and behind, so
 * the norm goes behind: these nodes then move what the norm read. torch.nn.MultiheadAttention has such a Transpose
 * (batch_first), Swin and SAM cut their images into windows. A Cast of a norm in float32 to the 16 bits of its projections may
 * stand among them: what is moved then stays in float32, and the node's results are cast instead.
 */
import type { Node } from '../onnx/node.js';
import { findConstant, integersOf } from './constants.js';
import type { GraphIndex } from './graph_index.js';
import { fail, type Match } from './match.js';
import type { Norm } from './norms/norm.js';
import { isNarrow } from './folded.js';

/** Swin's shifted windows have about a dozen nodes. */
const MAX_NODES = 64;

/** Which axis a node works along; undefined where that is not constant. */
function axesOf(index: GraphIndex, node: Node): readonly number[] | undefined {
  if (node.is('Concat')) return [node.integer('axis', NaN)];
  const given = node.inputs[3];
  const axes = given ? integersOf(findConstant(index, given), index.source) : node.integers('axes');
  if (axes) return axes;
  // Without axes, Slice cuts the leading ones, as many as it has starts.
  const starts = node.inputs[1]
    ? integersOf(findConstant(index, node.inputs[1]), index.source)
    : node.integers('starts');
  return given ? undefined : starts?.map((_, i) => i);
}

/** The last dimension of what a Reshape gives, as far as its target or the graph says. */
function lastBehindReshape(index: GraphIndex, node: Node): number | undefined {
  const stated = index.dimsOf(node.outputs[0] ?? '')?.at(-1) ?? -1;
  if (stated >= 0) return stated;
  const target = node.inputs[1] ?? '';
  const sizes = node.inputs[1]
    ? integersOf(findConstant(index, target), index.source)
    : node.integers('shape');
  if (sizes) return sizes.at(-1);
  // Exporters put the sizes that vary before the others.
  const parts = index.producers.get(target);
  const last = parts?.is('Concat') ? parts.inputs.at(-1) : undefined;
  return last === undefined ? undefined : integersOf(findConstant(index, last), index.source)?.at(-1);
}

function rankBehind(index: GraphIndex, node: Node, rank: number | undefined): number | undefined {
  if (!node.is('Reshape')) return rank;
  const target = integersOf(findConstant(index, node.inputs[1] ?? ''), index.source);
  return (target ?? index.dimsOf(node.outputs[0] ?? ''))?.length;
}

function padsNothing(index: GraphIndex, node: Node): boolean {
  const pads = node.inputs[1]
    ? integersOf(findConstant(index, node.inputs[1]), index.source)
    : node.integers('pads');
  return pads?.every((count) => count === 0) ?? false;
}

/** Rows of the weight by which a node multiplies a value, directly; undefined where it does not. */
type Projects = (reader: Node, value: string) => number | undefined;

/** A value with moved rows. */
interface Rows {
  /** The number of its dimensions, where it is known. */
  rank: number | undefined;
  /** The 16-bit type (DataType) that a Cast on the way gave it. */
  narrowed: number | undefined;
}

/** Does a node move whole rows of length k, and read nothing else? */
function movesRows(
  index: GraphIndex,
  node: Node,
  k: number,
  values: ReadonlyMap<string, Rows>,
  projects: Projects,
): boolean {
  const [input = ''] = node.inputs;
  const { rank, narrowed } = values.get(input) ?? {};
  if (node.inputs.slice(1).some((name) => values.has(name)) && !node.is('Concat')) return false;
  if (node.is('Identity')) return true;
  if (node.is('Transpose')) {
    const perm = node.integers('perm');
    return perm !== undefined && perm.at(-1) === perm.length - 1;
  }
  // The order of elements stays: rows do where they keep their length, which a product behind says as well.
  if (node.is('Reshape')) {
    const [output = ''] = node.outputs;
    const readers = index.readers(output);
    return (
      lastBehindReshape(index, node) === k ||
      readers.some((reader) => !reader.is('Reshape') && projects(reader, output) === k)
    );
  }
  // Rows of zeros would have another norm; exporters write a Pad also where there is nothing to pad.
  if (node.is('Pad')) return padsNothing(index, node) && (narrowed === undefined || !node.inputs[2]);
  const leading = (axis: number): boolean => (axis < 0 ? axis < -1 : rank !== undefined && axis < rank - 1);
  if (node.is('Slice')) return axesOf(index, node)?.every(leading) ?? false;
  return (
    node.is('Concat') &&
    node.inputs.every((name) => values.has(name)) &&
    (axesOf(index, node)?.every(leading) ?? false)
  );
}

export interface Moved {
  /** The value behind such nodes that projections read. */
  value: string;
  /** Casts among them, the type that they give (DataType), and all values that have it. */
  recast?: { casts: readonly Node[]; to: number; values: readonly string[] };
}

/**
 * What projections read behind such nodes, where the norm's result serves nothing else.
 *
 * @param k elements of a row.
 * @param wide the norm is in float32.
 * @returns undefined where no such node reads the norm's result.
 */
export function movedRows(
  index: GraphIndex,
  norm: Norm,
  k: number,
  wide: boolean,
  projects: Projects,
): Match<Moved> | undefined {
  const rank = (index.dimsOf(norm.output) ?? index.dimsOf(norm.input))?.length;
  const values = new Map<string, Rows>([[norm.output, { rank, narrowed: undefined }]]);
  const nodes = new Set<Node>();
  const casts: Node[] = [];
  let moved: string | undefined;
  let other: { value: string; reader: Node | undefined } | undefined;
  for (let pending = true; pending && nodes.size <= MAX_NODES;) {
    pending = false;
    for (const [value, rows] of [...values]) {
      for (const reader of index.readers(value)) {
        const output = reader.outputs[0];
        if (nodes.has(reader) || output === undefined || reader.graphs.length > 0) continue;
        if (projects(reader, value) !== undefined) continue;
        const to = reader.inputs[0] === value ? index.castTo(reader) : undefined;
        const narrowed = wide && rows.narrowed === undefined && isNarrow(to) ? to : undefined;
        if (narrowed !== undefined) casts.push(reader);
        else if (!movesRows(index, reader, k, values, projects)) continue;
        nodes.add(reader);
        values.set(output, {
          rank: rankBehind(index, reader, rows.rank),
          narrowed: narrowed ?? rows.narrowed,
        });
        pending = true;
      }
    }
  }
  if (nodes.size === 0) return undefined;
  for (const value of values.keys()) {
    if (index.isGraphOutput(value)) other ??= { value, reader: undefined };
    for (const reader of index.readers(value)) {
      if (nodes.has(reader) || reader.is('Shape')) continue;
      if (projects(reader, value) === undefined) other ??= { value, reader };
      else if (moved === undefined || moved === value) moved = value;
      else
        return fail(`its rows are moved in two ways before projections: '${moved}' and '${value}'`, reader);
    }
  }
  if (moved === undefined) return undefined;
  if (moved !== norm.output && other) {
    const use = other.reader ? `read by ${other.reader.opType} '${other.reader.label}'` : 'a graph output';
    return fail(
      `its rows are moved before the projections, and '${other.value}' is also ${use}`,
      other.reader,
    );
  }
  const to = values.get(moved)?.narrowed;
  if (to === undefined) return { ok: true, value: { value: moved } };
  const cast = [...values].flatMap(([name, { narrowed }]) => (narrowed === undefined ? [] : [name]));
  return { ok: true, value: { value: moved, recast: { casts, to, values: cast } } };
}
