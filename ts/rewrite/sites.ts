/** Finds what can be fused, norms with their projections and projections alone, and the reasons for the rest. */
import { DataType } from '../onnx/tensor.js';
import type { Node } from '../onnx/node.js';
import { chooseCompatible } from './compatible.js';
import { findConstant } from './constants.js';
import type { GraphIndex } from './graph_index.js';
import { attentionBehind, groupByAttention } from './grouping.js';
import { findLinear } from './linear.js';
import type { Failure } from './match.js';
import type { Norm } from './norms/norm.js';
import { normRules } from './norms/index.js';
import { findNearMisses } from './norms/near_misses.js';
import type { Target } from './options.js';
import { projectionRules } from './projections/index.js';
import type { Projection } from './projections/projection.js';
import { withSplit } from './projections/split.js';
import { unflattened } from './projections/unflatten.js';
import type { Refusal } from './report.js';
import { checkOpset, checkRank, nodesOf, refusal, type Site } from './site.js';

const NARROW = new Set<number>([DataType.float16, DataType.bfloat16]);

/** Norms whose result has the type of their scale, which need not be their input's. */
const RETYPING = new Set(['RMSNormalization', 'SimplifiedLayerNormalization']);

/** Norms that are one node, and the rules for them. */
const NORM_RULES: Record<string, string> = {
  LayerNormalization: 'layer-normalization',
  RMSNormalization: 'rms-normalization',
  SimplifiedLayerNormalization: 'simplified-layer-normalization',
  SkipLayerNormalization: 'skip-layer-normalization',
  SkipSimplifiedLayerNormalization: 'skip-simplified-layer-normalization',
};

/** Why a norm in a function is none to any rule: each call chooses its attributes. */
function callersAttributes(node: Node): [rule: string, failure: Failure] | undefined {
  const rule = NORM_RULES[node.opType];
  const [name] = node.references;
  if (rule === undefined || name === undefined) return undefined;
  return [rule, { ok: false, reason: `its attribute '${name}' is one of the function's: callers choose it` }];
}

/** Each is followed to the attention behind it; layers have a dozen, mixtures of experts some hundred. */
const MAX_PROJECTIONS = 1024;

/** @param keep nodes that stay as they are. */
export function findSites(
  index: GraphIndex,
  targets: ReadonlySet<Target>,
  keep: ReadonlySet<Node> = new Set(),
): { sites: Site[]; refused: Refusal[] } {
  const sites: Site[] = [];
  const refused: Refusal[] = [];
  const taken = new Set<Node>();
  if (targets.has('qkv') || targets.has('mlp')) {
    const explained = new Set<Node>();
    for (const node of index.graph.nodes) {
      for (const rule of normRules) {
        const match = rule.match(index, node);
        if (!match) continue;
        for (const member of match.ok ? match.value.nodes : [node, match.at ?? node]) explained.add(member);
        const found = match.ok ? siteOf(index, match.value, taken, targets, keep) : match;
        if ('reason' in found) refused.push(refusal(index, node, rule.name, found));
        else {
          for (const member of nodesOf(found.site)) taken.add(member);
          sites.push(found.site);
          refused.push(...found.refused);
        }
        break;
      }
      const ofCallers = callersAttributes(node);
      if (ofCallers) refused.push(refusal(index, node, ...ofCallers));
    }
    for (const { node, rule, failure } of findNearMisses(index, explained))
      refused.push(refusal(index, node, rule, failure));
  }
  if (targets.has('linear')) {
    const linear = findLinear(index, taken, keep);
    sites.push(...linear.sites);
    refused.push(...linear.refused);
  }
  return { sites, refused };
}

