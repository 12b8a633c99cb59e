/**
 * Projections that stand in another graph than their norm: in the branches of an If, mostly, that read its result from around
 * them. A branch runs at most once for each time that the norm does, so that the node in it may normalise by itself; in the
 * body of a Loop or Scan it would do so in every round, which the norm outside does once. Where the norm stays for others, its
 * rows are normalised twice: work of M K beside the product's M K N, which the node saves by one product in place of several.
 *
 * Source: ONNX IR specification, "Names Within a Graph": a subgraph reads the values of the graphs around it, unless it
 * has one of the same name.
 */
import type { Node } from '../onnx/node.js';
import type { GraphIndex } from './graph_index.js';
import { fail, type Failure } from './match.js';
import type { Norm } from './norms/norm.js';
import type { Projection } from './projections/projection.js';

/** Names that are as good as a norm's result; of those that are cast to a type of 16 bits, that type. */
export type Aliases = Map<string, number | undefined>;

export interface Within {
  index: GraphIndex;
  /** The node that holds the graph. */
  holder: Node;
  aliases: Aliases;
}

/** Graphs that nodes of this one hold, with those of the names that they read from it. */
export function graphsWithin(index: GraphIndex, aliases: Aliases): Within[] {
  const found = new Map<GraphIndex, Within>();
  for (const [name, type] of aliases)
    for (const holder of index.readers(name))
      for (const inner of index.within.get(holder) ?? []) {
        // A function that a node calls reads nothing of the graph around the call.
        if (inner.parent !== index || inner.defines(name)) continue;
        const within = found.get(inner) ?? {
          index: inner,
          holder,
          aliases: new Map<string, number | undefined>(),
        };
        found.set(inner, { ...within, aliases: within.aliases.set(name, type) });
      }
  return [...found.values()];
}

/** Why a node in a graph within cannot take the norm of a graph around it. */
export function misplaced(
  norm: Norm,
  around: GraphIndex,
  index: GraphIndex,
  holders: readonly Node[],
  { node }: Projection,
): Failure | undefined {
  const scope = index.scope ?? '';
  const repeated = holders.find((holder) => !holder.is('If'));
  if (repeated)
    return fail(
      `its projections stand in the ${scope}, where ${repeated.opType} would normalise the same rows again in every round; the target linear fuses them without it`,
      node,
    );
  if (norm.sum)
    return fail(
      `its projections stand in the ${scope}, and the sum that it makes does not; the target linear fuses them without it`,
      node,
    );
  if (index.home(norm.input) !== around.home(norm.input))
    return fail(
      `its projections stand in the ${scope}, where its input '${norm.input}' is another value of that name`,
      node,
    );
  return undefined;
}
