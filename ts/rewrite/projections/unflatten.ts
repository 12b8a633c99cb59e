/**
 * A Reshape that gives the rows of a Gemm, joined for it by another Reshape, their leading dimensions back: the op keeps them,
 * and neither Reshape is needed. Only where the dimensions themselves say so, which a dynamic target shape does not.
 */
import { findConstant, integersOf } from '../constants.js';
import type { GraphIndex } from '../graph_index.js';
import type { Projection } from './projection.js';

/** @param input what the projection's norm reads: its leading dimensions are those that were joined. */
export function unflattened(index: GraphIndex, projection: Projection, input: string): Projection {
  const { output, n, flattened } = projection;
  const [reader, ...others] = index.readers(output);
  const result = reader?.outputs[0];
  if (!flattened || !reader?.is('Reshape') || reader.inputs[0] !== output || result === undefined)
    return projection;
  if (others.length > 0 || index.isGraphOutput(output)) return projection;
  const target = integersOf(findConstant(index, reader.inputs[1] ?? ''), index.source);
  const lead = index.dimsOf(input)?.slice(0, -1);
  if (!target || !lead || target.length !== lead.length + 1 || target.at(-1) !== n) return projection;
  // All but one equal in size: then the one that Reshape works out is equal as well.
  const open = lead.filter((dim, i) => target[i] === -1 || dim !== target[i] || dim <= 0);
  const restores = open.length === 0 || (open.length === 1 && target.includes(-1));
  if (!restores) return projection;
  return {
    ...projection,
    rule: `${projection.rule}+reshape`,
    output: result,
    flattened: false,
    nodes: [...projection.nodes, reader],
  };
}
