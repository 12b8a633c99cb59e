/**
 * The function body: com.deepspeed:QKVGemm as an ONNX FunctionProto of standard operators, which a runtime without the
 * library inlines. Nodes that differ in norm, number of outputs or weight form need bodies of their own ("variants");
 * several in one model are told apart by `overload`, which needs IR version 10 and ONNX Runtime 1.27.
 *
 * Source: ONNX IR specification, "Functions"; https://onnx.ai/onnx/operators/
 */
import { encodeAttribute, encodeNode } from '../onnx/node.js';
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
}

export interface FunctionPlan {
  /** FunctionProto bytes and their overload names, one per variant. */
  functions: { overload: string; message: Uint8Array }[];
  /** For each node, in order: its overload. */
  overloads: string[];
  irVersion: number;
  /** Oldest ONNX Runtime that runs the model. */
  onnxruntime: string;
}

/** The opset that bodies import: the first with LayerNormalization. It need not be the model's. */
const BODY_OPSET = 17;

const FLOAT_IN = { integer: DataType.float } as const;

export function planFunctions(variants: readonly Variant[]): FunctionPlan {
  const keys = variants.map((variant) => JSON.stringify(variant, Object.keys(variant).sort()));
  const distinct = [...new Set(keys)];
  const several = distinct.length > 1;
  const functions = distinct.map((key, i) => {
    const overload = several ? `v${i + 1}` : '';
    return { overload, message: encodeFunction(JSON.parse(key) as Variant, overload) };
  });
  return {
    functions,
    overloads: keys.map((key) => functions[distinct.indexOf(key)]?.overload ?? ''),
    irVersion: several ? 10 : 8,
    onnxruntime: several ? '1.27.0' : '1.22.0',
  };
}

/** FunctionProto: name 1, input 4, output 5, attribute 6, node 7, doc 8, opset_import 9, domain 10, overload 13. */
function encodeFunction(variant: Variant, overload: string): Uint8Array {
  const nodes: Uint8Array[] = [];
  const add = (opType: string, inputs: string[], outputs: string[], attributes: Uint8Array[] = []): void => {
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
  const normalised = normalise(variant, x, asFloat, add, low);

  let weight = asFloat('weight', variant.weightType !== DataType.float);
  if (variant.transposed) {
    add('Transpose', [weight], ['weight_t'], [encodeAttribute('perm', { integers: [1, 0] })]);
    weight = 'weight_t';
  }
  if (variant.weightType === DataType.int8) {
    // Not DequantizeLinear: ONNX Runtime turns that and the MatMul into a product with activations rounded to int8,
    // which moved outputs by up to 1.3e-2 of the largest. This is folded into a float32 constant at load.
    add('Mul', [weight, 'scale'], ['weight_s']);
    weight = 'weight_s';
  }
  const product = variant.bias ? 'product' : 'sum';
  add('MatMul', [normalised, weight], [product]);
  if (variant.bias) add('Add', [product, asFloat('bias', low)], ['sum']);
  const back = (name: string, output: string): void => {
    if (low) add('Cast', [name], [output], [encodeAttribute('to', { integer: variant.type })]);
    else add('Identity', [name], [output]);
  };
  const splitNames = Array.from({ length: variant.splits }, (_, i) => (i === 0 ? 'y' : `y${i + 1}`));
  back('sum', variant.splits > 1 ? 'whole' : 'y');
  if (variant.splits > 1) {
    add('Constant', [], ['widths'], [encodeAttribute('value_ints', { integers: [] }, 'splits')]);
    add('Split', ['whole', 'widths'], splitNames, [encodeAttribute('axis', { integer: -1 })]);
  }
  const slots = variant.norm || variant.splits > 1;
  if (variant.norm) back(normalised, 'norm');
  // Further splits come after the slot of `norm`, which no node asks for here.
  else if (slots) add('Identity', ['input'], ['norm']);

  const writer = new MessageWriter().string(1, OP);
  const inputs = ['input', 'weight', 'gamma', 'beta', 'bias', 'scale', 'zero_point'];
  const used =
    variant.weightType === DataType.int8 ? 6 : variant.bias ? 5 : variant.normType === 'layer_norm' ? 4 : 3;
  for (const name of inputs.slice(0, used)) writer.string(4, name);
  for (const name of slots ? ['y', 'norm', ...splitNames.slice(1)] : ['y']) writer.string(5, name);
  for (const name of ATTRIBUTES) writer.string(6, name);
  for (const node of nodes) writer.bytes(7, node);
  writer.string(
    8,
    'norm(input) * weight + bias; used where no kernel of com.deepspeed.QKVGemm is registered.',
  );
  writer.bytes(9, new MessageWriter().string(1, '').integer(2, BODY_OPSET).finish());
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

function normalise(
  variant: Variant,
  x: string,
  asFloat: (name: string, cast: boolean) => string,
  add: (opType: string, inputs: string[], outputs: string[], attributes?: Uint8Array[]) => void,
  low: boolean,
): string {
  if (variant.normType === 'none') return x;
  const gamma = asFloat('gamma', low);
  if (variant.normType === 'layer_norm') {
    add('LayerNormalization', [x, gamma, asFloat('beta', low)], ['normalised'], [
      encodeAttribute('axis', { integer: -1 }),
      encodeAttribute('epsilon', { float: 0 }, 'epsilon'),
    ]); // prettier-ignore
    return 'normalised';
  }
  add('Mul', [x, x], ['squares']);
  // ReduceMean takes its axes as an attribute up to opset 17 and as an input from 18 on, and an inlined body is read by
  // the model's opset. ReduceSum is the same since 13; K is the length of gamma, a constant.
  add('Constant', [], ['axes'], [encodeAttribute('value_ints', { integers: [-1] })]);
  add('ReduceSum', ['squares', 'axes'], ['sum_square'], [encodeAttribute('keepdims', { integer: 1 })]);
  add('Shape', ['gamma'], ['k']);
  add('Cast', ['k'], ['k_f'], [encodeAttribute('to', FLOAT_IN)]);
  add('Div', ['sum_square', 'k_f'], ['mean_square']);
  add('Constant', [], ['epsilon_value'], [encodeAttribute('value_float', { float: 0 }, 'epsilon')]);
  add('Add', ['mean_square', 'epsilon_value'], ['radicand']);
  add('Sqrt', ['radicand'], ['rms']);
  add('Div', [x, 'rms'], ['scaled']);
  add('Mul', ['scaled', gamma], ['normalised']);
  return 'normalised';
}

/** A float32 vector as an initialiser. */
export function encodeVector(name: string, values: Float32Array): Uint8Array {
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  return concat(encodeTensor(name, DataType.float, [values.length], bytes));
}
