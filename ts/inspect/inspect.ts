/** What a model file is: its interface, its operators, and its norm + projection blocks with what each costs. */
import path from 'node:path';
import { QkvGemmError } from '../errors.js';
import { FolderSource } from '../external_data.js';
import { externalTensors } from '../onnx/external_tensors.js';
import { readModelFile } from '../files.js';
import { defaultOutput, planFile } from '../fuse_file.js';
import { checkSizes, dimensionName, type Sizes } from '../generated_inputs.js';
import { Graph, type ValueInfo } from '../onnx/graph.js';
import { Model } from '../onnx/model.js';
import { dataTypeName, elementSize } from '../onnx/tensor.js';
import { integer, readFields, text, type Field } from '../onnx/wire.js';
import { checkOptions } from '../options.js';
import type { Progress } from '../progress.js';
import { GraphIndex } from '../rewrite/graph_index.js';
import { countOps, type OpCounts } from '../rewrite/op_counts.js';
import type { Target } from '../rewrite/options.js';
import type { FusedSite, Refusal } from '../rewrite/report.js';
import { operandBytes, qkvNodes, type QkvNode } from './qkv_nodes.js';
import { rowsOf, sized } from './rows.js';

/** Options of `inspectModel`. */
export interface InspectOptions {
  /** Which projections are looked for (default `['qkv']`), as for `fuse`. */
  targets?: readonly Target[];
  /** Sizes of dimensions that the model leaves open, by name: with them each block's cost is given. */
  dims?: Sizes;
  /** Rows of all blocks, instead of what follows from `dims`. */
  rows?: number;
  /** Called now and then, with sums that never fall within a phase. */
  onProgress?: (progress: Progress) => void;
}

/** An input or output of a model's graph. */
export interface ValueDescription {
  /** Its name. */
  name: string;
  /** Element type as ONNX names it (`float16`, `int64`), or what kind of value it is where it is no tensor. */
  type: string;
  /** Sizes and symbols ('' for neither); absent where the rank is unknown. */
  shape?: (number | string)[];
}

/** What a block costs at a number of rows. */
export interface BlockCost {
  /** Rows that the norm or product runs over: all dimensions of its input but the last, multiplied. */
  rows: number;
  /** Of the product alone: 2 rows K N. */
  flops: number;
  /** Least bytes that must be moved: weights with scales, input, outputs. */
  bytes: number;
}

/** A norm with its projections, or projections without a norm. */
export interface Block {
  /** `fused`: a com.deepspeed.QKVGemm node; `fusible`: what `fuse` would make one of. */
  state: 'fused' | 'fusible';
  /** Name of that node. */
  node: string;
  /** The norm's node, of what is fusible. */
  norm?: string;
  /** Rules that match, of what is fusible. */
  rules?: {
    /** The norm's; `none` where there is none. */
    norm: string;
    /** The projection's. */
    projection: string;
  };
  /** What its projections are for, of what is fusible. */
  targets?: Target[];
  /** `layer_norm`, `rms_norm` or `none`. */
  normType: string;
  /** What is added to the variance or mean square. */
  epsilon: number;
  /** The normalised input is an output as well. */
  emitNorm: boolean;
  /** Length of the normalised axis; absent where weights are computed, as are the next two. */
  k?: number;
  /** Columns of all projections. */
  n?: number;
  /** Columns of each output; their sum is `n`. */
  splits?: number[];
  /** Element type of input and outputs as ONNX names it; '' where the graph does not say it. */
  activationType: string;
  /** Element type of the weights as ONNX names it; `computed` where they are no constants. */
  weightType: string;
  /** Bytes of weights, scales and zero points. */
  weightBytes?: number;
  /** What it costs; absent where rows or weights are not known. */
  cost?: BlockCost;
}

