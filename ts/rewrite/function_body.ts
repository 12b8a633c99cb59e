/**
 * The function body: com.deepspeed:QKVGemm as an ONNX FunctionProto of standard operators, which a runtime without the
 * library inlines. Nodes that differ in norm, number of outputs or weight form need bodies of their own ("variants");
 * several in one model are told apart by `overload`, which needs IR version 10 and ONNX Runtime 1.27; one_variant.ts avoids
 * that where it can.
 *
 * Source: ONNX IR specification, "Functions"; https://onnx.ai/onnx/operators/
 */
import { encodeAttribute, encodeNode, encodeTensorAttribute } from '../onnx/node.js';
import { DataType, encodeTensor } from '../onnx/tensor.js';
import { concat, MessageWriter } from '../onnx/wire.js';

export const DOMAIN = 'com.deepspeed';
export const OP = 'QKVGemm';

/** What decides about a node's body. */
export interface Variant {
  normType: 'layer_norm' | 'rms_norm' | 'none';
  splits: number;
  /** Weight is [N, K]. */
  transposed: boolean;
  /** Element type of input and outputs (DataType). */
  type: number;
  /** Element type of the weight (DataType). */
  weightType: number;
  bias: boolean;
  /** The function has the output `norm`: some node of the model uses it. */
  norm: boolean;
  /** How scales lie over an int8 weight (default `columns`). */
  scales?: ScaleLayout;
  /** An int8 weight has zero points. */
  zeroPoint?: boolean;
  /** Rows are rounded to int8 before the product. */
  activationQuant?: boolean;
}

/**
 * `columns`: [N], [1] or a scalar; `groups`: [G], each for N/G columns that follow one another; `blocks`: [K/B, N], each
 * for B rows of a column.
 */
export type ScaleLayout = 'columns' | 'groups' | 'blocks';

export interface FunctionPlan {
  /** FunctionProto bytes and their overload names, one per variant. */
  functions: { overload: string; message: Uint8Array }[];
  /** For each node, in order: its overload. */
  overloads: string[];
  irVersion: number;
  /** Oldest ONNX Runtime that runs the model. */
  onnxruntime: string;
}

/** The oldest opset that bodies are written in: the first whose binary operators broadcast as NumPy's. */
export const OLDEST_OPSET = 7;
/** The first opset with Round. */
export const ROUND_OPSET = 11;
/** The first opset whose Cast knows bfloat16. */
export const BFLOAT16_OPSET = 13;

const FLOAT_IN = { integer: DataType.float } as const;
const LAST_AXIS = [-1] as const;

/** The same for nodes that can share a body, and only for them. */
export const variantKey = (variant: Omit<Variant, 'norm'>): string =>
  JSON.stringify(variant, Object.keys(variant).sort());

/**
 * @param opset the model's. Bodies are written in it: an inlined body is read by the model's opset, whatever it imports.
 * @param unnamed a variant whose overload is to be the empty one, because it is called by another function: ONNX Runtime
 *   does not find others there.
 */
export function planFunctions(variants: readonly Variant[], opset: number, unnamed?: Variant): FunctionPlan {
  const keys = variants.map(variantKey);
  const distinct = [...new Set(keys)];
  const several = distinct.length > 1;
  const functions = distinct.map((key, i) => {
    const overload = several && !(unnamed && key === variantKey(unnamed)) ? `v${i + 1}` : '';
    return { overload, message: encodeFunction(JSON.parse(key) as Variant, overload, opset) };
  });
  return {
    functions,
    overloads: keys.map((key) => functions[distinct.indexOf(key)]?.overload ?? ''),
    irVersion: several ? 10 : 8,
    onnxruntime: several ? '1.27.0' : '1.22.0',
  };
}

