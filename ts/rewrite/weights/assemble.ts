/** The operands of a fused node: weights side by side along N, biases end to end, in the type that was asked for. */
import {
  DataType,
  encodeTensor,
  InlineStore,
  MAX_TENSOR,
  type DataSource,
  type TensorStore,
} from '../../onnx/tensor.js';
import { floatsOf, type Constant } from '../constants.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Failure, type Match } from '../match.js';
import { encodeVector } from '../function_body.js';
import type { FuseOptions } from '../options.js';
import type { Projection } from '../projections/projection.js';
import { fromFloat32, NotFinite, quantizeInt8, sqnrDb, toFloat32 } from './convert.js';
import { sideBySide } from './side_by_side.js';

export interface Weights {
  weight: string;
  /** Element type of `weight` (DataType). */
  type: number;
  /** Stored as [N, K]. */
  transposed: boolean;
  scale?: string;
  zeroPoint?: string;
  /** Rows of a column that share a scale: K where `scale` is [N], fewer where it is [K / scaleBlock, N]. */
  scaleBlock?: number;
  sqnrDb?: number;
  /** TensorProto bytes, in parts, to add to the graph. */
  initializers: Uint8Array[][];
}

/** What fails because of one projection's weights would not without it. */
export interface WeightsFailure extends Failure {
  culprit: Projection;
}

/** Name under which the model stores a constant's tensor, if it is an initialiser. */
export function storedName(index: GraphIndex, constant: Constant): string | undefined {
  const { name } = constant.tensor;
  return index.initializer(name) === constant.tensor ? name : undefined;
}

const TARGET = { fp16: DataType.float16, bf16: DataType.bfloat16 } as const;
const SIZE = (type: number): number => (type === DataType.float ? 4 : 2);

/**
 * @param projections of one node, in order; all read the same value.
 * @param base names begin with this.
 * @param store takes the new matrix.
 * @returns a failure where the weights do not fit the type that was asked for.
 */
export function assembleWeights(
  index: GraphIndex,
  projections: readonly Projection[],
  { dtype, int8Block }: { dtype: NonNullable<FuseOptions['dtype']>; int8Block?: number | undefined },
  base: string,
  unique: (name: string) => string,
  source?: DataSource,
  store: TensorStore = new InlineStore(),
): Match<Weights> | WeightsFailure {
  const [first] = projections;
  if (!first) return fail('no projections');
  const plain = projections.every((p) => p.alpha === 1);
  const types = new Set(projections.map((p) => p.weight.tensor.type));
  const stored = plain && types.size === 1 ? first.weight.tensor.type : DataType.float;
  const keep = dtype === 'keep' || (dtype !== 'int8' && TARGET[dtype] === stored);
  const sources = projections.map((p) => p.weight.tensor.origin);
  for (const tensor of sources) tensor.checkedLength(source); // before anything of their size is allocated
  const existing = storedName(index, first.weight);
  if (keep && plain && projections.length === 1 && existing !== undefined) {
    return {
      ok: true,
      value: { weight: existing, type: stored, transposed: first.weightTransposed, initializers: [] },
    };
  }
  const transposed = projections.every((p) => p.weightTransposed);
  const k = first.k;
  const n = projections.reduce((sum, p) => sum + p.n, 0);
  const size = k * n * SIZE(stored);
  if (size > MAX_TENSOR)
    return fail(`the weights together have ${size} bytes, expected at most ${MAX_TENSOR}`, first.node);
  const data = joinWeights(projections, stored, transposed, source);
  const dims = transposed ? [n, k] : [k, n];
  // Names are taken once nothing can fail any more.
  const named = (): string => unique(`${base}.weight`);
  if (keep) {
    const name = named();
    const initializers = [store.add(name, stored, dims, data, sources)];
    return { ok: true, value: { weight: name, type: stored, transposed, initializers } };
  }
  /** The projection that a column of the matrix belongs to, and which of its own that is. */
  const ownerOf = (column: number): { culprit: Projection; column: number } => {
    let start = 0;
    for (const culprit of projections) {
      if (column < start + culprit.n) return { culprit, column: column - start };
      start += culprit.n;
    }
    throw new RangeError(`column ${column} of ${n}`);
  };

  const values = toFloat32(data, stored);
  if (dtype === 'int8') {
    const block = Math.min(int8Block ?? k, k);
    if (k % block !== 0)
      return fail(`K = ${k} is no multiple of the ${block} rows that share a scale`, first.node);
    let quantized;
    try {
      quantized = quantizeInt8(values, k, n, transposed, block);
    } catch (error) {
      if (!(error instanceof NotFinite)) throw error;
      const { culprit, column } = ownerOf(error.column);
      return {
        ...fail(`the weights cannot be int8: column ${column} holds ${error.value}`, first.node),
        culprit,
      };
    }
    const [name, scale] = [named(), unique(`${base}.scale`)];
    const q = new Int8Array(quantized.data.buffer);
    const at = (i: number): number => {
      const [row, column] = transposed ? [i % k, Math.floor(i / k)] : [Math.floor(i / n), i % n];
      return Math.floor(row / block) * n + column;
    };
    return {
      ok: true,
      value: {
        weight: name,
        type: DataType.int8,
        transposed,
        scale,
        scaleBlock: block,
        sqnrDb: sqnrDb(values, (i) => (q[i] ?? 0) * (quantized.scale[at(i)] ?? 0)),
        initializers: [
          store.add(name, DataType.int8, dims, quantized.data, sources),
          encodeScales(scale, quantized.scale, k / block, n),
        ],
      },
    };
  }
  const bytes = fromFloat32(values, TARGET[dtype]);
  const back = toFloat32(bytes, TARGET[dtype]);
  const lost = values.findIndex((value, i) => Number.isFinite(value) && !Number.isFinite(back[i]));
  if (lost >= 0) {
    const { culprit } = ownerOf(transposed ? Math.floor(lost / k) : lost % n);
    return { ...fail(`weight ${values[lost]} is beyond the range of ${dtype}`, first.node), culprit };
  }
  const name = named();
  return {
    ok: true,
    value: {
      weight: name,
      type: TARGET[dtype],
      transposed,
      sqnrDb: sqnrDb(values, (i) => back[i] ?? 0),
      initializers: [store.add(name, TARGET[dtype], dims, bytes, sources)],
    },
  };
}

