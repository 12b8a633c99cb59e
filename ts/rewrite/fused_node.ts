/** A site as one com.deepspeed.QKVGemm node: its inputs, new initialisers and attributes. */
import { encodeAttribute, encodeNode, type Node } from '../onnx/node.js';
import { DataType, type DataSource, type TensorStore } from '../onnx/tensor.js';
import { BFLOAT16_OPSET, DOMAIN, encodeVector, OP, ROUND_OPSET, type Variant } from './function_body.js';
import type { Constant } from './constants.js';
import type { GraphIndex } from './graph_index.js';
import { fail, type Failure, type Match } from './match.js';
import type { Names } from './names.js';
import type { FuseOptions } from './options.js';
import type { FusedSite, Refusal, WeightType } from './report.js';
import type { Projection } from './projections/projection.js';
import { headOf, nodesOf, refusal, type Site } from './site.js';
import { carryQuantized } from './weights/carry.js';
import {
  assembleWeights,
  joinBiases,
  storedName,
  vectorOperand,
  type Weights,
  type WeightsFailure,
} from './weights/assemble.js';
import type { SharedWeights } from './weights/shared.js';

const WEIGHT_TYPES: Record<number, WeightType> = {
  [DataType.float]: 'float32',
  [DataType.float16]: 'float16',
  [DataType.bfloat16]: 'bfloat16',
  [DataType.int8]: 'int8',
};

/** A fused node before it is put into the graph. */
export interface BuiltNode {
  name: string;
  inputs: string[];
  transposed: boolean;
  activationQuant: boolean;
  /** The attribute: columns of each output, and zeros for outputs that only other nodes have: see one_variant.ts. */
  splits: number[];
  variant: Omit<Variant, 'norm'>;
  report: FusedSite;
  /** TensorProto bytes, in parts, and the graph that they go into. */
  initializers: { home: GraphIndex; parts: Uint8Array[] }[];
}

/** What building a node needs to know of the model around it. */
export interface BuildContext {
  index: GraphIndex;
  names: Names;
  dtype: NonNullable<FuseOptions['dtype']>;
  int8Block: number | undefined;
  /** A function body goes with the node. */
  fallback: boolean;
  source: DataSource | undefined;
  /** Takes the new weights, those of functions aside. */
  store: TensorStore;
  /** Takes those: their constants are attributes, which runtimes do not look for in other files. */
  inline: TensorStore;
  /** Weights of other nodes. */
  shared: SharedWeights;
  /** Nodes with int8 weights round their rows to int8 as well; undefined: where the model rounds them itself. */
  activationQuant: boolean | undefined;
}

/**
 * The graph that what is made of constants goes into: where the innermost of them lies, so that all graphs that read the same
 * constants can read it, too.
 */
function homeOf(index: GraphIndex, names: readonly string[]): GraphIndex {
  const homes = new Set(names.map((name) => index.home(name)));
  let home = index;
  while (homes.size > 0 && !homes.has(home) && home.parent) home = home.parent;
  return home;
}

/**
 * @returns the node, and the refusals of projections whose weights kept the others from becoming one; or the refusal of all.
 */
export function buildNode(
  context: BuildContext,
  whole: Site,
): { node: BuiltNode; site: Site; refused: Refusal[] } | Refusal {
  const { index, names } = context;
  const { node: head, rule } = headOf(whole);
  const value = whole.norm && !whole.outside ? whole.norm.output : whole.projections[0]?.output;
  const name = names.unique(`${head.name || value}/${OP}`);
  const refused: Refusal[] = [];
  for (let site = whole; ;) {
    const node = build(context, site, name, head);
    if (!('reason' in node)) return { node, site, refused };
    const smaller = 'culprit' in node ? without(site, node.culprit) : undefined;
    if (!smaller || !('culprit' in node)) return refusal(index, head, rule, node);
    const { culprit } = node;
    refused.push(refusal(index, culprit.node, culprit.rule, { ...node, at: culprit.node }));
    site = smaller;
  }
}

