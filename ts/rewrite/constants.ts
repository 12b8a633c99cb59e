/**
 * Values that are constant: initialisers and Constant nodes, also behind Identity, Transpose, Cast between float types, what
 * changes dimensions only (Reshape, Squeeze, Unsqueeze, Flatten), and, for vectors, DequantizeLinear and Add of a number
 * (1 + gamma).
 */
import { DataType, Tensor, type DataSource } from '../onnx/tensor.js';
import { encodeTensor } from '../onnx/tensor.js';
import { concat } from '../onnx/wire.js';
import type { Attribute, Node } from '../onnx/node.js';
import { floatsIn, isFloat, reshaped, rounded, shifted, transposed, type Elements } from './folded.js';
import type { GraphIndex } from './graph_index.js';

export interface Constant {
  /** Name of the value as the graph reads it. */
  name: string;
  tensor: Elements;
  /** The value is the tensor with its two dimensions exchanged. */
  transposed: boolean;
  /** Element type of the value; differs from the tensor's behind a Cast that loses nothing, and behind what is folded. */
  type: number;
}

const MAX_DEPTH = 8;

/** Why a name is not constant, for messages. */
export function whyNotConstant(index: GraphIndex, name: string): string {
  const home = index.home(name);
  const { scope } = home;
  if (home.graph.initializers.has(name))
    return `'${name}' is ${scope === undefined ? 'a graph input' : `an input of the ${scope}`} with a default: callers may override it`;
  if (home.isGraphInput(name))
    return `'${name}' is ${scope === undefined ? 'a graph input' : `an input of the ${scope}`}`;
  if (home.graph.sparseInitializers.has(name)) return `'${name}' is a sparse initialiser`;
  const producer = home.producers.get(name);
  return `'${name}' is computed${producer ? ` by ${producer.opType} '${producer.label}'` : ''}`;
}

/** The constant behind a name, in the graph or in those around it, or undefined. */
export function findConstant(from: GraphIndex, name: string, depth = 0): Constant | undefined {
  const index = from.home(name);
  const initializer = index.graph.initializers.get(name);
  if (initializer) {
    if (index.isOverridable(name)) return undefined;
    return { name, tensor: initializer, transposed: false, type: initializer.type };
  }
  const node = index.producers.get(name);
  if (!node || depth >= MAX_DEPTH) return undefined;
  if (node.is('Constant')) {
    const tensor = constantOf(node.attributes);
    return tensor && { name, tensor, transposed: false, type: tensor.type };
  }
  const fold = FOLDS[node.opType];
  const input = node.inputs[0];
  if (!fold || !node.is(node.opType) || input === undefined) return undefined;
  const inner = findConstant(index, input, depth + 1);
  const folded = inner && fold(index, node, inner, depth + 1);
  return folded && { ...folded, name };
}

type Fold = (index: GraphIndex, node: Node, inner: Constant, depth: number) => Constant | undefined;

/** What a node makes of its first input where that is constant; undefined where it is beyond what is folded. */
const FOLDS: Record<string, Fold> = {
  Identity: (_, __, inner) => inner,
  Transpose(_, node, inner) {
    const perm = node.integers('perm') ?? [1, 0];
    if (inner.tensor.dims.length !== 2 || perm.length !== 2 || perm[0] !== 1 || perm[1] !== 0)
      return undefined;
    return { ...inner, transposed: !inner.transposed };
  },
  DequantizeLinear(index, node, inner, depth) {
    const tensor = dequantizedVector(index, node, inner, depth);
    return tensor && { ...inner, tensor, type: tensor.type };
  },
  Cast: (index, node, inner) => cast(inner, index.castTo(node)),
  CastLike: (index, node, inner) => cast(inner, index.castTo(node)),
  Reshape: (index, node, inner) => withDims(inner, reshapeDims(index, node, dimsOfConstant(inner))),
  Flatten(_, node, inner) {
    const dims = dimsOfConstant(inner);
    const axis = node.integer('axis', 1);
    const at = axis < 0 ? axis + dims.length : axis;
    const count = (part: readonly number[]): number => part.reduce((product, dim) => product * dim, 1);
    return at < 0 || at > dims.length
      ? undefined
      : withDims(inner, [count(dims.slice(0, at)), count(dims.slice(at))]);
  },
  Squeeze(index, node, inner) {
    const dims = dimsOfConstant(inner);
    const given = axesOf(index, node, dims.length);
    if (given === undefined) return undefined;
    const axes = given ?? dims.flatMap((dim, i) => (dim === 1 ? [i] : []));
    return axes.some((axis) => dims[axis] !== 1)
      ? undefined
      : withDims(
          inner,
          dims.filter((_, i) => !axes.includes(i)),
        );
  },
  Unsqueeze(index, node, inner) {
    const dims = [...dimsOfConstant(inner)];
    const rank = dims.length + (axesOf(index, node, 0)?.length ?? 0);
    const axes = axesOf(index, node, rank);
    if (!axes || new Set(axes).size < axes.length || axes.some((axis) => axis < 0 || axis >= rank))
      return undefined;
    for (const axis of [...axes].sort((a, b) => a - b)) dims.splice(axis, 0, 1);
    return withDims(inner, dims);
  },
  Add(index, node, inner, depth) {
    const other = findConstant(index, node.inputs[1] ?? '', depth);
    if (!other || !isFloat(inner.type) || other.type !== inner.type) return undefined;
    const [vector, number] = vectorLength(inner) === undefined ? [other, inner] : [inner, other];
    if (vectorLength(vector) === undefined || number.tensor.count !== 1 || number.tensor.dims.length > 1)
      return undefined;
    const by = floatsOf(number, index.source)?.[0];
    // In float32 even where the graph adds in 16 bits: 1 + gamma in bfloat16 has lost most of gamma.
    return by === undefined ? undefined : { ...vector, tensor: shifted(vector.tensor, by) };
  },
};

