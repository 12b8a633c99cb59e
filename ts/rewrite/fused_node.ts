/** A site as one com.deepspeed.QKVGemm node: its inputs, new initialisers and attributes. */
import { encodeAttribute, encodeNode } from '../onnx/node.js';
import { DataType, type DataSource, type TensorStore } from '../onnx/tensor.js';
import { BFLOAT16_OPSET, DOMAIN, encodeVector, OP, type Variant } from './function_body.js';
import type { Constant } from './constants.js';
import type { GraphIndex } from './graph_index.js';
import { fail } from './match.js';
import type { Names } from './names.js';
import type { FuseOptions } from './options.js';
import type { FusedSite, Refusal, WeightType } from './report.js';
import { nodesOf, refusal, type Site } from './site.js';
import { carryQuantized } from './weights/carry.js';
import { assembleWeights, joinBiases, storedName, vectorOperand } from './weights/assemble.js';

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
  variant: Omit<Variant, 'norm'>;
  report: FusedSite;
  initializers: Uint8Array[][];
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
  /** Takes the new weights. */
  store: TensorStore;
}

export function buildNode(context: BuildContext, site: Site): BuiltNode | Refusal {
  const { index, names, dtype, int8Block, fallback, source, store } = context;
  const { norm, projections, type } = site;
  const head = norm?.node ?? projections[0]?.node;
  const rule = norm?.rule ?? projections[0]?.rule ?? '';
  if (!head) throw new TypeError('a site without nodes');
  const name = names.unique(`${head.name || (norm?.output ?? projections[0]?.output)}/${OP}`);
  const initializers: Uint8Array[][] = [];
  const add = (parts: Uint8Array[]): void => void initializers.push(parts);
  const weights = projections.some((p) => p.quantization)
    ? carryQuantized(index, projections, name, names.unique, source, store)
    : assembleWeights(index, projections, { dtype, int8Block }, name, names.unique, source, store);
  if (!weights.ok) return refusal(head, rule, weights);
  const { opset } = index.model;
  if (fallback && opset < BFLOAT16_OPSET && weights.value.type === DataType.bfloat16) {
    const reason = `the model is in opset ${opset}, in which the function body cannot read bfloat16; ${BFLOAT16_OPSET} can`;
    return refusal(head, rule, fail(reason));
  }
  initializers.push(...weights.value.initializers);
  const k = projections[0]?.k ?? 0;
  const n = projections.reduce((sum, p) => sum + p.n, 0);
  const vector = (constant: Constant | undefined, what: string, fill: number): string =>
    vectorOperand(
      index,
      constant,
      { length: k, fill },
      type,
      () => names.unique(`${name}.${what}`),
      add,
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
    initializers,
    variant: {
      normType: norm?.normType ?? 'none',
      splits: splits.length,
      transposed: weights.value.transposed,
      type,
      weightType: weights.value.type,
      bias: bias !== undefined,
      ...(scaleBlock === undefined || scaleBlock === k ? {} : { scales: 'blocks' }),
      ...(zeroPoint === undefined ? {} : { zeroPoint: true }),
    },
    report: {
      node: name,
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
      ...(scaleBlock === undefined || scaleBlock === k ? {} : { scaleBlock }),
      ...(weights.value.sqnrDb === undefined ? {} : { weightSqnrDb: weights.value.sqnrDb }),
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
      encodeAttribute('splits', { integers: node.report.splits }),
      encodeAttribute('emit_norm', { integer: node.report.emitNorm ? 1 : 0 }),
      encodeAttribute('activation_quant', { integer: 0 }),
    ],
  });
}