/** FunctionProto: name 1, input 4, output 5, attribute 6, node 7, doc 8, opset_import 9, domain 10, overload 13. */
function encodeFunction(variant: Variant, overload: string, opset: number): Uint8Array {
  const nodes: Uint8Array[] = [];
  const add: AddNode = (opType, inputs, outputs, attributes = []) => {
    nodes.push(encodeNode({ opType, inputs, outputs, attributes }));
  };
  const low = variant.type !== DataType.float;
  // Float32 all the way, as the op computes; a Cast stands only where the type differs.
  const asFloat = (name: string, cast: boolean): string => {
    if (!cast) return name;
    add('Cast', [name], [`${name}_f`], [encodeAttribute('to', FLOAT_IN)]);
    return `${name}_f`;
  };
  const x = asFloat('input', low);
  const normalised = normalise(variant, x, (name) => asFloat(name, low), add, opset);

  let weight = asFloat('weight', variant.weightType !== DataType.float);
  if (variant.transposed) {
    add('Transpose', [weight], ['weight_t'], [encodeAttribute('perm', { integers: [1, 0] })]);
    weight = 'weight_t';
  }
  if (variant.weightType === DataType.int8) {
    weight = dequantise(variant, weight, asFloat, add, opset);
  }
  const product = variant.bias ? 'product' : 'sum';
  const rows = variant.activationQuant ? roundRows(normalised, add, opset) : normalised;
  add('MatMul', [rows, weight], [product]);
  if (variant.bias) add('Add', [product, asFloat('bias', low)], ['sum']);
  const back = (name: string, output: string): void => {
    if (low) add('Cast', [name], [output], [encodeAttribute('to', { integer: variant.type })]);
    else add('Identity', [name], [output]);
  };
  const splitNames = Array.from({ length: variant.splits }, (_, i) => (i === 0 ? 'y' : `y${i + 1}`));
  back('sum', variant.splits > 1 ? 'whole' : 'y');
  if (variant.splits > 1) {
    const axis = encodeAttribute('axis', { integer: -1 });
    if (opset < 13) {
      add('Split', ['whole'], splitNames, [axis, encodeAttribute('split', { integers: [] }, 'splits')]);
    } else {
      add('Constant', [], ['widths'], [encodeAttribute('value_ints', { integers: [] }, 'splits')]);
      add('Split', ['whole', 'widths'], splitNames, [axis]);
    }
  }
  const slots = variant.norm || variant.splits > 1;
  if (variant.norm) back(normalised, 'norm');
  // Further splits come after the slot of `norm`, which no node asks for here.
  else if (slots) add('Identity', ['input'], ['norm']);

  const writer = new MessageWriter().string(1, OP);
  const inputs = ['input', 'weight', 'gamma', 'beta', 'bias', 'scale', 'zero_point'];
  const operands = { layer_norm: 4, rms_norm: 3, none: 2 }[variant.normType];
  const int8 = variant.weightType === DataType.int8;
  const used = variant.zeroPoint ? 7 : int8 ? 6 : variant.bias ? 5 : operands;
  for (const name of inputs.slice(0, used)) writer.string(4, name);
  for (const name of slots ? ['y', 'norm', ...splitNames.slice(1)] : ['y']) writer.string(5, name);
  for (const name of ATTRIBUTES) writer.string(6, name);
  for (const node of nodes) writer.bytes(7, node);
  writer.string(
    8,
    'norm(input) * weight + bias; used where no kernel of com.deepspeed.QKVGemm is registered.',
  );
  writer.bytes(9, new MessageWriter().string(1, '').integer(2, opset).finish());
  writer.string(10, DOMAIN);
  if (overload) writer.string(13, overload);
  return writer.finish();
}

/** Attributes that every node carries, so that a body may refer to them. */
export const ATTRIBUTES = [
  'norm_type',
  'epsilon',
  'transposed',
  'splits',
  'emit_norm',
  'activation_quant',
] as const;

type AddNode = (opType: string, inputs: string[], outputs: string[], attributes?: Uint8Array[]) => void;

/**
 * (weight - zero_point) * scale of a weight [K, N] that is float32 already; returns its name. Constant operands are folded
 * into a float32 constant at load.
 *
 * Not DequantizeLinear: ONNX Runtime turns that and the MatMul into a product with activations rounded to int8, which
 * moved outputs by up to 1.3e-2 of the largest. Nor has it blocks before opset 21, or groups of columns in any.
 */
function dequantise(
  variant: Variant,
  weight: string,
  asFloat: (name: string, cast: boolean) => string,
  add: AddNode,
  opset: number,
): string {
  const { scales = 'columns', zeroPoint = false } = variant;
  const vectors = ['scale', ...(zeroPoint ? [asFloat('zero_point', true)] : [])];
  if (scales === 'columns') {
    if (zeroPoint) add('Sub', [weight, vectors[1] ?? ''], ['shifted']);
    add('Mul', [zeroPoint ? 'shifted' : weight, 'scale'], ['weight_s']);
    return 'weight_s';
  }
  // The weight is cut along K to [K/B, B, N], or along N to [K, G, N/G], so that [K/B, 1, N] and [G, 1] broadcast. All
  // lengths come from the operands: nodes of other lengths share the body.
  const [scale = '', zero] = vectors.map((name) => {
    const cut = `${name}_cut`;
    if (opset < 13) add('Unsqueeze', [name], [cut], [encodeAttribute('axes', { integers: [1] })]);
    else add('Unsqueeze', [name, addIntegers(`${name}_axis`, [1], add, opset)], [cut]);
    return cut;
  });
  add('Shape', [scale], ['scale_dims']);
  const open = addIntegers('open', scales === 'blocks' ? [1, -1, 1] : [1, -1], add, opset);
  add('Mul', ['scale_dims', open], ['tail_dims']);
  let dims = 'tail_dims';
  if (scales === 'groups') {
    // Reshape reads 0 as the dimension that was there, K.
    const keep = addIntegers('keep', [0], add, opset);
    add('Concat', [keep, 'tail_dims'], ['cut_dims'], [encodeAttribute('axis', { integer: 0 })]);
    dims = 'cut_dims';
  }
  add('Shape', [weight], ['weight_dims']);
  add('Reshape', [weight, dims], ['weight_cut']);
  if (zero) add('Sub', ['weight_cut', zero], ['shifted']);
  add('Mul', [zero ? 'shifted' : 'weight_cut', scale], ['scaled_cut']);
  add('Reshape', ['scaled_cut', 'weight_dims'], ['weight_s']);
  return 'weight_s';
}

