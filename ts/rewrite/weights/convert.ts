/** Element conversions on little-endian bytes; rounding is to nearest, ties to even, everywhere. */
import { DataType } from '../../onnx/tensor.js';

const scratch = new DataView(new ArrayBuffer(4));

/** A copy whose address suits a typed array, or the bytes themselves where theirs does. */
function aligned(bytes: Uint8Array, size: number): Uint8Array<ArrayBuffer> {
  // Not slice(): a Buffer's is a view.
  return bytes.byteOffset % size === 0 ? (bytes as Uint8Array<ArrayBuffer>) : new Uint8Array(bytes);
}

/** float16 bits of a number. Overflow goes to infinity, underflow through the subnormals (IEEE 754). */
export function float16Bits(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >>> 13) & 0x3ff);
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Below 2^-14 the result counts units of 2^-24.
    scratch.setUint32(0, magnitude);
    const units = scratch.getFloat32(0) * 16777216;
    const floor = Math.floor(units);
    const rest = units - floor;
    const up = rest > 0.5 || (rest === 0.5 && floor % 2 === 1);
    return sign | (floor + (up ? 1 : 0));
  }
  return sign | ((magnitude + 0xfff + ((magnitude >>> 13) & 1) - 0x38000000) >>> 13);
}

export function float16Value(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >>> 10) & 0x1f;
  const mantissa = bits & 0x3ff;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

let float16Table: Float32Array | undefined;

/** Elements of a float32, float16 or bfloat16 tensor as float32. */
export function toFloat32(bytes: Uint8Array, type: number): Float32Array<ArrayBuffer> {
  if (type === DataType.float) {
    const source = aligned(bytes, 4);
    return new Float32Array(source.buffer, source.byteOffset, source.byteLength / 4);
  }
  const source = aligned(bytes, 2);
  const halves = new Uint16Array(source.buffer, source.byteOffset, source.byteLength / 2);
  const result = new Float32Array(halves.length);
  if (type === DataType.bfloat16) {
    const bits = new Uint32Array(result.buffer);
    for (let i = 0; i < halves.length; i++) bits[i] = (halves[i] ?? 0) << 16;
    return result;
  }
  float16Table ??= Float32Array.from({ length: 65536 }, (_, i) => float16Value(i));
  for (let i = 0; i < halves.length; i++) result[i] = float16Table[halves[i] ?? 0] ?? 0;
  return result;
}

/** float32 elements as bytes of another float type. */
export function fromFloat32(values: Float32Array<ArrayBuffer>, type: number): Uint8Array<ArrayBuffer> {
  if (type === DataType.float) return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const result = new Uint16Array(values.length);
  if (type === DataType.bfloat16) {
    const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
    for (let i = 0; i < bits.length; i++) {
      const u = bits[i] ?? 0;
      const nan = (u & 0x7fffffff) > 0x7f800000;
      result[i] = nan ? (u >>> 16) | 0x40 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16;
    }
  } else {
    for (let i = 0; i < values.length; i++) result[i] = float16Bits(values[i] ?? 0);
  }
  return new Uint8Array(result.buffer);
}

/** Rows and columns exchanged: [rows, columns] -> [columns, rows], elements of `size` bytes. */
export function transpose(bytes: Uint8Array, rows: number, columns: number, size: number): Uint8Array {
  const result = new Uint8Array(bytes.length);
  const Type = size === 4 ? Uint32Array : size === 2 ? Uint16Array : Uint8Array;
  const source = aligned(bytes, size);
  const from = new Type(source.buffer, source.byteOffset, source.byteLength / size);
  const to = new Type(result.buffer);
  const block = 64; // square blocks, so that both sides stay in cache
  for (let r0 = 0; r0 < rows; r0 += block) {
    for (let c0 = 0; c0 < columns; c0 += block) {
      for (let r = r0; r < Math.min(rows, r0 + block); r++) {
        for (let c = c0; c < Math.min(columns, c0 + block); c++)
          to[c * rows + r] = from[r * columns + c] ?? 0;
      }
    }
  }
  return result;
}

export interface Quantized {
  /** int8, as the input laid out. */
  data: Uint8Array;
  /** float32 [K / block, N]. */
  scale: Float32Array;
}

/** A weight that no scale serves. */
export class NotFinite extends RangeError {
  constructor(
    readonly column: number,
    readonly value: number | undefined,
  ) {
    super(`column ${column} holds ${value}`);
  }
}

/**
 * Symmetric int8, one scale per output column, or per block of rows of one: scale = max |w| / 127, q = round(w / scale).
 * Where all are zeros, the scale is 1. Throws NotFinite where a weight is not finite.
 *
 * @param values [K, N], or [N, K] when `transposed`.
 * @param block rows of a column that share a scale; divides K.
 */
export function quantizeInt8(
  values: Float32Array,
  k: number,
  n: number,
  transposed: boolean,
  block = k,
): Quantized {
  const scale = new Float32Array((k / block) * n);
  const at = transposed
    ? (row: number, column: number) => column * k + row
    : (row: number, column: number) => row * n + column;
  const scaleAt = (row: number, column: number): number => Math.floor(row / block) * n + column;
  /** `s`: where an element's scale is. */
  const visit = (fn: (i: number, s: number, column: number) => void): void => {
    if (transposed) for (let c = 0; c < n; c++) for (let r = 0; r < k; r++) fn(at(r, c), scaleAt(r, c), c);
    else for (let r = 0; r < k; r++) for (let c = 0; c < n; c++) fn(at(r, c), scaleAt(r, c), c);
  };
  visit((i, s, c) => {
    const magnitude = Math.abs(values[i] ?? 0);
    if (!(magnitude < Infinity)) throw new NotFinite(c, values[i]);
    if (magnitude > (scale[s] ?? 0)) scale[s] = magnitude;
  });
  for (let s = 0; s < scale.length; s++) scale[s] = Math.fround((scale[s] ?? 0) / 127) || 1;
  const data = new Int8Array(values.length);
  visit((i, s) => {
    data[i] = Math.max(-127, Math.min(127, roundHalfEven((values[i] ?? 0) / (scale[s] ?? 1))));
  });
  return { data: new Uint8Array(data.buffer), scale };
}

function roundHalfEven(x: number): number {
  const r = Math.round(x);
  return Math.abs(x % 1) === 0.5 && r % 2 !== 0 ? r - 1 : r;
}

/** Signal-to-quantisation-noise ratio in dB: 10 log10(sum w^2 / sum (w - w')^2); Infinity where nothing was lost. */
export function sqnrDb(original: Float32Array, approximation: (i: number) => number): number {
  let signal = 0;
  let noise = 0;
  for (let i = 0; i < original.length; i++) {
    const w = original[i] ?? 0;
    const e = w - approximation(i);
    signal += w * w;
    noise += e * e;
  }
  return noise === 0 ? Infinity : 10 * Math.log10(signal / noise);
}