/** What `inspectModel` found. */
export interface ModelDescription {
  /** Path of the model file. */
  file: string;
  /** Length of the model file. */
  bytes: number;
  /** Files with external data. */
  externalFiles: {
    /** Name relative to the model's folder. */
    file: string;
    /** Its length. */
    bytes: number;
  }[];
  /** ModelProto.ir_version. */
  irVersion: number;
  /** Version by domain; ONNX's own is ''. */
  opsets: Record<string, number>;
  /** ModelProto.producer_name and producer_version; '' where neither is given. */
  producer: string;
  /** ModelProto.model_version. */
  modelVersion?: number;
  /** ModelProto.metadata_props. */
  metadata: Record<string, string>;
  /** Model-local functions, as `domain:name[:overload]`. */
  functions: string[];
  /** Inputs that a caller gives: those with an initialiser are left out. */
  inputs: ValueDescription[];
  /** Outputs of the main graph. */
  outputs: ValueDescription[];
  /** Nodes of the main graph by operator. */
  ops: OpCounts;
  /** Initialisers of the main graph by type. */
  weights: Record<
    string,
    {
      /** How many there are. */
      tensors: number;
      /** Elements of all of them. */
      elements: number;
      /** Bytes of all of them. */
      bytes: number;
    }
  >;
  /** Blocks that are nodes already, in the order of the graphs that hold them, then those that could be. */
  blocks: Block[];
  /** Norms (with the target `linear`, projections too) that `fuse` would leave, and why. */
  refused: Refusal[];
  /** Why what is fusible is not known, where that is so. */
  problem?: string;
}

/**
 * Describes a model. Nothing is written; weights of blocks that are not fused yet are read, as `fuse` would.
 *
 * @param file path of a model file, with its external data beside it.
 * @returns interface, operators, weights, and blocks with the FLOPs and bytes that each costs.
 * @throws QkvGemmError `FILE_NOT_FOUND`, `FILE_NOT_READABLE`, `INVALID_MODEL`, `EXTERNAL_DATA`, `INVALID_ARGUMENT`.
 */
export async function inspectModel(file: string, options: InspectOptions = {}): Promise<ModelDescription> {
  checkOptions('inspect', options, ['targets', 'dims', 'rows', 'onProgress']);
  const { targets = ['qkv'], dims = {}, onProgress } = options;
  if (options.rows !== undefined && !(Number.isSafeInteger(options.rows) && options.rows > 0))
    throw new QkvGemmError('INVALID_ARGUMENT', `inspect: rows is ${options.rows}, expected 1 or more.`);
  const bytes = readModelFile(file);
  const source = new FolderSource(path.dirname(file));
  const model = new Model(bytes);
  const index = new GraphIndex(model, source);
  const fused = qkvNodes(model, source).map(fusedBlock);
  let fusible: Block[] = [];
  let refused: Refusal[] = [];
  let problem: string | undefined;
  try {
    const { report: plan } = await planFile(file, defaultOutput(file), {
      targets,
      ...(onProgress ? { onProgress } : {}),
    });
    fusible = plan.fused.map(fusibleBlock);
    refused = plan.refused;
  } catch (error) {
    // What is fused already, or too large, can be described all the same.
    if (!(error instanceof QkvGemmError) || error.code !== 'UNSUPPORTED_MODEL') throw error;
    problem = error.message;
  }
  const inputs = model.graph.inputs
    .filter(({ name }) => !model.graph.initializers.has(name))
    .map(describeValue);
  checkSizes(
    dims,
    inputs.map(({ name, type, shape = [] }) => ({ name, isTensor: true, type: type as 'float32', shape })),
  );
  const known = rowsOf(
    inputs.map(({ name, type, shape }) => ({
      type,
      shape: shape?.map((dim, axis) => dimensionName(name, dim, axis)),
    })),
    dims,
  )?.rows;
  const positions = new Map(model.graph.nodes.map((node) => [node.label, node]));
  const withCost = (block: Block): Block => {
    const node = positions.get(block.norm ?? block.node);
    const activationType =
      block.activationType ||
      dataTypeName(index.typeOf(node?.outputs[0] ?? '') ?? index.typeOf(node?.inputs[0] ?? '') ?? 0);
    const shape = sized(shapeOf(model.graph, node?.inputs[0] ?? ''), dims);
    const own = shape?.slice(0, -1).reduce((all, dim) => all * dim, 1);
    return costOf({ ...block, activationType }, options.rows ?? own ?? known);
  };
  return {
    file,
    bytes: bytes.length,
    ...headOf(bytes),
    irVersion: model.irVersion,
    opsets: Object.fromEntries(model.opsets),
    functions: model.functions,
    externalFiles: externalFiles(bytes, source),
    inputs,
    outputs: model.graph.outputs.map(describeValue),
    ops: countOps(model.graph.nodes),
    weights: weightsOf(model.graph),
    blocks: [...fused, ...fusible].map(withCost),
    refused,
    ...(problem === undefined ? {} : { problem }),
  };
}

