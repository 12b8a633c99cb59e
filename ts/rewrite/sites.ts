/** Finds what can be fused, norms with their projections and projections alone, and the reasons for the rest. */
import { DataType, dataTypeName } from '../onnx/tensor.js';
import type { Node } from '../onnx/node.js';
import { findConstant } from './constants.js';
import type { GraphIndex } from './graph_index.js';
import { groupByAttention } from './grouping.js';
import { findLinear } from './linear.js';
import type { Failure, Match } from './match.js';
import type { Norm } from './norms/norm.js';
import { normRules } from './norms/index.js';
import { findNearMisses } from './norms/near_misses.js';
import type { Target } from './options.js';
import { projectionRules } from './projections/index.js';
import type { Projection } from './projections/projection.js';
import { withSplit } from './projections/split.js';
import { unflattened } from './projections/unflatten.js';
import type { Refusal } from './report.js';
import { movedRows } from './rows.js';
import { checkOpset, nodesOf, refusal, type Site } from './site.js';

/** Norms whose result has the type of their scale, which need not be their input's. */
const RETYPING = new Set(['RMSNormalization', 'SimplifiedLayerNormalization']);

/** ONNX Runtime's operators that hold the weights of Q, K and V. */
const WHOLE_ATTENTION = ['Attention', 'QAttention', 'PackedAttention', 'DecoderMaskedSelfAttention'];

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
    for (const node of index.model.graph.nodes) {
      for (const rule of normRules) {
        const match = rule.match(index, node);
        if (!match) continue;
        for (const member of match.ok ? match.value.nodes : [node, match.at ?? node]) explained.add(member);
        const found = match.ok ? siteOf(index, match.value, taken, targets, keep) : match;
        if ('reason' in found) refused.push(refusal(node, rule.name, found));
        else {
          for (const member of nodesOf(found)) taken.add(member);
          sites.push(found);
        }
        break;
      }
    }
    for (const { node, rule, failure } of findNearMisses(index, explained))
      refused.push(refusal(node, rule, failure));
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
): Site | Failure {
  const failed = (reason: string, at?: Node): Failure =>
    at ? { ok: false, reason, at } : { ok: false, reason };
  const tooOld = checkOpset(index);
  if (tooOld) return tooOld;
  const overlap = norm.nodes.find((node) => taken.has(node));
  if (overlap) return failed('part of the norm belongs to another fused node', overlap);

  const kept = norm.nodes.find((node) => keep.has(node));
  if (kept) return failed('it is to stay as it is (skip)', kept);

  let { projections, nearest } = projectionsOf(index, norm.output, keep);
  const moved = projections.length === 0 ? movedBy(index, norm) : undefined;
  if (moved?.ok) ({ projections, nearest } = projectionsOf(index, moved.value, keep));
  else if (moved) return nearest ?? moved;
  if (projections.length === 0) {
    const readers = index.readers(norm.output);
    const whole = readers.find((reader) =>
      WHOLE_ATTENTION.some((opType) => reader.is(opType, 'com.microsoft')),
    );
    const reason = `its output '${norm.output}' feeds no MatMul or Gemm with constant weights`;
    if (!whole || nearest) return nearest ?? failed(reason, readers[0]);
    return failed(
      `${reason}, but ${whole.opType} '${whole.label}', which multiplies by those of Q, K and V itself`,
      whole,
    );
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
  const [first] = group;
  const k = first?.k ?? 0;
  for (const [what, vector] of [
    ['scale', norm.gamma],
    ['shift', norm.beta],
  ] as const) {
    if (vector && vector.tensor.count !== k) {
      return failed(
        `the ${what} '${vector.name}' has ${vector.tensor.count} elements, the weights have K = ${k}`,
      );
    }
  }
  const mixed = group.find((p) => p.k !== k);
  if (mixed) return failed(`weights have K = ${k} and K = ${mixed.k}`, mixed.node);
  const length = index.dimsOf(norm.input)?.at(-1) ?? -1;
  if (length >= 0 && length !== k)
    return failed(`the norm's input '${norm.input}' has ${length} columns, the weights have K = ${k}`);
  // A Reshape may cut rows in pieces of K; a scale or shift of K elements says that it does not.
  const cut = length < 0 && !norm.gamma && !norm.beta ? group.find((p) => p.flattened) : undefined;
  if (cut) return failed(`how long the rows before Reshape are is not known (K = ${k} behind it)`, cut.node);
  const stated = index.typeOf(norm.input);
  if (stated === undefined && norm.nodes.some((node) => RETYPING.has(node.opType)))
    return failed(`the element type of its input '${norm.input}' is not known`);
  const type = stated ?? first?.weight.type ?? DataType.float;
  const other = group.find((p) => p.weight.type !== type);
  if (other) {
    return failed(
      `the norm's input is ${dataTypeName(type)}, the weight '${other.weight.name}' ${dataTypeName(other.weight.type)}`,
      other.node,
    );
  }
  const input = moved?.value ?? norm.input;
  return {
    norm,
    input,
    moved: moved?.value,
    projections: group.map((p) => withSplit(index, unflattened(index, p, input), input)),
    targets: [...(qkv ? (['qkv'] as const) : []), ...(mlp ? (['mlp'] as const) : [])],
    type,
  };
}

/** The projections of a value, and what came nearest to one. */
function projectionsOf(
  index: GraphIndex,
  output: string,
  keep: ReadonlySet<Node>,
): { projections: Projection[]; nearest: Failure | undefined } {
  const projections: Projection[] = [];
  let nearest: Failure | undefined;
  for (const value of aliasesOf(index, output)) {
    for (const reader of index.readers(value)) {
      const match = projectionAt(index, reader, value);
      const skipped = match?.ok ? match.value.nodes.find((node) => keep.has(node)) : undefined;
      if (skipped) nearest ??= { ok: false, reason: 'a projection is to stay as it is (skip)', at: skipped };
      else if (match?.ok) projections.push(match.value);
      else nearest ??= match;
    }
  }
  return { projections, nearest };
}

/** What the first rule says that knows a reader of a value. */
function projectionAt(index: GraphIndex, reader: Node, value: string): Match<Projection> | undefined {
  for (const rule of projectionRules) {
    const match = rule.match(index, reader, value);
    if (match) return match;
  }
  return undefined;
}

/** The value that projections read behind nodes that move the rows of a norm's result. */
function movedBy(index: GraphIndex, norm: Norm): Match<string> | undefined {
  const k = norm.gamma?.tensor.count ?? index.dimsOf(norm.input)?.at(-1) ?? -1;
  // A sum that has no name yet is there only for the node itself.
  if (k <= 1 || norm.sum?.output === '') return undefined;
  return movedRows(index, norm, k, (start, value) => {
    const quantized = start.is('DynamicQuantizeLinear') ? (start.outputs[0] ?? '') : undefined;
    const readers = quantized === undefined ? [start] : index.readers(quantized);
    const matches = readers.map((reader) => projectionAt(index, reader, quantized ?? value));
    return matches.flatMap((match) => (match?.ok ? [match.value.k] : []))[0];
  });
}

/** A value and what Identity, Dropout without a mask, or DynamicQuantizeLinear makes of it. */
function aliasesOf(index: GraphIndex, value: string): Set<string> {
  const values = new Set([value]);
  for (const name of values) {
    for (const reader of index.readers(name)) {
      const output = reader.outputs[0];
      if (reader.inputs[0] !== name || output === undefined || values.has(output)) continue;
      // Integer products read what DynamicQuantizeLinear makes; their rules look at it.
      const passes = reader.is('Identity') || (reader.is('Dropout') && dropsNothing(index, reader));
      if (passes || reader.is('DynamicQuantizeLinear')) values.add(output);
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
