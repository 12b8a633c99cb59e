/** Constants that are computed from others: what Cast, Reshape and the like make of a tensor, element by element when asked. */
import { DataType, type DataSource, type Tensor } from '../onnx/tensor.js';
import { fromFloat32, toFloat32, transpose } from './weights/convert.js';

/** What rules ask of a constant: a tensor of the model, or one that is computed from such. It has no name then. */
export type Elements = Pick<Tensor, 'name' | 'dims' | 'type' | 'count' | 'bytes' | 'origin'>;

function elements(
  { origin }: Elements,
  type: number,
  dims: readonly number[],
  bytes: (source?: DataSource) => Uint8Array,
): Elements {
  return { name: '', type, dims, count: dims.reduce((product, dim) => product * dim, 1), bytes, origin };
}

/** The same elements, in the same order, under other dimensions. */
export function reshaped(of: Elements, dims: readonly number[]): Elements {
  return elements(of, of.type, dims, (source) => of.bytes(source));
}

/** Rows and columns of a float matrix exchanged. */
export function transposed(of: Elements): Elements {
  const [rows = 0, columns = 0] = of.dims;
  const size = of.type === DataType.float ? 4 : 2;
  return elements(of, of.type, [columns, rows], (source) => transpose(of.bytes(source), rows, columns, size));
}

/** Elements of another float type, rounded to the nearest, ties to even, as Cast does. */
export function rounded(of: Elements, to: number): Elements {
  return elements(of, to, of.dims, (source) =>
    fromFloat32(floatsIn(of, source) ?? new Float32Array(of.count), to),
  );
}

/** A vector with a number added to each element, in float32 whatever the vector's type is. */
export function shifted(of: Elements, by: number): Elements {
  return elements(of, DataType.float, of.dims, (source) =>
    fromFloat32(
      (floatsIn(of, source) ?? new Float32Array(of.count)).map((value) => value + by),
      DataType.float,
    ),
  );
}

export function isFloat(type: number): boolean {
  return type === DataType.float || type === DataType.float16 || type === DataType.bfloat16;
}

/** A float type of 16 bits. */
export function isNarrow(type: number | undefined): boolean {
  return type === DataType.float16 || type === DataType.bfloat16;
}

/** Elements of a float type as float32; undefined for other types. */
export function floatsIn(of: Elements, source?: DataSource): Float32Array<ArrayBuffer> | undefined {
  if (of.type === DataType.double) {
    const bytes = of.bytes(source);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    return Float32Array.from({ length: of.count }, (_, i) => view.getFloat64(i * 8, true));
  }
  return isFloat(of.type) ? toFloat32(of.bytes(source), of.type) : undefined;
}
