/** Projections without a norm: products with constant weights, those of one value together. */
import type { Node } from '../onnx/node.js';
import { isAngle } from './angles.js';
import type { GraphIndex } from './graph_index.js';
import { projectionRules } from './projections/index.js';
import { withSplit } from './projections/split.js';
import type { Projection } from './projections/projection.js';
import type { Refusal } from './report.js';
import { checkOpset, checkRank, refusal, type Site } from './site.js';

/**
 * @param taken nodes that belong to other sites.
 * @param keep nodes that stay as they are.
 */
export function findLinear(
  index: GraphIndex,
  taken: ReadonlySet<Node>,
  keep: ReadonlySet<Node>,
): { sites: Site[]; refused: Refusal[] } {
  const refused: Refusal[] = [];
  const groups = new Map<string, Projection[]>();
  const tooOld = checkOpset(index);
  for (const node of index.graph.nodes) {
    const value = node.inputs[0];
    // A Gemm behind a Reshape is as good as one without: its input has two dimensions.
    if (taken.has(node) || value === undefined || index.isConstant(value) || node.is('Reshape')) continue;
    // Products of dynamically quantised activations become nodes that read the activations.
    const maker = index.producers.get(value);
    const input = maker?.is('DynamicQuantizeLinear') ? (maker.inputs[0] ?? value) : value;
    for (const rule of projectionRules) {
      const match = rule.match(index, node, value);
      if (!match) continue;
      const skipped = match.ok ? match.value.nodes.find((member) => keep.has(member)) : undefined;
      const unready = tooOld ?? checkRank(index, input);
      const failure = skipped
        ? ({ ok: false, reason: 'it is to stay as it is (skip)', at: skipped } as const)
        : match.ok
          ? (unready ?? isAngle(index, match.value))
          : match;
      const group = groups.get(input) ?? [];
      if (match.ok && !failure && !match.value.nodes.some((member) => taken.has(member)))
        groups.set(input, [...group, match.value]);
      // A product of two computed values is no projection at all.
      else if (failure && index.isConstant(node.inputs[1] ?? ''))
        refused.push(refusal(index, node, rule.name, failure));
      break;
    }
  }
  const sites = [...groups].flatMap(([input, projections]) =>
    // One node has one type of weights.
    [projections.filter((p) => p.quantization), projections.filter((p) => !p.quantization)]
      .filter((alike) => alike.length > 0)
      .map((alike): Site => ({
        index,
        norm: undefined,
        input,
        projections: alike.map((p) => withSplit(index, p, input)),
        targets: ['linear'],
        attention: new Set(),
        type: alike[0]?.weight.type ?? 0,
      })),
  );
  return { sites, refused };
}
