/** Models of one com.deepspeed.QKVGemm node, in every form that the operator's contract allows. */
import type { AttributeValue } from '../ts/onnx/node.js';
import { DataType } from '../ts/onnx/tensor.js';
import { DOMAIN, OP } from '../ts/rewrite/function_body.js';
import { fromFloat32, toFloat32 } from '../ts/rewrite/weights/convert.js';
import { IR_VERSION, ModelBuilder, OPSET, uniform } from './builder.js';

export const INPUTS = ['input', 'weight', 'gamma', 'beta', 'bias', 'scale', 'zero_point'] as const;
export type InputName = (typeof INPUTS)[number];

/** A node's form. Element types are those of `DataType`. */
export interface QkvGemmSpec {
  /** Shape of the input; K is its last dimension. */
  dims: readonly number[];
  n: number;
  /** T (default float). */
  type?: number;
  /** Default float. */
  weightType?: number;
  /** Default: the attribute is left out, which means layer_norm. */
  norm?: 'layer_norm' | 'rms_norm' | 'none';
  /** Default: the attribute is left out, which means 1e-5. */
  epsilon?: number;
  /** Element types; without one the input is absent. */
  gamma?: number;
  beta?: number;
  bias?: number;
  /** Of int8 weights. `type` is float by default. */
  scale?: { shape: readonly number[]; type?: number; zeroPoint?: boolean };
  transposed?: boolean;
  splits?: readonly number[];
  emitNorm?: boolean;
  activationQuant?: boolean;
  /** Output slots beyond the first that the node leaves unnamed. */
  unnamed?: readonly number[];
  /** What comes as graph input and not as initialiser, beside `input`. */
  fed?: readonly InputName[];
}

/** A tensor; `values` are exact in its element type. */
export interface Operand {
  type: number;
  dims: readonly number[];
  values: Float32Array<ArrayBuffer>;
}

/** Those that are absent or undefined are left out of the node. */
export type Operands = Partial<Record<InputName, Operand | undefined>>;

export interface NodeForm {
  nodeName?: string;
  /** Put before the name of every value (default ''). */
  prefix?: string;
  overload?: string;
  /** Write all six attributes, as the rewriter does, and not only those that the form sets. */
  allAttributes?: boolean;
  /** Attributes added or put in place of the form's own. */
  attributes?: Record<string, AttributeValue>;
  /** The node's outputs in place of the form's own. */
  outputs?: readonly string[];
  /** Shape that the graph declares for the node's input (default: the operand's). */
  inputDims?: readonly (number | string)[];
  /** Declares the graph's inputs without a shape, so that nothing is known before the model runs. */
  unknownShapes?: boolean;
}

export interface ModelSettings extends NodeForm {
  opset?: number;
  irVersion?: number;
  /** FunctionProto bytes. */
  functions?: readonly Uint8Array[];
}

/** A graph input's tensor. */
export interface Feed {
  name: string;
  type: number;
  dims: readonly number[];
  data: Uint8Array<ArrayBuffer>;
}

export interface QkvGemmModel {
  bytes: Uint8Array;
  feeds: Feed[];
}

const product = (dims: readonly number[]): number => dims.reduce((result, dim) => result * dim, 1);
export const depthOf = (spec: QkvGemmSpec): number => spec.dims.at(-1) ?? 1;
export const splitsOf = (spec: QkvGemmSpec): readonly number[] => spec.splits ?? [spec.n];

/** Values as an element type stores them: float, float16 or bfloat16. */
export function roundTo(values: Float32Array<ArrayBuffer>, type: number): Float32Array<ArrayBuffer> {
  return toFloat32(fromFloat32(values, type), type);
}

/** Random operands, the same for the same seed, rounded to their element types. */
export function randomOperands(spec: QkvGemmSpec, seed = 1): Operands {
  const k = depthOf(spec);
  const floats = (
    type: number,
    dims: readonly number[],
    limit: number,
    centre: number,
    salt: number,
  ): Operand => {
    const values = uniform(product(dims), limit, seed * 16 + salt, centre);
    return { type, dims, values: roundTo(values, type) };
  };
  const integers = (dims: readonly number[], limit: number, salt: number): Operand => ({
    type: DataType.int8,
    dims,
    values: uniform(product(dims), limit, seed * 16 + salt).map(Math.floor),
  });
  const { weightType = DataType.float, scale } = spec;
  const weightDims = spec.transposed ? [spec.n, k] : [k, spec.n];
  const operands: Operands = {
    input: floats(spec.type ?? DataType.float, spec.dims, 1, 0.25, 1),
    weight:
      weightType === DataType.int8 ? integers(weightDims, 128, 2) : floats(weightType, weightDims, 1, 0, 2),
  };
  if (spec.gamma !== undefined) operands.gamma = floats(spec.gamma, [k], 0.5, 1, 3);
  if (spec.beta !== undefined) operands.beta = floats(spec.beta, [k], 0.5, 0, 4);
  if (spec.bias !== undefined) operands.bias = floats(spec.bias, [spec.n], 1, 0, 5);
  if (scale) {
    operands.scale = floats(scale.type ?? DataType.float, scale.shape, 1 / 256, 1 / 128, 6);
    if (scale.zeroPoint) operands.zero_point = integers(scale.shape, 32, 7);
  }
  return operands;
}