/** [blocks, N], or [N] where there is one block. */
function encodeScales(name: string, scale: Float32Array, blocks: number, n: number): Uint8Array[] {
  if (blocks === 1) return [encodeVector(name, scale)];
  const bytes = new Uint8Array(scale.buffer, scale.byteOffset, scale.byteLength);
  return encodeTensor(name, DataType.float, [blocks, n], bytes);
}

/** All weights in one matrix of the given type: [K, N], or [N, K] when `transposed`. */
function joinWeights(
  projections: readonly Projection[],
  type: number,
  transposed: boolean,
  source: DataSource | undefined,
): Uint8Array<ArrayBuffer> {
  const size = SIZE(type);
  const parts = projections.map((p) => {
    let bytes = p.weight.tensor.bytes(source);
    if (p.weight.tensor.type !== type || p.alpha !== 1) {
      const values = Float32Array.from(toFloat32(bytes, p.weight.tensor.type), (value) => value * p.alpha);
      bytes = fromFloat32(values, type);
    }
    return { bytes, n: p.n, transposed: p.weightTransposed };
  });
  return sideBySide(parts, projections[0]?.k ?? 0, size, transposed);
}

/** A vector operand by name: the initialiser itself where it serves as it is, else a new float32 one. */
export function vectorOperand(
  index: GraphIndex,
  constant: Constant | undefined,
  otherwise: { length: number; fill: number },
  type: number,
  name: () => string,
  add: (parts: Uint8Array[]) => void,
  source?: DataSource,
): string {
  if (constant) {
    const existing = storedName(index, constant);
    const fits = constant.tensor.type === type || constant.tensor.type === DataType.float;
    if (existing !== undefined && fits && constant.tensor.dims.length === 1) return existing;
  }
  const values = constant && floatsOf(constant, source);
  const fresh = name();
  add([
    encodeVector(
      fresh,
      values ? Float32Array.from(values) : new Float32Array(otherwise.length).fill(otherwise.fill),
    ),
  ]);
  return fresh;
}

/** Biases of all projections in one vector [N]; zeros where one has none. Undefined where none has any. */
export function joinBiases(
  projections: readonly Projection[],
  source?: DataSource,
): Float32Array | undefined {
  if (projections.every((p) => p.bias === undefined)) return undefined;
  const result = new Float32Array(projections.reduce((sum, p) => sum + p.n, 0));
  let at = 0;
  for (const p of projections) {
    const values = p.bias && floatsOf(p.bias, source);
    values?.forEach((value, i) => (result[at + i] = value * p.biasFactor));
    at += p.n;
  }
  return result;
}