function siteOf(
  index: GraphIndex,
  norm: Norm,
  taken: ReadonlySet<Node>,
  targets: ReadonlySet<Target>,
  keep: ReadonlySet<Node>,
): { site: Site; refused: Refusal[] } | Failure {
  const failed = (reason: string, at?: Node): Failure =>
    at ? { ok: false, reason, at } : { ok: false, reason };
  const tooOld = checkOpset(index);
  if (tooOld) return tooOld;
  const overlap = norm.nodes.find((node) => taken.has(node));
  if (overlap) return failed('part of the norm belongs to another fused node', overlap);

  const kept = norm.nodes.find((node) => keep.has(node));
  if (kept) return failed('it is to stay as it is (skip)', kept);

  const projections: Projection[] = [];
  const misses: { reader: Node; rule: string; failure: Failure }[] = [];
  for (const [value, narrowed] of aliasesOf(index, norm)) {
    for (const reader of index.readers(value)) {
      for (const rule of projectionRules) {
        const match = rule.match(index, reader, value);
        if (!match) continue;
        const skipped = match.ok ? match.value.nodes.find((node) => keep.has(node)) : undefined;
        const failure = skipped
          ? failed('a projection is to stay as it is (skip)', skipped)
          : match.ok
            ? undefined
            : match;
        if (failure) misses.push({ reader, rule: rule.name, failure });
        else if (match.ok)
          projections.push(narrowed === undefined ? match.value : { ...match.value, narrowed });
        break;
      }
    }
  }
  if (projections.length === 0) {
    const [reader] = index.readers(norm.output);
    const reason = `its output '${norm.output}' feeds no MatMul or Gemm with constant weights`;
    return misses[0]?.failure ?? failed(reason, reader);
  }
  if (projections.length > MAX_PROJECTIONS)
    return failed(`its output feeds ${projections.length} projections, more than ${MAX_PROJECTIONS}`);
  const { groups, others } = groupByAttention(index, projections);
  const [largest = []] = groups.sort((a, b) => b.length - a.length);
  const [qkv, mlp] = [targets.has('qkv') && largest.length > 0, targets.has('mlp') && others.length > 0];
  if (!qkv && !mlp) {
    const count = `${projections.length} projections`;
    return targets.has('qkv')
      ? failed(
          `none of its ${count} leads to attention (they meet a constant weight or the graph's end first)`,
          others[0]?.node,
        )
      : failed(`its ${count} lead to attention, which the targets leave out`, largest[0]?.node);
  }
  // One node for all where all are asked for: the input is read and normalised once.
  const group = (qkv && targets.has('mlp') ? projections : qkv ? largest : others).sort(
    (a, b) => index.position(a.node) - index.position(b.node),
  );
  const stated = index.typeOf(norm.input);
  if (stated === undefined && norm.nodes.some((node) => RETYPING.has(node.opType)))
    return failed(`the element type of its input '${norm.input}' is not known`);
  const toAttention = new Set(qkv ? largest : []);
  const choice = chooseCompatible(index, norm, group, stated, toAttention);
  if ('reason' in choice) return choice;
  const unranked = checkRank(index, norm.input);
  if (unranked) return unranked;
  const attention = new Set(choice.projections.filter((p) => toAttention.has(p)).map((p) => p.node));
  const refused = choice.others.map(({ projection: { node, rule }, failure }) =>
    refusal(index, node, rule, failure),
  );
  // Said where one with such a weight would have been fused.
  for (const { reader, rule, failure } of misses) {
    if (failure.at && keep.has(failure.at)) continue; // asked for
    const leads = attentionBehind(index, reader.outputs[0] ?? '').size > 0;
    if (index.isConstant(reader.inputs[1] ?? '') && (leads ? qkv : targets.has('mlp')))
      refused.push(refusal(index, reader, rule, failure));
  }
  const site: Site = {
    norm,
    input: norm.input,
    projections: choice.projections.map((p) => withSplit(index, unflattened(index, p, norm), norm.input)),
    targets: [
      ...(attention.size > 0 ? (['qkv'] as const) : []),
      ...(attention.size < choice.projections.length ? (['mlp'] as const) : []),
    ],
    attention,
    type: choice.type,
  };
  return { site, refused };
}

/**
 * What is as good as a norm's result for its readers: what Identity, Dropout without a mask, or DynamicQuantizeLinear makes
 * of it; and of a norm in float32 what Cast makes of it, with the 16-bit type.
 */
function aliasesOf(index: GraphIndex, norm: Norm): Map<string, number | undefined> {
  const wide = [norm.input, norm.output].every((name) => index.typeOf(name) === DataType.float);
  const values = new Map<string, number | undefined>([[norm.output, undefined]]);
  for (const [name, narrowed] of values) {
    for (const reader of index.readers(name)) {
      const output = reader.outputs[0];
      if (reader.inputs[0] !== name || output === undefined || values.has(output)) continue;
      // Integer products read what DynamicQuantizeLinear makes; their rules look at it.
      const passes = reader.is('Identity') || (reader.is('Dropout') && dropsNothing(index, reader));
      if (passes || reader.is('DynamicQuantizeLinear')) values.set(output, narrowed);
      const to = reader.is('Cast') ? reader.integer('to', 0) : 0;
      if (wide && narrowed === undefined && NARROW.has(to)) values.set(output, to);
    }
  }
  return values;
}

/**
 * Dropout whose mask is not used. Exporters leave it in models that were in training mode; ONNX Runtime takes it out when
 * it optimises a graph, whatever its ratio and its constant mode say, so that a session computes what is computed without
 * it. A mode that callers choose is left to them.
 */
function dropsNothing(index: GraphIndex, node: Node): boolean {
  const mode = node.inputs[2];
  if (mode && !findConstant(index, mode)) return false;
  const mask = node.outputs[1];
  return !mask || (index.readers(mask).length === 0 && !index.isGraphOutput(mask));
}