/** Elements as they are stored, little-endian. */
function encode({ type, values }: Operand): Uint8Array<ArrayBuffer> {
  switch (type) {
    case DataType.int8:
      return new Uint8Array(new Int8Array(values).buffer);
    case DataType.uint8:
      return new Uint8Array(values);
    case DataType.int32:
      return new Uint8Array(new Int32Array(values).buffer);
    case DataType.double:
      return new Uint8Array(new Float64Array(values).buffer);
    default:
      return fromFloat32(values, type);
  }
}

/** Names of the node's outputs, by slot; '' where a slot is empty. */
export function outputNames(spec: QkvGemmSpec): string[] {
  const further = splitsOf(spec).slice(1);
  const names = ['y', spec.emitNorm ? 'norm' : '', ...further.map((_, i) => `y${i + 2}`)];
  const named = names.map((name, slot) => (spec.unnamed?.includes(slot) ? '' : name));
  while (named.at(-1) === '') named.pop();
  return named;
}

function attributesOf(spec: QkvGemmSpec, all: boolean): Record<string, AttributeValue> {
  const { norm, epsilon, transposed, splits, emitNorm, activationQuant } = spec;
  const flag = (value: boolean | undefined): AttributeValue => ({ integer: value ? 1 : 0 });
  return {
    ...(norm !== undefined || all ? { norm_type: { string: norm ?? 'layer_norm' } } : {}),
    ...(epsilon !== undefined || all ? { epsilon: { float: epsilon ?? 1e-5 } } : {}),
    ...(transposed !== undefined || all ? { transposed: flag(transposed) } : {}),
    ...(splits !== undefined || all ? { splits: { integers: splitsOf(spec) } } : {}),
    ...(emitNorm !== undefined || all ? { emit_norm: flag(emitNorm) } : {}),
    ...(activationQuant !== undefined || all ? { activation_quant: flag(activationQuant) } : {}),
  };
}

/**
 * Adds a node with its operands and outputs to a graph; its input is `x`.
 * Callers have no bfloat16 tensors: those enter and leave the graph as float, through a Cast.
 *
 * @returns what to feed.
 */
export function addQkvGemm(
  builder: ModelBuilder,
  spec: QkvGemmSpec,
  operands: Operands,
  form: NodeForm = {},
): Feed[] {
  const { nodeName = 'qkv', prefix = '', overload = '' } = form;
  const feeds: Feed[] = [];
  const inputs = INPUTS.map((input) => {
    const operand = operands[input];
    if (!operand) return '';
    const name = prefix + (input === 'input' ? 'x' : input);
    if (input !== 'input' && !spec.fed?.includes(input))
      return builder.tensor(name, operand.type, operand.dims, encode(operand));
    const cast = operand.type === DataType.bfloat16;
    const fed = { ...operand, type: cast ? DataType.float : operand.type };
    const outer = cast ? `${name}_float` : name;
    feeds.push({ name: outer, type: fed.type, dims: fed.dims, data: encode(fed) });
    const declared = input === 'input' ? (form.inputDims ?? fed.dims) : fed.dims;
    builder.input(outer, form.unknownShapes ? undefined : declared, fed.type);
    return cast
      ? builder.node('Cast', [outer], [name], { attributes: { to: { integer: operand.type } } })
      : name;
  });
  while (inputs.at(-1) === '') inputs.pop();
  const type = operands.input?.type ?? DataType.float;
  const cast = type === DataType.bfloat16;
  const names = (form.outputs ?? outputNames(spec)).map((name) => name && prefix + name);
  builder.node(OP, inputs, cast ? names.map((name) => name && `${name}_bfloat16`) : names, {
    domain: DOMAIN,
    name: nodeName,
    overload,
    attributes: { ...attributesOf(spec, form.allAttributes ?? false), ...form.attributes },
  });
  for (const name of names.filter((value) => value !== '')) {
    if (cast)
      builder.node('Cast', [`${name}_bfloat16`], [name], { attributes: { to: { integer: DataType.float } } });
    builder.output(name, undefined, cast ? DataType.float : type);
  }
  return feeds;
}

/** A model of that node alone. */
export function qkvGemmModel(
  spec: QkvGemmSpec,
  operands: Operands,
  settings: ModelSettings = {},
): QkvGemmModel {
  const { opset = OPSET, irVersion = IR_VERSION, functions = [] } = settings;
  const builder = new ModelBuilder({ '': opset, [DOMAIN]: 1 }, irVersion);
  const feeds = addQkvGemm(builder, spec, operands, settings);
  for (const bytes of functions) builder.function(bytes);
  return { bytes: builder.finish(), feeds };
}