/** A site without one of its projections, if any is left for what it is for. */
function without(site: Site, culprit: Projection): Site | undefined {
  const projections = site.projections.filter(({ node }) => node !== culprit.node);
  const attention = new Set([...site.attention].filter((node) => node !== culprit.node));
  const lost = site.attention.size > 0 && attention.size === 0;
  if (projections.length === 0 || projections.length === site.projections.length || lost) return undefined;
  const targets = site.targets.filter(
    (target) => target !== 'mlp' || projections.some(({ node }) => !attention.has(node)),
  );
  return { ...site, projections, attention, targets };
}

function weightsOf(
  context: BuildContext,
  { projections }: Site,
  name: string,
): Match<Weights> | WeightsFailure {
  const { index, names, dtype, int8Block, source, shared } = context;
  const known = shared.find(index, projections);
  if (known) return { ok: true, value: known };
  const home = homeOf(
    index,
    projections.map(({ weight }) => weight.name),
  );
  const store = home.inFunction ? context.inline : context.store;
  const weights = projections.some((p) => p.quantization)
    ? carryQuantized(index, projections, name, names.unique, source, store)
    : assembleWeights(index, projections, { dtype, int8Block }, name, names.unique, source, store);
  if (weights.ok && weights.value.initializers.length > 0)
    shared.add(index, home, projections, weights.value);
  return weights;
}

function build(
  context: BuildContext,
  site: Site,
  name: string,
  head: Node,
): BuiltNode | Failure | WeightsFailure {
  const { index, names, fallback, source } = context;
  const { norm, projections, type } = site;
  const initializers: BuiltNode['initializers'] = [];
  const adding =
    (home: GraphIndex) =>
    (parts: Uint8Array[]): void =>
      void initializers.push({ home, parts });
  const weights = weightsOf(context, site, name);
  if (!weights.ok) return weights;
  const { opset } = index.model;
  if (fallback && opset < BFLOAT16_OPSET && weights.value.type === DataType.bfloat16) {
    const reason = `the model is in opset ${opset}, in which the function body cannot read bfloat16; ${BFLOAT16_OPSET} can`;
    return fail(reason);
  }
  // Without a norm rows may have one sign, and the model's scale, which is not symmetric, be twice as fine.
  const asModel = norm !== undefined && projections.every((p) => p.roundsActivations);
  const wanted = context.activationQuant ?? asModel;
  const unable = fallback && opset < ROUND_OPSET;
  const activationQuant =
    wanted && weights.value.type === DataType.int8 && !(unable && context.activationQuant === undefined);
  if (activationQuant && unable)
    return fail(
      `the model is in opset ${opset}, in which the function body cannot round activations; ${ROUND_OPSET} can`,
    );
  const home = homeOf(
    index,
    projections.map(({ weight }) => weight.name),
  );
  weights.value.initializers.forEach(adding(home));
  const k = projections[0]?.k ?? 0;
  const n = projections.reduce((sum, p) => sum + p.n, 0);
  const vector = (constant: Constant | undefined, what: string, fill: number): string =>
    vectorOperand(
      index,
      constant,
      { length: k, fill },
      type,
      () => names.unique(`${name}.${what}`),
      adding(homeOf(index, constant ? [constant.name] : [])),
      source,
    );
  // A sum that no value of the graph holds gets a name; the edits put the Adds there.
  const sum = norm?.sum && (norm.sum.output || names.unique(`${norm.output}/sum`));
  const input = site.moved ?? sum ?? site.input;
  const inputs = [
    input,
    weights.value.weight,
    norm ? vector(norm.gamma, 'gamma', 1) : '',
    norm?.normType === 'layer_norm' ? vector(norm.beta, 'beta', 0) : '',
  ];
  const biases = projections.flatMap((p) => (p.bias ? [p.bias.name] : []));
  const add = adding(homeOf(index, biases));
  let bias = biasOperand(context, site, name, add);
  if (bias === undefined && weights.value.scale !== undefined) {
    // No gap before the scale: see GAPS_NEED.
    bias = names.unique(`${name}.bias`);
    add([encodeVector(bias, new Float32Array(n))]);
  }
  inputs.push(bias ?? '', weights.value.scale ?? '', weights.value.zeroPoint ?? '');
  while (inputs.at(-1) === '') inputs.pop();
  const splits = projections.flatMap((p) => (p.pieces ?? [p]).map((piece) => piece.n));
  const { scaleBlock, zeroPoint } = weights.value;
  return {
    name,
    inputs,
    transposed: weights.value.transposed,
    activationQuant,
    initializers,
    splits: [...splits],
    variant: {
      normType: norm?.normType ?? 'none',
      splits: splits.length,
      transposed: weights.value.transposed,
      type,
      weightType: weights.value.type,
      bias: bias !== undefined,
      ...(scaleBlock === undefined || scaleBlock === k ? {} : { scales: 'blocks' }),
      ...(zeroPoint === undefined ? {} : { zeroPoint: true }),
      ...(activationQuant ? { activationQuant } : {}),
    },
    report: {
      node: name,
      ...(index.scope === undefined ? {} : { scope: index.scope }),
      ...(norm ? { norm: norm.node.label } : {}),
      targets: site.targets,
      rules: {
        norm: norm?.rule ?? 'none',
        projection: [...new Set(projections.map((p) => p.rule))].join(', '),
      },
      replaced: nodesOf(site).map((node) => node.label),
      normType: norm?.normType ?? 'none',
      epsilon: norm?.epsilon ?? 0,
      k,
      n,
      splits,
      emitNorm: false,
      weightType: WEIGHT_TYPES[weights.value.type] ?? 'float32',
      ...(activationQuant ? { activationQuant: true as const } : {}),
      ...(scaleBlock === undefined || scaleBlock === k ? {} : { scaleBlock }),
      ...(weights.value.sqnrDb === undefined ? {} : { weightSqnrDb: weights.value.sqnrDb }),
      position: index.ordinals.get(head) ?? -1,
    },
  };
}

