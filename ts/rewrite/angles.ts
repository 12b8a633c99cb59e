/**
 * Products whose result is an angle: positions by frequencies, as in rotary and Fourier embeddings. Angles grow with the
 * position, and an error that is small for a sum of products is none for them: frequencies of 16 or 8 bits would turn far
 * positions by a radian and more. There is nothing to gain either, with one or two rows of weights.
 */
import { passages, type Value } from './flow.js';
import type { GraphIndex } from './graph_index.js';
import { fail, type Failure } from './match.js';
import type { Projection } from './projections/projection.js';

/** What stands between a product and the Sin or Cos of its result. */
const PASSING = new Set(
  (
    'Identity Cast Mul Div Add Neg Reshape Transpose Squeeze Unsqueeze Flatten Expand Concat Split Slice Gather ' +
    'SequenceConstruct SequenceInsert SequenceAt SplitToSequence ConcatFromSequence'
  ).split(' '),
);
const MAX_STEPS = 32;

/** Why a product stays as it is, where its result is an angle, in its own graph or in those next to it. */
export function isAngle(from: GraphIndex, { output, node }: Projection): Failure | undefined {
  const queue: Value[] = [];
  const seen = new Map<GraphIndex, Set<string>>();
  const add = ({ index, name }: Value): void => {
    const names = seen.get(index) ?? new Set();
    if (name === '' || names.has(name)) return;
    seen.set(index, names.add(name));
    queue.push({ index, name });
  };
  add({ index: from, name: output });
  let steps = 0;
  for (const value of queue) {
    const { index, name } = value;
    for (const reader of index.readers(name)) {
      if (reader.domain !== '' || ++steps > MAX_STEPS) continue;
      if (reader.opType === 'Sin' || reader.opType === 'Cos')
        return fail(
          `its result is an angle, of which ${reader.label} is taken: rounded weights would turn it`,
          node,
        );
      if (PASSING.has(reader.opType)) for (const result of reader.outputs) add({ index, name: result });
    }
    if (steps <= MAX_STEPS) passages(value).forEach(add);
  }
  return undefined;
}
