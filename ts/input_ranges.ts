/** Which integers make sense as a model's inputs: those that index a table are rows of it. */
import type { Model } from './onnx/model.js';
import { findConstant } from './rewrite/constants.js';
import type { GraphIndex } from './rewrite/graph_index.js';
import { scopesOf } from './rewrite/scopes.js';

/** Operators that look rows up, with the places of indices and table. */
const LOOKUPS: Record<string, readonly (readonly [indices: number, table: number])[]> = {
  Gather: [[1, 0]],
  'com.microsoft.EmbedLayerNormalization': [
    [0, 2],
    [1, 4],
  ],
};
/** What hands indices on as they are. */
const PASSING = new Set([
  'Identity',
  'Cast',
  'Reshape',
  'Squeeze',
  'Unsqueeze',
  'Flatten',
  'Slice',
  'Transpose',
  'Expand',
]);
const MAX_STEPS = 64;

/** For each graph input that indexes constant tables: the rows of the smallest. */
export function inputRanges(model: Model): Map<string, number> {
  const ranges = new Map<string, number>();
  for (const { index } of scopesOf(model)) {
    for (const node of index.graph.nodes) {
      const name = node.domain === '' ? node.opType : `${node.domain}.${node.opType}`;
      if (node.opType === 'Gather' && node.integer('axis', 0) !== 0) continue;
      for (const [indices, table] of LOOKUPS[name] ?? []) {
        const input = inputBehind(index, node.inputs[indices] ?? '');
        const rows = rowsOf(index, node.inputs[table] ?? '');
        if (input === undefined || rows === undefined || rows < 1) continue;
        ranges.set(input, Math.min(rows, ranges.get(input) ?? rows));
      }
    }
  }
  return ranges;
}

/** The input of the model's own graph that a value is made of. */
function inputBehind(from: GraphIndex, name: string): string | undefined {
  let value = name;
  for (let step = 0; step < MAX_STEPS; step++) {
    const index = from.home(value);
    if (index.isGraphInput(value))
      return index.scope === undefined && !index.graph.initializers.has(value) ? value : undefined;
    const node = index.producers.get(value);
    if (node?.domain !== '' || !PASSING.has(node.opType) || !node.inputs[0]) return undefined;
    value = node.inputs[0];
  }
  return undefined;
}

/** Rows of a table: an initialiser or Constant, or one behind DequantizeLinear or the like, whose dimensions it keeps. */
function rowsOf(from: GraphIndex, name: string): number | undefined {
  let value = name;
  for (let step = 0; step < MAX_STEPS; step++) {
    const index = from.home(value);
    const constant = findConstant(index, value);
    if (constant) return (constant.transposed ? constant.tensor.dims.at(-1) : constant.tensor.dims[0]) ?? 0;
    const node = index.producers.get(value);
    if (!node || !(node.is('DequantizeLinear') || node.is('Cast')) || !node.inputs[0]) return undefined;
    value = node.inputs[0];
  }
  return undefined;
}
