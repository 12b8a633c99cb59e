/** How far two tensors lie apart, element by element. */
import type { Tensor } from 'onnxruntime-node';
import { DataType } from '../onnx/tensor.js';
import { toFloat32 } from '../rewrite/weights/convert.js';

/** What is allowed between two values. Without `atol` and `rtol`, integers, bools and strings must be equal. */
export interface Bounds {
  /** For floats: largest difference, as a fraction of the largest magnitude in A's value. */
  maxError?: number;
  /** As numpy's allclose with A as the reference, for all numbers: |a - b| <= atol + rtol * |a| (default 0). */
  atol?: number;
  /** For all numbers: the part of |a| that is allowed beside `atol` (default 0). */
  rtol?: number;
}

/** One element of both values; a bigint is given as a string. */
export interface ElementPair {
  /** Position in the tensor, one number for each dimension. */
  index: number[];
  /** A's element; NaN and Inf are given as strings. */
  a: number | string | null;
  /** B's element, likewise. */
  b: number | string | null;
}

/** How far one value of A and the value of the same name of B lie apart. */
export interface ValueDifference {
  /** Name of the value, in both graphs. */
  name: string;
  /** Element types, as ONNX Runtime's JavaScript names them; `none` for a value that is not there. */
  types: {
    /** In A. */
    a: string;
    /** In B. */
    b: string;
  };
  /** Shapes. */
  dims: {
    /** In A. */
    a: number[];
    /** In B. */
    b: number[];
  };
  /** No element is beyond the bounds, and the shapes are the same. */
  within: boolean;
  /** Why the values cannot be compared element by element, where that is so. */
  problem?: string;
  /** Largest |a - b|; Infinity where one is not finite and the other differs from it, or where there is a problem. */
  maxAbs: number;
  /** Largest |a - b| / |a|, of elements whose a is not 0. */
  maxRel: number;
  /** `maxAbs` over the largest magnitude of A's value: what the bound `maxError` limits. */
  maxError: number;
  /** Of elements that are finite in both: root of the mean square of a - b. */
  rms: number;
  /** Of the same: signal-to-noise ratio, 10 log10(sum a^2 / sum (a - b)^2), in dB; Infinity where they are equal. */
  sqnrDb: number;
  /** Of the same: cosine of the angle between both as vectors. */
  cosine: number;
  /** NaN and Inf: how many there are, and at how many places both are not the same. Two NaN count as the same. */
  notFinite: {
    /** In A. */
    a: number;
    /** In B. */
    b: number;
    /** Places where both are not the same, and one of them at least is not finite. */
    different: number;
  };
  /** Elements of A's value. */
  elements: number;
  /** Elements beyond the bounds. */
  beyond: number;
  /** The first of them, in row-major order; absent where there is none. */
  first?: ElementPair;
  /** Where the difference is largest; absent where there is none. */
  worst?: ElementPair;
  /** Elements by |a - b| / max |a|: equal, below 1e-10, then a decade each up to 1, and above. */
  histogram: number[];
}

/** Exponent of the histogram's lowest bound. */
export const HISTOGRAM_FROM = -10;
const BINS = 3 - HISTOGRAM_FROM;

type Elements = ArrayLike<number> | ArrayLike<bigint> | ArrayLike<string>;

/** Elements of a tensor; float16 as float32. */
export function elementsOf({ data, type }: Tensor): Elements {
  if (type !== 'float16') return data;
  const bits = data as Uint16Array;
  return toFloat32(new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength), DataType.float16);
}

const isFloatType = (type: string): boolean => type.startsWith('float');

const numeric = (value: number | bigint | string | undefined): number =>
  typeof value === 'string' ? NaN : Number(value ?? NaN);

/** a - b, exact for integers of 64 bits before it is rounded. */
function subtract(a: number | bigint | string, b: number | bigint | string): number {
  if (typeof a === 'bigint' && typeof b === 'bigint') return Number(a - b);
  return numeric(a) - numeric(b);
}

/** Position in a tensor of a position in its elements. */
export function indexOf(position: number, dims: readonly number[]): number[] {
  const index: number[] = [];
  let rest = position;
  for (const dim of [...dims].reverse()) {
    index.unshift(rest % dim);
    rest = Math.floor(rest / dim);
  }
  return index;
}

/** What stands for a value that is not there, or of another shape. */
function incomparable(
  name: string,
  problem: string,
  a: Tensor | undefined,
  b: Tensor | undefined,
): ValueDifference {
  const of = (tensor: Tensor | undefined): { type: string; dims: number[]; size: number } =>
    tensor
      ? { type: tensor.type, dims: [...tensor.dims], size: tensor.size }
      : { type: 'none', dims: [], size: 0 };
  const [x, y] = [of(a), of(b)];
  return {
    name,
    types: { a: x.type, b: y.type },
    dims: { a: x.dims, b: y.dims },
    within: false,
    problem,
    maxAbs: Infinity,
    maxRel: Infinity,
    maxError: Infinity,
    rms: NaN,
    sqnrDb: NaN,
    cosine: NaN,
    notFinite: { a: 0, b: 0, different: 0 },
    elements: x.size,
    beyond: Math.max(x.size, y.size),
    histogram: new Array<number>(BINS).fill(0),
  };
}

