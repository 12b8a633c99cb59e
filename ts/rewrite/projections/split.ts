/**
 * What cuts a packed projection along its last axis right behind it, Split or consecutive Slices, is taken into the node:
 * each piece becomes one of its outputs.
 *
 * Source: ONNX operators Split (2, 11, 13, 18) and Slice (1, 10, 11, 13).
 */
import type { Node } from '../../onnx/node.js';
import { findConstant, integersOf } from '../constants.js';
import type { GraphIndex } from '../graph_index.js';
import type { Projection } from './projection.js';

interface Piece {
  output: string;
  from: number;
  to: number;
}

/**
 * The projection with its pieces, or as it was where its result is used in any other way.
 *
 * @param input a value of the result's rank.
 */
export function withSplit(index: GraphIndex, projection: Projection, input: string): Projection {
  const { output, n, flattened } = projection;
  const readers = index.readers(output);
  if (flattened || readers.length === 0 || index.isGraphOutput(output)) return projection;
  // Of a Gemm the rank is 2, unless a Reshape behind it is part of the projection.
  const flat = projection.node.is('Gemm') && projection.node.outputs[0] === output;
  const rank = flat ? 2 : (index.dimsOf(output) ?? index.dimsOf(input))?.length;
  const pieces: Piece[] = [];
  for (const reader of readers) {
    const cut = reader.is('Split')
      ? piecesOfSplit(index, reader, n, rank)
      : reader.is('Slice')
        ? pieceOfSlice(index, reader, n, rank)
        : undefined;
    if (!cut || reader.inputs[0] !== output || reader.inputs.lastIndexOf(output) > 0) return projection;
    pieces.push(...cut);
  }
  pieces.sort((a, b) => a.from - b.from);
  // Side by side without gap or overlap, over all columns: what the op's splits are.
  if (pieces.length < 2 || pieces.some(({ from, to }, i) => from !== (pieces[i - 1]?.to ?? 0) || to <= from))
    return projection;
  if (pieces.at(-1)?.to !== n) return projection;
  return {
    ...projection,
    rule: `${projection.rule}+${readers[0]?.opType.toLowerCase()}`,
    pieces: pieces.map((piece) => ({ output: piece.output, n: piece.to - piece.from })),
    nodes: [...projection.nodes, ...readers],
  };
}

const isLast = (axis: number, rank: number | undefined): boolean =>
  axis === -1 || (rank !== undefined && axis === rank - 1);

function piecesOfSplit(
  index: GraphIndex,
  node: Node,
  n: number,
  rank: number | undefined,
): Piece[] | undefined {
  if (!isLast(node.integer('axis', 0), rank)) return undefined;
  const count = node.outputs.length;
  const given = node.inputs[1]
    ? integersOf(findConstant(index, node.inputs[1]), index.source)
    : (node.integers('split') ?? equalWidths(n, count));
  if (given?.length !== count) return undefined;
  let at = 0;
  return given.map((width, i) => ({ output: node.outputs[i] ?? '', from: at, to: (at += width) }));
}

/** Equal pieces; the last one is smaller where they do not come out even (opset 18). */
function equalWidths(n: number, count: number): number[] {
  const width = Math.ceil(n / count);
  return Array.from({ length: count }, (_, i) => (i < count - 1 ? width : n - width * (count - 1)));
}

function pieceOfSlice(
  index: GraphIndex,
  node: Node,
  n: number,
  rank: number | undefined,
): Piece[] | undefined {
  const list = (at: number, attribute: string): number[] | undefined =>
    node.inputs[at]
      ? integersOf(findConstant(index, node.inputs[at]), index.source)
      : node.integers(attribute);
  const [starts, ends, axes] = [list(1, 'starts'), list(2, 'ends'), list(3, 'axes')];
  const steps = node.inputs[4] ? list(4, '') : [1];
  const [output] = node.outputs;
  if (starts?.length !== 1 || ends?.length !== 1 || axes?.length !== 1 || output === undefined)
    return undefined;
  if (steps?.length !== 1 || steps[0] !== 1 || !isLast(axes[0] ?? 0, rank)) return undefined;
  const place = (value = 0): number => Math.min(Math.max(value < 0 ? value + n : value, 0), n);
  return [{ output, from: place(starts[0]), to: place(ends[0]) }];
}