/** What Cast makes of a constant. */
function cast(inner: Constant, to: number | undefined): Constant | undefined {
  if (to === inner.type) return inner;
  // What float32 holds exactly stays as it is stored; all else is rounded as Cast rounds it.
  if (to === DataType.float && isFloat(inner.type)) return { ...inner, type: to };
  if (to === undefined || !isFloat(to) || !(isFloat(inner.type) || inner.type === DataType.double))
    return undefined;
  return { ...inner, type: to, tensor: rounded(inner.tensor, to) };
}

function dimsOfConstant({ tensor, transposed }: Constant): readonly number[] {
  return transposed ? [...tensor.dims].reverse() : tensor.dims;
}

/** The constant with other dimensions; the order of its elements stays. */
function withDims(constant: Constant, dims: readonly number[] | undefined): Constant | undefined {
  if (!dims || (constant.transposed && !isFloat(constant.tensor.type))) return undefined;
  const tensor = constant.transposed ? transposed(constant.tensor) : constant.tensor;
  return { ...constant, transposed: false, tensor: reshaped(tensor, dims) };
}

/** Dimensions behind a Reshape: 0 keeps one (unless allowzero), -1 takes what is left. Undefined where they do not fit. */
function reshapeDims(index: GraphIndex, node: Node, from: readonly number[]): number[] | undefined {
  const shape = integersOf(findConstant(index, node.inputs[1] ?? ''), index.source);
  if (!shape) return undefined;
  const count = from.reduce((product, dim) => product * dim, 1);
  const dims = shape.map((dim, i) =>
    dim === 0 && node.integer('allowzero', 0) === 0 ? (from[i] ?? -2) : dim,
  );
  const known = dims.reduce((product, dim) => (dim === -1 ? product : product * dim), 1);
  const result = dims.map((dim) => (dim === -1 ? count / known : dim));
  const fits = result.every((dim) => Number.isSafeInteger(dim) && dim >= 0);
  return fits && result.reduce((product, dim) => product * dim, 1) === count ? result : undefined;
}

/** Axes of Squeeze or Unsqueeze, not negative; null where none are given, undefined where they are not constant. */
function axesOf(index: GraphIndex, node: Node, rank: number): number[] | null | undefined {
  const input = node.inputs[1];
  const axes = input ? integersOf(findConstant(index, input), index.source) : (node.integers('axes') ?? null);
  return axes && axes.map((axis) => (axis < 0 ? axis + rank : axis));
}

/** The tensor of a Constant node, in whichever attribute it stands. */
function constantOf(attributes: ReadonlyMap<string, Attribute>): Tensor | undefined {
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
function dequantizedVector(index: GraphIndex, node: Node, q: Constant, depth: number): Tensor | undefined {
  const [scale, zero] = [1, 2].map((i) => {
    const input = node.inputs[i] ?? '';
    return input === '' ? undefined : findConstant(index, input, depth);
  });
  if (!scale || scale.type !== DataType.float || scale.tensor.type !== DataType.float) return undefined;
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
function smallIntegers(tensor: Elements, source?: DataSource): ArrayLike<number> | undefined {
  const bytes = new Uint8Array(tensor.bytes(source)).buffer; // a copy, which slice() of a Buffer is not
  if (tensor.type === DataType.int8) return new Int8Array(bytes);
  if (tensor.type === DataType.uint8) return new Uint8Array(bytes);
  return tensor.type === DataType.int32 ? new Int32Array(bytes) : undefined;
}

/** The elements of a float constant, as float32; undefined for other types. */
export function floatsOf(constant: Constant, source?: DataSource): Float32Array | undefined {
  return floatsIn(constant.tensor, source);
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
