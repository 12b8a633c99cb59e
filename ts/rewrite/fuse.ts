/** The rewrite: each site becomes one com.deepspeed.QKVGemm node, with a function body beside it. */
import { QkvGemmError } from '../errors.js';
import type { Graph } from '../onnx/graph.js';
import { Model } from '../onnx/model.js';
import type { Node } from '../onnx/node.js';
import { elementSize, InlineStore, type DataSource, type TensorStore } from '../onnx/tensor.js';
import { concat } from '../onnx/wire.js';
import { checkOptions } from '../options.js';
import { isOlder } from '../version_order.js';
import { checkGraph } from './check_graph.js';
import { GraphEdits } from './edits.js';
import { DOMAIN, OP, planFunctions, variantKey } from './function_body.js';
import { buildNode, type BuiltNode } from './fused_node.js';
import { generatedNames } from './generated_names.js';
import { Names } from './names.js';
import { countOps, opName } from './op_counts.js';
import { toOneVariant } from './one_variant.js';
import { targetsOf, type FuseOptions } from './options.js';
import type { FuseReport, Refusal } from './report.js';
import { scopesOf, type Scope } from './scopes.js';
import { headOf, refusal, type Site } from './site.js';
import { findSites } from './sites.js';
import { SHORTEST_BLOCK } from './weights/quantization.js';
import { SharedWeights } from './weights/shared.js';

export interface FusedModel {
  /** The model's bytes, in parts that refer to the input where nothing changed. */
  parts: Uint8Array[];
  report: FuseReport;
}

/** Keys of FuseOptions. */
export const FUSE_OPTIONS = ['dtype', 'int8Block', 'activationQuant', 'fallback', 'targets', 'skip'] as const;
const DTYPES = ['keep', 'fp16', 'bf16', 'int8'] as const;
/**
 * Rewrites a model given as bytes.
 *
 * @param source reads external data; without it a model whose fused weights are external is an error.
 * @throws QkvGemmError `INVALID_MODEL`, `UNSUPPORTED_MODEL`, `EXTERNAL_DATA`, `INVALID_ARGUMENT`.
 */
export function fuseModel(bytes: Uint8Array, options: FuseOptions = {}, source?: DataSource): FusedModel {
  const steps = fuseSteps(bytes, options, source);
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
  }
}

/** How far a rewrite is: bytes of the original weights that have been packed. */
export interface FuseProgress {
  done: number;
  total: number;
}

/**
 * The rewrite in steps, a fused node each, so that whoever drives it can show how far it is, or stop.
 *
 * @param store takes the new weights (default: the model itself).
 */
