/** Finds what can be fused, norms with their projections and projections alone, and the reasons for the rest. */
import { DataType } from '../onnx/tensor.js';
import type { Node } from '../onnx/node.js';
import { chooseCompatible } from './compatible.js';
import { findConstant } from './constants.js';
import type { GraphIndex } from './graph_index.js';
import { isNarrow } from './folded.js';
import { attentionBehind, groupByAttention } from './grouping.js';
import { findLinear } from './linear.js';
import { fail, type Failure, type Match } from './match.js';
import type { Norm } from './norms/norm.js';
import { normRules } from './norms/index.js';
import { findNearMisses } from './norms/near_misses.js';
import type { Target } from './options.js';
import { projectionRules } from './projections/index.js';
import type { Projection } from './projections/projection.js';
import { withSplit } from './projections/split.js';
import { unflattened } from './projections/unflatten.js';
import type { Refusal } from './report.js';
import { movedRows, type Moved } from './rows.js';
import { checkOpset, checkRank, nodesOf, refusal, type Site } from './site.js';
import { graphsWithin, misplaced, type Aliases } from './within.js';

/** Norms whose result has the type of their scale, which need not be their input's. */
const RETYPING = new Set(['RMSNormalization', 'SimplifiedLayerNormalization']);

/** ONNX Runtime's operators that hold the weights of Q, K and V. */
const WHOLE_ATTENTION = ['Attention', 'QAttention', 'PackedAttention', 'DecoderMaskedSelfAttention'];

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

/**
 * @param taken nodes of sites that have been found; those of new ones are added.
 * @param keep nodes that stay as they are.
 * @returns sites in this graph, and those in graphs within it whose norm stands in this one.
 */