function describeValue({ name, type, shape }: ValueInfo): ValueDescription {
  return { name, type: type === undefined ? 'no tensor' : dataTypeName(type), ...(shape ? { shape } : {}) };
}

function shapeOf(graph: Graph, name: string): (number | string)[] | undefined {
  return graph.valueInfos.get(name)?.shape ?? graph.inputs.find((input) => input.name === name)?.shape;
}

/** ModelProto: producer_name 2, producer_version 3, model_version 5, metadata_props 14 { key 1, value 2 }. */
function headOf(bytes: Uint8Array): Pick<ModelDescription, 'producer' | 'modelVersion' | 'metadata'> {
  const fields = readFields(bytes, 'the model');
  const one = (list: readonly Field[], number: number): string => {
    const field = list.findLast((candidate) => candidate.number === number);
    return field ? text(field) : '';
  };
  const version = fields.findLast(({ number }) => number === 5);
  const metadata = fields
    .filter(({ number }) => number === 14)
    .map(({ value }) => readFields(value, 'a metadata entry'))
    .map((entry) => [one(entry, 1), one(entry, 2)] as const);
  return {
    producer: [one(fields, 2), one(fields, 3)].filter((part) => part !== '').join(' '),
    ...(version ? { modelVersion: integer(version) } : {}),
    metadata: Object.fromEntries(metadata),
  };
}

function externalFiles(model: Uint8Array, source: FolderSource): ModelDescription['externalFiles'] {
  const sizes = new Map<string, number>();
  for (const { name, external } of externalTensors(model)) {
    if (!external) continue;
    const { file, size } = source.locate(external, name);
    sizes.set(file, size);
  }
  return [...sizes].map(([name, bytes]) => ({ file: name, bytes }));
}

function weightsOf(graph: Graph): ModelDescription['weights'] {
  const weights: ModelDescription['weights'] = {};
  for (const { type, count } of graph.initializers.values()) {
    const entry = (weights[dataTypeName(type)] ??= { tensors: 0, elements: 0, bytes: 0 });
    entry.tensors++;
    entry.elements += count;
    entry.bytes += count * (elementSize(type) ?? 0);
  }
  return weights;
}

function fusedBlock(found: QkvNode): Block {
  const { node, index, weight } = found;
  // Pieces without columns stand for outputs that other nodes have: see rewrite/one_variant.ts.
  const splits = node.integers('splits')?.filter((width) => width > 0);
  const type = [node.inputs[0], node.outputs[0]].map((name) => index.typeOf(name ?? '')).find((t) => t);
  return {
    state: 'fused',
    node: node.label,
    normType: node.attributes.get('norm_type')?.string ?? 'layer_norm',
    epsilon: node.float('epsilon', 1e-5),
    emitNorm: node.integer('emit_norm', 0) === 1,
    ...(weight
      ? {
          k: weight.k,
          n: weight.n,
          splits: splits ?? [weight.n],
          weightBytes: operandBytes(found, [1, 5, 6]),
        }
      : {}),
    activationType: type === undefined ? '' : dataTypeName(type),
    weightType: weight ? dataTypeName(weight.tensor.type) : 'computed',
  };
}

function fusibleBlock(site: FusedSite): Block {
  const { node, norm, rules, targets, normType, epsilon, emitNorm, k, n, splits, weightType } = site;
  const size = { float32: 4, float16: 2, bfloat16: 2, int8: 1 }[weightType];
  const scales = weightType === 'int8' ? 4 * n * (k / (site.scaleBlock ?? k)) : 0;
  return {
    state: 'fusible',
    node,
    ...(norm === undefined ? {} : { norm }),
    ...{ rules, targets, normType, epsilon, emitNorm, k, n, splits, weightType },
    activationType: '',
    weightBytes: k * n * size + scales,
  };
}

const ACTIVATION_BYTES: Record<string, number> = { float32: 4, float16: 2, bfloat16: 2 };

function costOf(block: Block, rows: number | undefined): Block {
  const { k, n, weightBytes, activationType, emitNorm } = block;
  if (rows === undefined || k === undefined || n === undefined || weightBytes === undefined) return block;
  const moved = rows * (k + n + (emitNorm ? k : 0)) * (ACTIVATION_BYTES[activationType] ?? 4);
  return { ...block, cost: { rows, flops: 2 * rows * k * n, bytes: weightBytes + moved } };
}