export function* fuseSteps(
  bytes: Uint8Array,
  options: FuseOptions = {},
  source?: DataSource,
  store: TensorStore = new InlineStore(),
): Generator<FuseProgress, FusedModel> {
  checkOptions('fuse', options, FUSE_OPTIONS);
  const targets = targetsOf(options);
  const dtype = options.dtype ?? 'keep';
  if (!DTYPES.includes(dtype)) {
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `fuse: dtype is '${String(dtype)}', expected one of ${DTYPES.join(', ')}.`,
    );
  }
  const { int8Block } = options;
  if (int8Block !== undefined && (!Number.isInteger(int8Block) || int8Block < SHORTEST_BLOCK)) {
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `fuse: int8Block is ${String(int8Block)}, expected a whole number of rows, ${SHORTEST_BLOCK} or more.`,
    );
  }
  if (int8Block !== undefined && dtype !== 'int8') {
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `fuse: int8Block is for weights that become int8; dtype is '${dtype}'. Set dtype to 'int8' or leave int8Block out.`,
    );
  }
  const fallback = options.fallback !== false;
  const activationQuant =
    options.activationQuant === undefined ? undefined : options.activationQuant === true;
  const model = new Model(bytes);
  const scopes = scopesOf(model, source);
  checkGraph(model.graph);
  const graphs = scopes.map(({ index }) => index.graph);
  const opsBefore = countOps(graphs.flatMap((graph) => graph.nodes));
  const keep = skipped(graphs, options.skip ?? []);
  const taken = new Set<Node>();
  const found = scopes.map(({ index }) => findSites(index, targets, taken, keep));
  const refused = found.flatMap((part) => part.refused);
  const all = found.flatMap((part) => part.sites);
  // Of a norm in a graph around, a site is in another graph than the one that it was found in.
  const sites = scopes.flatMap((scope) =>
    all.filter(({ index }) => index === scope.index).map((site) => ({ scope, site })),
  );
  const held = model.functions.includes(`${DOMAIN}:${OP}`)
    ? 'function'
    : opsBefore[opName(DOMAIN, OP)]
      ? 'node'
      : '';
  // A body that is added would be taken for nodes that are there already, whatever their form.
  if (sites.length > 0 && held !== '' && !(held === 'node' && !fallback)) {
    throw new QkvGemmError(
      'UNSUPPORTED_MODEL',
      `The model already holds the ${held} ${DOMAIN}:${OP}: it has been rewritten before. Rewrite the original instead.`,
    );
  }
  const names = new Names([...graphs, ...model.functionBodies]);
  const building = { names, dtype, int8Block, fallback, source, store, activationQuant };
  const context = { ...building, inline: new InlineStore(), shared: new SharedWeights() };
  let built: Built[] = [];
  const total = sites.reduce((sum, { site }) => sum + weightBytes(site), 0);
  let done = 0;
  for (const { scope, site } of sites) {
    const result = buildNode({ ...context, index: scope.index }, site);
    if ('reason' in result) refused.push(result);
    else {
      built.push({ scope, site: result.site, node: result.node });
      refused.push(...result.refused);
    }
    done += weightBytes(site);
    yield { done, total };
  }
  if (fallback) {
    const all = built.map(({ scope: { index }, node }) => ({ index, node }));
    const inFunctions = all.filter(({ index }) => index.inFunction);
    if (!toOneVariant(all, names)) toOneVariant(inFunctions, names);
    const nested = oneVariantInFunctions(built);
    built = built.filter((one) => !nested.others.includes(one));
    refused.push(...nested.refused);
  }
  if (activationQuant && built.length > 0 && !built.some(({ node }) => node.activationQuant)) {
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      "fuse: activationQuant is for int8 weights, and no fused node has such. Set dtype to 'int8' (--dtype int8), or leave activationQuant (--activation-quant) out.",
    );
  }
  const edits = new Map<Scope, GraphEdits>();
  for (const scope of scopes)
    edits.set(scope, new GraphEdits(scope, names, scope.parent && edits.get(scope.parent)));
  const work = built.flatMap((one) => {
    const edit = edits.get(one.scope);
    return edit ? [{ ...one, edit }] : [];
  });
  for (const { edit, site, node } of work) edit.replace(site, node);
  // Inner graphs first: what they no longer read may be read by nobody else.
  for (const { edit, site, node } of [...work].reverse()) node.report.emitNorm = edit.keepNorm(site, node);
  // One signature for all nodes where that is possible: the output `norm` is there for all or for none.
  const norm = built.some(({ node }) => node.report.emitNorm);
  const called = built.find(({ scope }) => scope.index.inFunction)?.node.variant;
  const plan = planFunctions(
    built.map(({ node }) => ({ ...node.variant, norm })),
    model.opset,
    called && { ...called, norm },
  );
  work.forEach(({ edit, site, node }, i) =>
    edit.insert(site, node, norm, fallback ? (plan.overloads[i] ?? '') : ''),
  );
  const fused = built.map(({ node }) => node.report);
  if (fused.length > 0) {
    const outermost = scopes.filter(({ parent }) => !parent);
    for (const scope of outermost) edits.get(scope)?.clean();
    for (const [scope, edit] of edits)
      for (const renamed of generatedNames(scope, names)) edit.rename(renamed);
    for (const scope of outermost) edits.get(scope)?.finish();
    model.addOpset(DOMAIN, 1);
    if (fallback) {
      for (const { message } of plan.functions) model.addFunction(message);
    }
    // Version 4 is the first in which an initialiser, such as the new weights, need not be a graph input.
    raiseIrVersion(model, fallback ? plan.irVersion : 4);
  }
  const parts = model.encode();
  const byPosition = (a: { position: number }, b: { position: number }): number => a.position - b.position;
  return {
    parts,
    report: {
      fused: fused.sort(byPosition),
      refused: refused.sort(byPosition),
      opsBefore,
      opsAfter: [...edits.values()].reduce((counts, edit) => edit.countOps(counts), opsBefore),
      bytesBefore: bytes.length,
      bytesAfter: parts.reduce((sum, part) => sum + part.length, 0),
      requires: {
        irVersion: model.resultingIrVersion,
        onnxruntime: oldestRuntime(
          built.map(({ node }) => node),
          fallback ? plan.onnxruntime : '1.22.0',
        ),
      },
      functions:
        fused.length > 0 && fallback
          ? plan.functions.map(({ overload }) => `${DOMAIN}:${OP}${overload ? `:${overload}` : ''}`)
          : [],
    },
  };
}