export function findSites(
  index: GraphIndex,
  targets: ReadonlySet<Target>,
  taken: Set<Node>,
  keep: ReadonlySet<Node> = new Set(),
): { sites: Site[]; refused: Refusal[] } {
  const sites: Site[] = [];
  const refused: Refusal[] = [];
  if (targets.has('qkv') || targets.has('mlp')) {
    const explained = new Set<Node>();
    for (const node of index.graph.nodes) {
      for (const rule of normRules) {
        const match = rule.match(index, node);
        if (!match) continue;
        for (const member of match.ok ? match.value.nodes : [node, match.at ?? node]) explained.add(member);
        const found = match.ok ? sitesOf(index, match.value, taken, targets, keep) : match;
        if ('reason' in found) refused.push(refusal(index, node, rule.name, found));
        else {
          for (const member of found.sites.flatMap(nodesOf)) taken.add(member);
          sites.push(...found.sites);
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

/** The sites of a norm, one a graph: its own, and those within it that read its result. */
function sitesOf(
  index: GraphIndex,
  norm: Norm,
  taken: ReadonlySet<Node>,
  targets: ReadonlySet<Target>,
  keep: ReadonlySet<Node>,
): { sites: Site[]; refused: Refusal[] } | Failure {
  const tooOld = checkOpset(index);
  if (tooOld) return tooOld;
  const overlap = norm.nodes.find((node) => taken.has(node));
  if (overlap) return fail('part of the norm belongs to another fused node', overlap);
  const kept = norm.nodes.find((node) => keep.has(node));
  if (kept) return fail('it is to stay as it is (skip)', kept);

  const wide = [norm.input, norm.output].every((name) => index.typeOf(name) === DataType.float);
  const sites: Site[] = [];
  const refused: Refusal[] = [];
  const failures: Failure[] = [];
  const elsewhere: { within: GraphIndex; projection: Projection; failure: Failure }[] = [];
  const visit = (within: GraphIndex, names: Aliases, holders: readonly Node[]): void => {
    const found = siteOf(within, norm, names, wide, targets, keep);
    const outside = within !== index;
    const [projection] = found && 'site' in found ? found.site.projections : [];
    const failure = outside && projection ? misplaced(norm, index, within, holders, projection) : undefined;
    if (failure && projection) elsewhere.push({ within, projection, failure });
    else if (found && 'reason' in found) failures.push(found);
    else if (found) {
      sites.push({ ...found.site, outside });
      refused.push(...found.refused);
    }
    for (const inner of graphsWithin(within, names))
      visit(inner.index, aliasesOf(inner.index, inner.aliases, wide), [...holders, inner.holder]);
  };
  visit(index, aliasesOf(index, new Map([[norm.output, undefined]]), wide), []);
  if (sites.length === 0) return failures[0] ?? elsewhere[0]?.failure ?? feedsNothing(index, norm);
  for (const { within, projection, failure } of elsewhere)
    refused.push(refusal(within, projection.node, projection.rule, failure));
  return { sites, refused };
}

function feedsNothing(index: GraphIndex, norm: Norm): Failure {
  const readers = index.readers(norm.output);
  const whole = readers.find((reader) =>
    WHOLE_ATTENTION.some((opType) => reader.is(opType, 'com.microsoft')),
  );
  const reason = `its output '${norm.output}' feeds no MatMul or Gemm with constant weights`;
  if (!whole) return fail(reason, readers[0]);
  return fail(
    `${reason}, but ${whole.opType} '${whole.label}', which multiplies by those of Q, K and V itself`,
    whole,
  );
}

/**
 * The site of a norm in a graph, its own or one within that reads its result.
 *
 * @param aliases what is as good as the norm's result there.
 * @param wide the norm is in float32.
 * @returns undefined where nothing there comes near to a projection.
 */
function siteOf(
  index: GraphIndex,
  norm: Norm,
  aliases: Aliases,
  wide: boolean,
  targets: ReadonlySet<Target>,
  keep: ReadonlySet<Node>,
): { site: Site; refused: Refusal[] } | Failure | undefined {
  let { projections, misses } = projectionsOf(index, aliases, keep);
  const moved = projections.length === 0 && aliases.has(norm.output) ? movedBy(index, norm, wide) : undefined;
  if (moved?.ok)
    ({ projections, misses } = projectionsOf(
      index,
      aliasesOf(index, new Map([[moved.value.value, moved.value.recast?.to]]), wide),
      keep,
    ));
  else if (moved) return misses[0]?.failure ?? moved;
  const kept = moved?.value.recast?.casts.find((node) => keep.has(node));
  if (kept) return fail('a Cast of its rows is to stay as it is (skip)', kept);
  if (projections.length === 0) return misses[0]?.failure;
  if (projections.length > MAX_PROJECTIONS)
    return fail(`its output feeds ${projections.length} projections, more than ${MAX_PROJECTIONS}`);
  const { groups, others } = groupByAttention(index, projections);
  const [largest = []] = groups.sort((a, b) => b.length - a.length);
  const [qkv, mlp] = [targets.has('qkv') && largest.length > 0, targets.has('mlp') && others.length > 0];
  if (!qkv && !mlp) {
    const count = `${projections.length} projections`;
    return targets.has('qkv')
      ? fail(
          `none of its ${count} leads to attention (they meet a constant weight or the graph's end first)`,
          others[0]?.node,
        )
      : fail(`its ${count} lead to attention, which the targets leave out`, largest[0]?.node);
  }
  // One node for all where all are asked for: the input is read and normalised once.
  const group = (qkv && targets.has('mlp') ? projections : qkv ? largest : others).sort(
    (a, b) => index.position(a.node) - index.position(b.node),
  );
  const stated = index.typeOf(norm.input);
  if (stated === undefined && norm.nodes.some((node) => RETYPING.has(node.opType)))
    return fail(`the element type of its input '${norm.input}' is not known`);
  const toAttention = new Set(qkv ? largest : []);
  const choice = chooseCompatible(index, norm, group, stated, toAttention);
  if ('reason' in choice) return choice;
  const input = moved?.value.value ?? norm.input;
  const unranked = checkRank(index, input);
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
  // What keeps the shape that the projections have to restore.
  const shaped = moved ? { input, output: input } : norm;
  const site: Site = {
    index,
    norm,
    input,
    moved: moved?.value.value,
    recast: moved?.value.recast,
    projections: choice.projections.map((p) => withSplit(index, unflattened(index, p, shaped), input)),
    targets: [
      ...(attention.size > 0 ? (['qkv'] as const) : []),
      ...(attention.size < choice.projections.length ? (['mlp'] as const) : []),
    ],
    attention,
    type: choice.type,
  };
  return { site, refused };
}

/** A projection that is none, and why. */
interface Miss {
  reader: Node;
  rule: string;
  failure: Failure;
}

/** The projections of a norm's result, or of what moves its rows, and what came near to one. */
function projectionsOf(
  index: GraphIndex,
  aliases: Aliases,
  keep: ReadonlySet<Node>,
): { projections: Projection[]; misses: Miss[] } {
  const projections: Projection[] = [];
  const misses: Miss[] = [];
  for (const [value, narrowed] of aliases) {
    for (const reader of index.readers(value)) {
      const found = projectionAt(index, reader, value);
      if (!found) continue;
      const { rule, match } = found;
      const skipped = match.ok ? match.value.nodes.find((node) => keep.has(node)) : undefined;
      const reason = 'a projection is to stay as it is (skip)';
      if (skipped) misses.push({ reader, rule, failure: { ok: false, reason, at: skipped } });
      else if (!match.ok) misses.push({ reader, rule, failure: match });
      else projections.push(narrowed === undefined ? match.value : { ...match.value, narrowed });
    }
  }
  return { projections, misses };
}

/** What the first rule says that knows a reader of a value. */
function projectionAt(
  index: GraphIndex,
  reader: Node,
  value: string,
): { rule: string; match: Match<Projection> } | undefined {
  for (const rule of projectionRules) {
    const match = rule.match(index, reader, value);
    if (match) return { rule: rule.name, match };
  }
  return undefined;
}

/** The value that projections read behind nodes that move the rows of a norm's result. */
function movedBy(index: GraphIndex, norm: Norm, wide: boolean): Match<Moved> | undefined {
  const k = norm.gamma?.tensor.count ?? index.dimsOf(norm.input)?.at(-1) ?? -1;
  // A sum that has no name yet is there only for the node itself.
  if (k <= 1 || norm.sum?.output === '') return undefined;
  return movedRows(index, norm, k, wide, (start, value) => {
    // Products read what these make of the rows; see `aliasesOf`.
    const narrows = wide && index.typeOf(value) === DataType.float && isNarrow(index.castTo(start));
    const made = narrows || start.is('DynamicQuantizeLinear') ? start.outputs[0] : undefined;
    const readers = made === undefined ? [start] : index.readers(made);
    const found = readers.map((reader) => projectionAt(index, reader, made ?? value)?.match);
    return found.flatMap((match) => (match?.ok ? [match.value.k] : []))[0];
  });
}

/**
 * What is as good as some values for their readers, a norm's result or that with its rows moved: what Identity, Dropout
 * without a mask, or DynamicQuantizeLinear makes of it; and of a norm in float32 what Cast makes of it, with the 16-bit type.
 *
 * @param wide the norm is in float32.
 */
function aliasesOf(index: GraphIndex, from: Aliases, wide: boolean): Aliases {
  const values = new Map(from);
  for (const [name, narrowed] of values) {
    for (const reader of index.readers(name)) {
      const output = reader.outputs[0];
      if (reader.inputs[0] !== name || output === undefined || values.has(output)) continue;
      // Integer products read what DynamicQuantizeLinear makes; their rules look at it.
      const passes = reader.is('Identity') || (reader.is('Dropout') && dropsNothing(index, reader));
      if (passes || reader.is('DynamicQuantizeLinear')) values.set(output, narrowed);
      const to = index.castTo(reader);
      if (wide && narrowed === undefined && isNarrow(to)) values.set(output, to);
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