/** A Constant of int64 [n]; returns its name. Before opset 9 a Constant holds floats only. */
function addIntegers(name: string, values: readonly number[], add: AddNode, opset: number): string {
  const constant = (output: string, type: number, data: ArrayBufferView): void => {
    const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    add('Constant', [], [output], [encodeTensorAttribute('value', type, [values.length], bytes)]);
  };
  if (opset >= 9) constant(name, DataType.int64, BigInt64Array.from(values, BigInt));
  else {
    constant(`${name}_f`, DataType.float, Float32Array.from(values));
    add('Cast', [`${name}_f`], [name], [encodeAttribute('to', { integer: DataType.int64 })]);
  }
  return name;
}

/** Adds the norm's nodes; returns the name of the normalised value. */
function normalise(
  variant: Variant,
  x: string,
  asFloat: (name: string) => string,
  add: AddNode,
  opset: number,
): string {
  if (variant.normType === 'none') return x;
  const layerNorm = variant.normType === 'layer_norm';
  const gamma = asFloat('gamma');
  if (layerNorm && opset >= 17) {
    add('LayerNormalization', [x, gamma, asFloat('beta')], ['normalised'], [
      encodeAttribute('axis', { integer: -1 }),
      encodeAttribute('epsilon', { float: 0 }, 'epsilon'),
    ]); // prettier-ignore
    return 'normalised';
  }
  let centred = x;
  if (layerNorm) {
    addMean(x, 'mean', add, opset);
    add('Sub', [x, 'mean'], ['centred']);
    centred = 'centred';
  }
  add('Mul', [centred, centred], ['squares']);
  addMean('squares', 'mean_square', add, opset);
  if (opset >= 12) {
    add('Constant', [], ['epsilon_value'], [encodeAttribute('value_float', { float: 0 }, 'epsilon')]);
    add('Add', ['mean_square', 'epsilon_value'], ['radicand']);
  } else {
    // Constant takes a tensor only, which cannot refer to an attribute; LeakyRelu(-1) is -alpha.
    const minusOne = new Uint8Array(Float32Array.of(-1).buffer);
    add('Constant', [], ['minus_one'], [encodeTensorAttribute('value', DataType.float, [], minusOne)]);
    add('LeakyRelu', ['minus_one'], ['minus_epsilon'], [encodeAttribute('alpha', { float: 0 }, 'epsilon')]);
    add('Sub', ['mean_square', 'minus_epsilon'], ['radicand']);
  }
  add('Sqrt', ['radicand'], ['deviation']);
  add('Div', [centred, 'deviation'], ['scaled']);
  if (!layerNorm) {
    add('Mul', ['scaled', gamma], ['normalised']);
    return 'normalised';
  }
  add('Mul', ['scaled', gamma], ['unshifted']);
  add('Add', ['unshifted', asFloat('beta')], ['normalised']);
  return 'normalised';
}

/** Rows rounded to int8, with the scale max |x| / 127, and back; a row of zeros stays one. Returns the result's name. */
function roundRows(rows: string, add: AddNode, opset: number): string {
  const number = (name: string, value: number): string => {
    const bytes = new Uint8Array(Float32Array.of(value).buffer);
    add('Constant', [], [name], [encodeTensorAttribute('value', DataType.float, [], bytes)]);
    return name;
  };
  add('Abs', [rows], ['magnitudes']);
  reduce('ReduceMax', 'magnitudes', 'peak', add, opset);
  add('Div', ['peak', number('levels', 127)], ['row_step']);
  // The smallest normal number: what lies below is rounded to it, and 0 / 0 does not come up.
  add('Max', ['row_step', number('smallest_step', 2 ** -126)], ['step']);
  add('Div', [rows, 'step'], ['steps']);
  add('Round', ['steps'], ['whole_steps']);
  add('Mul', ['whole_steps', 'step'], ['rounded_rows']);
  return 'rounded_rows';
}

/** ReduceMean, and ReduceMax likewise, takes its axes as an attribute up to opset 17 and as an input from 18 on. */
function reduce(opType: string, input: string, output: string, add: AddNode, opset: number): void {
  const keepdims = encodeAttribute('keepdims', { integer: 1 });
  if (opset < 18) {
    add(opType, [input], [output], [encodeAttribute('axes', { integers: LAST_AXIS }), keepdims]);
    return;
  }
  add('Constant', [], [`${output}_axes`], [encodeAttribute('value_ints', { integers: LAST_AXIS })]);
  add(opType, [input, `${output}_axes`], [output], [keepdims]);
}

const addMean = (input: string, output: string, add: AddNode, opset: number): void =>
  reduce('ReduceMean', input, output, add, opset);

/** A float32 vector as an initialiser. */
export function encodeVector(name: string, values: Float32Array): Uint8Array {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return concat(encodeTensor(name, DataType.float, [values.length], bytes));
}