/** Compares two values of one name; A's is the reference. */
export function compareTensors(
  name: string,
  a: Tensor | undefined,
  b: Tensor | undefined,
  bounds: Bounds,
): ValueDifference {
  if (!a || !b) return incomparable(name, `there is no such value in ${a ? 'B' : b ? 'A' : 'either'}`, a, b);
  if (String(a.dims) !== String(b.dims))
    return incomparable(name, `the shapes differ: [${a.dims.join(', ')}] and [${b.dims.join(', ')}]`, a, b);
  const exact = bounds.atol === undefined && bounds.rtol === undefined;
  const floats = isFloatType(a.type) || isFloatType(b.type);
  const difference = compareElements(
    elementsOf(a),
    elementsOf(b),
    !floats && exact ? { atol: 0 } : floats ? bounds : { ...bounds, maxError: Infinity },
  );
  const { first, worst, ...rest } = difference;
  const pair = (position: number | undefined): ElementPair | undefined =>
    position === undefined
      ? undefined
      : {
          index: indexOf(position, a.dims),
          a: shown(elementsOf(a)[position]),
          b: shown(elementsOf(b)[position]),
        };
  const [firstPair, worstPair] = [pair(first), pair(worst)];
  return {
    name,
    types: { a: a.type, b: b.type },
    dims: { a: [...a.dims], b: [...b.dims] },
    within: difference.beyond === 0,
    ...rest,
    elements: a.size,
    ...(firstPair ? { first: firstPair } : {}),
    ...(worstPair ? { worst: worstPair } : {}),
  };
}

/** As JSON can hold it: it knows neither bigints nor NaN and Inf. */
function shown(value: number | bigint | string | undefined): number | string {
  return typeof value === 'number' && Number.isFinite(value) ? value : String(value);
}

type Counted = Pick<
  ValueDifference,
  | 'maxAbs' | 'maxRel' | 'maxError' | 'rms' | 'sqnrDb' | 'cosine' | 'notFinite' | 'beyond' | 'histogram'
> & { first?: number; worst?: number }; // prettier-ignore

/** Compares as many elements as `a` has; `first` and `worst` are positions. */
export function compareElements(a: Elements, b: Elements, bounds: Bounds): Counted {
  const { maxError = bounds.atol === undefined && bounds.rtol === undefined ? 0 : Infinity } = bounds;
  const { atol, rtol = 0 } = bounds;
  let largest = 0;
  for (let i = 0; i < a.length; i++) {
    const magnitude = Math.abs(numeric(a[i]));
    if (magnitude < Infinity && magnitude > largest) largest = magnitude;
  }
  const scale = largest || 1; // all zeros: the difference itself
  const most = maxError * scale;
  const elementwise = atol !== undefined || bounds.rtol !== undefined;
  const histogram = new Array<number>(BINS).fill(0);
  const notFinite = { a: 0, b: 0, different: 0 };
  let [maxAbs, maxRel, beyond, squaresA, squaresB, product, noise, finite] = [0, 0, 0, 0, 0, 0, 0, 0];
  let first: number | undefined;
  let worst: number | undefined;
  for (let i = 0; i < a.length; i++) {
    const [x, y] = [a[i] ?? NaN, b[i] ?? NaN];
    const [e, f] = [numeric(x), numeric(y)];
    const bothFinite = Math.abs(e) < Infinity && Math.abs(f) < Infinity;
    if (typeof x !== 'string' && !bothFinite) {
      if (!(Math.abs(e) < Infinity)) notFinite.a++;
      if (!(Math.abs(f) < Infinity)) notFinite.b++;
    }
    // Two NaN are the same; those of strings are none.
    const same = x === y || (typeof x !== 'string' && Number.isNaN(e) && Number.isNaN(f));
    const d = same ? 0 : bothFinite ? Math.abs(subtract(x, y)) : Infinity;
    if (bothFinite) {
      finite++;
      squaresA += e * e;
      squaresB += f * f;
      product += e * f;
      noise += d * d;
    } else if (d > 0 && typeof x !== 'string') notFinite.different++;
    const bin =
      d === 0
        ? 0
        : d / scale >= 1
          ? BINS - 1
          : Math.max(1, Math.floor(Math.log10(d / scale)) - HISTOGRAM_FROM + 2);
    histogram[bin] = (histogram[bin] ?? 0) + 1;
    if (d === 0) continue;
    if (d > maxAbs) [maxAbs, worst] = [d, i];
    if (e !== 0) maxRel = Math.max(maxRel, d / Math.abs(e));
    if (d <= most && (!elementwise || d <= (atol ?? 0) + rtol * Math.abs(e))) continue;
    beyond++;
    first ??= i;
  }
  const lengths = Math.sqrt(squaresA) * Math.sqrt(squaresB);
  return {
    maxAbs,
    maxRel: maxAbs === Infinity ? Infinity : maxRel,
    maxError: maxAbs / scale,
    rms: finite === 0 ? 0 : Math.sqrt(noise / finite),
    sqnrDb: noise === 0 ? Infinity : 10 * Math.log10(squaresA / noise),
    cosine: lengths > 0 ? Math.min(1, product / lengths) : squaresA === squaresB ? 1 : 0,
    notFinite,
    beyond,
    histogram,
    ...(first === undefined ? {} : { first }),
    ...(worst === undefined ? {} : { worst }),
  };
}