function biasOperand(
  { index, names, source }: BuildContext,
  { projections, type }: Site,
  name: string,
  add: (parts: Uint8Array[]) => void,
): string | undefined {
  const [only] = projections;
  const existing = only?.bias && storedName(index, only.bias);
  if (projections.length === 1 && only?.bias && existing !== undefined && only.biasFactor === 1) {
    const { tensor } = only.bias;
    if (tensor.dims.length === 1 && (tensor.type === type || tensor.type === DataType.float)) return existing;
  }
  const values = joinBiases(projections, source);
  if (!values) return undefined;
  const fresh = names.unique(`${name}.bias`);
  add([encodeVector(fresh, values)]);
  return fresh;
}

/** The NodeProto. All attributes are written, because the function body refers to them. */
export function encodeBuilt(node: BuiltNode, outputs: readonly string[], overload: string): Uint8Array {
  return encodeNode({
    opType: OP,
    domain: DOMAIN,
    overload,
    name: node.name,
    doc: `${node.report.rules.norm} + ${node.report.rules.projection}`,
    inputs: node.inputs,
    outputs,
    attributes: [
      encodeAttribute('norm_type', { string: node.variant.normType }),
      encodeAttribute('epsilon', { float: node.report.epsilon }),
      encodeAttribute('transposed', { integer: node.transposed ? 1 : 0 }),
      encodeAttribute('splits', { integers: node.splits }),
      encodeAttribute('emit_norm', { integer: node.report.emitNorm ? 1 : 0 }),
      encodeAttribute('activation_quant', { integer: node.activationQuant ? 1 : 0 }),
    ],
  });
}
