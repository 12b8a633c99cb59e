/**
 * Values that are constant: initialisers and Constant nodes, also behind Identity, Transpose and exact Casts, and vectors
 * behind DequantizeLinear.
 */
import { DataType, Tensor, type DataSource } from '../onnx/tensor.js';
import { encodeTensor } from '../onnx/tensor.js';
import { concat } from '../onnx/wire.js';
import type { Node } from '../onnx/node.js';
import type { GraphIndex } from './graph_index.js';
import { toFloat32 } from './weights/convert.js';

export interface Constant {
  /** Name of the value as the graph reads it. */
  name: string;
  tensor: Tensor;
  /** The value is the tensor with its two dimensions exchanged. */
  transposed: boolean;
  /** Set where the value is the initialiser itself, under this name. */
  initializer: string | undefined;
  /** Element type of the value; differs from the tensor's behind a Cast that loses nothing. */
  type: number;
}

const MAX_DEPTH = 8;

/** Why a name is not constant, for messages. */
export function whyNotConstant(index: GraphIndex, name: string): string {
  if (index.model.graph.initializers.has(name))
    return `'${name}' is a graph input with a default: callers may override it`;
  if (index.isGraphInput(name)) return `'${name}' is a graph input`;
  if (index.model.graph.sparseInitializers.has(name)) return `'${name}' is a sparse initialiser`;
  const producer = index.producers.get(name);
  return `'${name}' is computed${producer ? ` by ${producer.opType} '${producer.label}'` : ''}`;
}

/** The constant behind a name, or undefined. */
export function findConstant(index: GraphIndex, name: string, depth = 0): Constant | undefined {
  const initializer = index.model.graph.initializers.get(name);
  if (initializer) {
    if (index.isOverridable(name)) return undefined;
    return { name, tensor: initializer, transposed: false, initializer: name, type: initializer.type };
  }
  const node = index.producers.get(name);
  const input = node?.inputs[0];
  if (!node || depth >= MAX_DEPTH) return undefined;
  if (node.is('Constant')) {
    const tensor = constantOf(node.attributes);
    return tensor && { name, tensor, transposed: false, initializer: undefined, type: tensor.type };
  }
  if (input === undefined) return undefined;
  if (node.is('Identity')) {
    const inner = findConstant(index, input, depth + 1);
    return inner && { ...inner, name };
  }
  if (node.is('Transpose')) {
    const inner = findConstant(index, input, depth + 1);
    const perm = node.integers('perm') ?? [1, 0];
    if (inner?.tensor.dims.length !== 2 || perm.length !== 2 || perm[0] !== 1 || perm[1] !== 0)
      return undefined;
    return { ...inner, name, transposed: !inner.transposed, initializer: undefined };
  }
  if (node.is('DequantizeLinear')) {
    const tensor = dequantizedVector(index, node, depth);
    return tensor && { name, tensor, transposed: false, initializer: undefined, type: tensor.type };
  }
  if (node.is('Cast')) {
    const inner = findConstant(index, input, depth + 1);
    const to = node.integer('to', 0);
    const widens =
      to === DataType.float && (inner?.type === DataType.float16 || inner?.type === DataType.bfloat16);
    if (!inner || !(widens || to === inner.type)) return undefined;
    return { ...inner, name, type: to, initializer: to === inner.type ? inner.initializer : undefined };
  }
  return undefined;
}

/** The tensor of a Constant node, in whichever attribute it stands. */
function constantOf(
  attributes: ReadonlyMap<string, import('../onnx/node.js').Attribute>,
): Tensor | undefined {
  const value = attributes.get('value')?.tensor;
  if (value) return value;
  const make = (type: number, dims: number[], data: ArrayBufferView): Tensor =>
    new Tensor(
      concat(encodeTensor('', type, dims, new Uint8Array(data.buffer, data.byteOffset, data.byteLength))),
      'a Constant node',
    );
  const { float, floats, integer, integers } = {
    float: attributes.get('value_float')?.float,
    floats: attributes.get('value_floats')?.floats,
    integer: attributes.get('value_int')?.integer,
    integers: attributes.get('value_ints')?.integers,
  };
  if (float !== undefined) return make(DataType.float, [], new Float32Array([float]));
  if (floats) return make(DataType.float, [floats.length], new Float32Array(floats));
  if (integer !== undefined) return make(DataType.int64, [], new BigInt64Array([BigInt(integer)]));
  if (integers) return make(DataType.int64, [integers.length], new BigInt64Array(integers.map(BigInt)));
  return undefined;
}