interface Built {
  scope: Scope;
  site: Site;
  node: BuiltNode;
}

/**
 * ONNX Runtime (1.29) does not look for overloads where one function calls another, so that the nodes in functions must all
 * have one body, which then has no overload: the one that most of them have.
 */
function oneVariantInFunctions(built: readonly Built[]): { others: readonly Built[]; refused: Refusal[] } {
  const variants = new Map<string, Built[]>();
  for (const one of built) {
    if (!one.scope.index.inFunction) continue;
    const key = variantKey(one.node.variant);
    variants.set(key, [...(variants.get(key) ?? []), one]);
  }
  const [, ...rest] = [...variants.values()].sort((a, b) => b.length - a.length);
  const others = rest.flat();
  const refused = others.map(({ scope, site }) => {
    const { node, rule } = headOf(site);
    const reason =
      'it would be a fused node of another kind (norm, bias, outputs, weights) than more others in functions, where ONNX Runtime finds one function body alone; without function bodies (--no-fallback) all are fused';
    return refusal(scope.index, node, rule, { ok: false, reason });
  });
  return { others, refused };
}

/** Nodes by name. A name that no node has is a mistake: what was to be kept would be fused. */
function skipped(graphs: readonly Graph[], names: readonly string[]): Set<Node> {
  const found = new Set<Node>();
  if (names.length === 0) return found;
  const all = graphs.flatMap((graph) => graph.nodes);
  for (const name of names) {
    const nodes = all.filter((node) => node.name === name);
    if (name === '' || nodes.length === 0) {
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `skip: no node of the graph is named '${name}'. The report's 'replaced' (--dry-run --explain) lists the names of nodes that would be fused.`,
      );
    }
    for (const node of nodes) found.add(node);
  }
  return found;
}

function weightBytes({ projections }: Site): number {
  return projections.reduce(
    (sum, { weight: { tensor } }) => sum + tensor.count * (elementSize(tensor.type) ?? 0),
    0,
  );
}

/**
 * ONNX Runtime before this reads the type of an absent input that others follow before it calls a custom op's shape
 * inference, and crashes where the library is registered.
 */
const GAPS_NEED = '1.24.1';

function oldestRuntime(nodes: readonly BuiltNode[], otherwise: string): string {
  if (nodes.length === 0) return 'any';
  return nodes.some(({ inputs }) => inputs.includes('')) && isOlder(otherwise, GAPS_NEED)
    ? GAPS_NEED
    : otherwise;
}

/** From IR version 4 on an initialiser among the graph's inputs is one that callers may override; before, it had to be there. */
function raiseIrVersion(model: Model, version: number): void {
  if (model.irVersion < 4 && version >= 4) {
    for (const input of model.graph.inputs)
      if (model.graph.initializers.has(input.name)) model.graph.removeInput(input.name);
  }
  model.requireIrVersion(version);
}

/** The same, as one array. */
export function fuseBytes(
  bytes: Uint8Array,
  options: FuseOptions = {},
  source?: DataSource,
): { model: Uint8Array; report: FuseReport } {
  const { parts, report } = fuseModel(bytes, options, source);
  return { model: parts.length === 1 && parts[0] ? parts[0] : concat(parts), report };
}
