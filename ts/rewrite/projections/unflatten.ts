/**
 * A Reshape that gives the rows of a Gemm, joined for it by another Reshape, their leading dimensions back: the op keeps them,
 * and neither Reshape is needed. Only where the target proves it: each leading dimension is stated, or is computed from
 * the shape of the norm's input or result, as PyTorch's `x.size()[:-1] + (n,)` is, and at most one is left to Reshape.
 */
import type { GraphIndex } from '../graph_index.js';
import type { Norm } from '../norms/norm.js';
import { dimensionsIn, rankOf, shapeSource } from '../shapes.js';
import type { Projection } from './projection.js';

/** What a norm reads and gives, which have one shape; of rows that are moved behind it, that is one value. */
type Ends = Pick<Norm, 'input' | 'output'>;

/** @param norm its input's leading dimensions are those that were joined. */
export function unflattened(index: GraphIndex, projection: Projection, norm: Ends): Projection {
  const { output, flattened } = projection;
  const [reader, ...others] = index.readers(output);
  const result = reader?.outputs[0];
  if (!flattened || !reader?.is('Reshape') || reader.inputs[0] !== output || result === undefined)
    return projection;
  if (others.length > 0 || index.isGraphOutput(output)) return projection;
  if (!restores(index, reader.inputs[1] ?? '', projection.n, norm)) return projection;
  return {
    ...projection,
    rule: `${projection.rule}+reshape`,
    output: result,
    flattened: false,
    nodes: [...projection.nodes, reader],
  };
}

/** Is the target [leading dimensions of the norm's input, n]? */
function restores(index: GraphIndex, name: string, n: number, norm: Ends): boolean {
  const target = dimensionsIn(index, name);
  const stated = index.dimsOf(norm.input);
  const rank = rankOf(index, norm.input);
  if (!target) return false;
  // The norm keeps its input's shape, whatever nodes it consists of.
  const sources = new Set([norm.input, norm.output, shapeSource(index, norm.input)]);
  const [last, first] = [target.at(-1), target[0]];
  const whole = target.length === 2 && typeof first === 'object' && first.axis === 'leading';
  if (whole) return sources.has(first.of) && (last === n || last === -1);
  if (rank === undefined || target.length !== rank) return false;
  // One that Reshape works out is right where all the others are.
  const open = target.filter((element, axis) => {
    if (axis === rank - 1) return element !== n;
    if (typeof element === 'object') return element.axis !== axis || !sources.has(element.of);
    return element <= 0 || element !== stated?.[axis];
  });
  return open.length === 0 || (open.length === 1 && open[0] === -1);
}