/**
 * What a DequantizeLinear makes of a scalar or vector, by the formula: (q - zero point) * scale in float32, rounded once.
 * Matrices stay integers: see dequantized.ts.
 */
function dequantizedVector(index: GraphIndex, node: Node, depth: number): Tensor | undefined {
  const [q, scale, zero] = node.inputs.map((input) =>
    input === '' ? undefined : findConstant(index, input, depth + 1),
  );
  if (!q || !scale || scale.type !== DataType.float || scale.tensor.type !== DataType.float) return undefined;
  if (q.tensor.dims.length > 1 || node.integer('block_size', 0) !== 0) return undefined;
  if (![DataType.float, 0].includes(node.integer('output_dtype', 0))) return undefined;
  if (node.inputs[2] && !zero) return undefined;
  const { count, dims } = q.tensor;
  for (const { tensor } of [scale, ...(zero ? [zero] : [])])
    if (tensor.dims.length > 1 || (tensor.count !== 1 && tensor.count !== count)) return undefined;
  const values = smallIntegers(q.tensor, index.source);
  const zeros = zero && smallIntegers(zero.tensor, index.source);
  const scales = floatsOf(scale, index.source);
  if (!values || !scales || (zero && !zeros)) return undefined;
  const result = Float32Array.from(values, (value, i) => {
    const shifted = Math.fround(value - (zeros?.[zeros.length === 1 ? 0 : i] ?? 0));
    return shifted * (scales[scales.length === 1 ? 0 : i] ?? NaN);
  });
  return new Tensor(
    concat(encodeTensor('', DataType.float, dims, new Uint8Array(result.buffer))),
    `what ${node.label} makes`,
  );
}

/** Elements of the integer types that DequantizeLinear reads; undefined for others. */
function smallIntegers(tensor: Tensor, source?: DataSource): ArrayLike<number> | undefined {
  const bytes = tensor.bytes(source).slice().buffer;
  if (tensor.type === DataType.int8) return new Int8Array(bytes);
  if (tensor.type === DataType.uint8) return new Uint8Array(bytes);
  return tensor.type === DataType.int32 ? new Int32Array(bytes) : undefined;
}

/** The elements of a float constant, as float32; undefined for other types. */
export function floatsOf(constant: Constant, source?: DataSource): Float32Array | undefined {
  const { tensor } = constant;
  if (tensor.type === DataType.double) {
    const bytes = tensor.bytes(source);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    return Float32Array.from({ length: tensor.count }, (_, i) => view.getFloat64(i * 8, true));
  }
  if (![DataType.float, DataType.float16, DataType.bfloat16].includes(tensor.type as 1)) return undefined;
  return toFloat32(tensor.bytes(source), tensor.type);
}

/** A constant of one element, of any numeric type, as a number. With several dimensions it could raise a result's rank. */
export function scalarOf(index: GraphIndex, name: string | undefined): number | undefined {
  const constant = name === undefined ? undefined : findConstant(index, name);
  if (!constant || constant.tensor.count !== 1 || constant.tensor.dims.length > 1) return undefined;
  const floats = floatsOf(constant, index.source);
  if (floats) return floats[0];
  return integersOf(constant, index.source)?.[0];
}

/** The elements of an int32 or int64 constant. */
export function integersOf(constant: Constant | undefined, source?: DataSource): number[] | undefined {
  if (!constant || constant.transposed) return undefined;
  const { tensor } = constant;
  if (tensor.type !== DataType.int64 && tensor.type !== DataType.int32) return undefined;
  const bytes = tensor.bytes(source);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: tensor.count }, (_, i) =>
    tensor.type === DataType.int64 ? Number(view.getBigInt64(i * 8, true)) : view.getInt32(i * 4, true),
  );
}

/** Length of a constant with one dimension; undefined for anything else: higher ranks would change the result's rank. */
export function vectorLength(constant: Constant | undefined): number | undefined {
  return constant?.tensor.dims.length === 1 ? constant.tensor.count : undefined;
}
