/** TensorProto: what it says of itself, and its elements as little-endian bytes, read when asked for. */
import { QkvGemmError } from '../errors.js';
import { integer, integers, MessageWriter, readFields, text, WIRE, type Field } from './wire.js';

/** TensorProto.DataType, the ones that are used here. */
export const DataType = {
  float: 1,
  uint8: 2,
  int8: 3,
  int32: 6,
  int64: 7,
  string: 8,
  bool: 9,
  float16: 10,
  double: 11,
  bfloat16: 16,
} as const;

const NAMES: Record<number, string> = {
  1: 'float32', 2: 'uint8', 3: 'int8', 4: 'uint16', 5: 'int16', 6: 'int32', 7: 'int64', 8: 'string', 9: 'bool',
  10: 'float16', 11: 'double', 12: 'uint32', 13: 'uint64', 16: 'bfloat16',
}; // prettier-ignore

/** `float32`, `float16`, ... for messages. */
export function dataTypeName(type: number): string {
  return NAMES[type] ?? `data type ${type}`;
}

const SIZES: Record<number, number> = {
  1: 4,
  2: 1,
  3: 1,
  4: 2,
  5: 2,
  6: 4,
  7: 8,
  9: 1,
  10: 2,
  11: 8,
  12: 4,
  13: 8,
  16: 2,
};

/** Bytes of an element; undefined for strings and types that are not read here. */
export function elementSize(type: number): number | undefined {
  return SIZES[type];
}

/** Where a tensor's elements lie, if not in the model file. */
export interface ExternalData {
  location: string;
  offset: number;
  /** Absent: to the end of the file. */
  length?: number;
}

/** Reads ranges of external files, relative to the model's folder; given by whoever knows the file system. */
export interface DataSource {
  read(external: ExternalData, bytes: number, tensor: string): Uint8Array;
  /** Throws what `read` would throw, without reading. */
  check(external: ExternalData, bytes: number, tensor: string): void;
}

/** Takes the elements of new tensors: into the model, or into a file that the model refers to. */
export interface TensorStore {
  /**
   * @param sources the tensors that the new one is made of.
   * @returns the TensorProto's bytes, in parts.
   */
  add(
    name: string,
    type: number,
    dims: readonly number[],
    data: Uint8Array,
    sources: readonly Tensor[],
  ): Uint8Array[];
}

/** A tensor that is rewritten is held in memory; one layer's projections have a hundredth of this. */
export const MAX_TENSOR = 2 ** 32 - 1;

/** Elements go into the model, which can hold 2 GB. */
export class InlineStore implements TensorStore {
  private room = 2 ** 31 - 1;

  add(name: string, type: number, dims: readonly number[], data: Uint8Array): Uint8Array[] {
    this.room -= data.length;
    if (this.room < 0) {
      throw new QkvGemmError(
        'UNSUPPORTED_MODEL',
        'The new weights have more than 2 GB, which a model in one piece cannot hold. Use fuseFile, which puts them into a file of their own.',
      );
    }
    return encodeTensor(name, type, dims, data);
  }
}

/** No operator takes more dimensions; messages name them all. */
const MAX_RANK = 1000;

/** A TensorProto; `data` is read through `bytes`. */
export class Tensor {
  readonly name: string;
  readonly dims: readonly number[];
  readonly type: number;
  readonly external: ExternalData | undefined;
  private readonly fields: readonly Field[];

  /** @param message a TensorProto's bytes. */
  constructor(message: Uint8Array, where: string) {
    this.fields = readFields(message, where);
    const one = (number: number): Field | undefined =>
      this.fields.findLast((field) => field.number === number);
    const name = one(8);
    this.name = name ? text(name) : '';
    this.dims = integers(this.fields, 1);
    if (this.dims.length > MAX_RANK) {
      throw new QkvGemmError(
        'INVALID_MODEL',
        `Tensor '${this.name}' has ${this.dims.length} dimensions, expected at most ${MAX_RANK}.`,
      );
    }
    const type = one(2);
    this.type = type ? integer(type) : 0;
    const location = one(14);
    if (location && integer(location) === 1) this.external = readExternal(this.fields, this.name);
    if (this.dims.some((dim) => dim < 0) || !Number.isSafeInteger(this.count)) {
      throw new QkvGemmError(
        'INVALID_MODEL',
        `Tensor '${this.name}' has dimensions [${this.dims.join(', ')}]; none may be negative, and together at most 2^53 elements.`,
      );
    }
  }

  /** Number of elements. */
  get count(): number {
    return this.dims.reduce((product, dim) => product * dim, 1);
  }

  /**
   * The elements, little-endian, row-major: a view where the model stores them so, else a copy.
   * @throws QkvGemmError `INVALID_MODEL` where their number does not fit the shape; `EXTERNAL_DATA` from the source.
   */
  bytes(source?: DataSource): Uint8Array {
    const size = this.elementSize();
    const expected = this.count * size;
    if (this.external) return this.sourceOf(this.external, source).read(this.external, expected, this.name);
    const data = this.inlineBytes(size);
    this.checkLength(data.length, expected);
    return data;
  }

  /**
   * Bytes that the shape says, once it is sure that the model or the external file has as many; nothing is read. External
   * data of a model that was given as bytes cannot be looked at.
   * @throws QkvGemmError as `bytes` does.
   */
  checkedLength(source?: DataSource): number {
    const size = this.elementSize();
    const expected = this.count * size;
    if (this.external) source?.check(this.external, expected, this.name);
    else this.checkLength(this.rawData?.length ?? this.inlineBytes(size).length, expected);
    return expected;
  }

  /** Itself; of what is computed from a tensor, that tensor. */
  get origin(): Tensor {
    return this;
  }

  /** Elements stored as raw bytes in the model. */
  get rawData(): Uint8Array | undefined {
    return this.external ? undefined : this.fields.findLast((field) => field.number === 9)?.value;
  }

  private elementSize(): number {
    const size = elementSize(this.type);
    if (size !== undefined) return size;
    throw new QkvGemmError(
      'UNSUPPORTED_MODEL',
      `Tensor '${this.name}' is of ${dataTypeName(this.type)}, which is not read here.`,
    );
  }

  private checkLength(found: number, expected: number): void {
    if (found === expected) return;
    throw new QkvGemmError(
      'INVALID_MODEL',
      `Tensor '${this.name}' is ${dataTypeName(this.type)} [${this.dims.join(', ')}], ${expected} bytes, but holds ${found}.`,
    );
  }

  private sourceOf(external: ExternalData, source: DataSource | undefined): DataSource {
    if (source) return source;
    throw new QkvGemmError(
      'EXTERNAL_DATA',
      `Tensor '${this.name}' is stored in '${external.location}', but only the model's bytes were given. Give the model as a path.`,
    );
  }

  private inlineBytes(size: number): Uint8Array {
    const raw = this.rawData;
    if (raw) return raw;
    // Typed fields: float_data 4, double_data 10 as they are; int32_data 5 and int64_data 7 as varints.
    const packed = (number: number): Uint8Array[] =>
      this.fields.filter((f) => f.number === number).map((f) => f.value);
    if (this.type === DataType.float || this.type === DataType.double) {
      const parts = packed(this.type === DataType.float ? 4 : 10);
      const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
      let at = 0;
      for (const part of parts) {
        result.set(part, at);
        at += part.length;
      }
      return result;
    }
    const values = integers(
      this.fields,
      this.type === DataType.int64 ? 7 : this.type === 12 || this.type === 13 ? 11 : 5,
    );
    const result = new Uint8Array(values.length * size);
    const view = new DataView(result.buffer);
    values.forEach((value, i) => {
      if (size === 8) view.setBigInt64(i * 8, BigInt(value), true);
      else if (size === 4) view.setInt32(i * 4, value, true);
      else if (size === 2) view.setUint16(i * 2, value & 0xffff, true);
      else view.setUint8(i, value & 0xff);
    });
    return result;
  }
}

function readExternal(fields: readonly Field[], tensor: string): ExternalData {
  const entries = new Map<string, string>();
  for (const field of fields) {
    if (field.number !== 13) continue;
    const entry = readFields(field.value, `external_data of tensor '${tensor}'`);
    const [key, value] = [1, 2].map((number) =>
      entry.find((f) => f.number === number && f.wire === WIRE.bytes),
    );
    if (key && value) entries.set(text(key), text(value));
  }
  const location = entries.get('location');
  const number = (key: string): number | undefined => {
    const value = entries.get(key);
    if (value === undefined) return undefined;
    const parsed = Number(value);
    // Digits alone: runtimes would read '1e3' as 1.
    if (/^\d+$/.test(value) && Number.isSafeInteger(parsed)) return parsed;
    throw new QkvGemmError(
      'INVALID_MODEL',
      `Tensor '${tensor}': external_data ${key} is '${value}', expected a number >= 0.`,
    );
  };
  if (!location)
    throw new QkvGemmError('INVALID_MODEL', `Tensor '${tensor}' is external, but names no location.`);
  const length = number('length');
  return { location, offset: number('offset') ?? 0, ...(length === undefined ? {} : { length }) };
}

/** A TensorProto with raw data; the data is referenced, not copied. */
export function encodeTensor(
  name: string,
  type: number,
  dims: readonly number[],
  data: Uint8Array,
): Uint8Array[] {
  const writer = new MessageWriter();
  for (const dim of dims) writer.integer(1, dim);
  return writer.integer(2, type).string(8, name).bytes(9, data).parts();
}

/** A TensorProto whose elements lie in an external file: external_data 13 (key 1, value 2), data_location 14 (1: external). */
export function encodeExternalTensor(
  name: string,
  type: number,
  dims: readonly number[],
  external: ExternalData,
): Uint8Array {
  const writer = new MessageWriter();
  for (const dim of dims) writer.integer(1, dim);
  writer.integer(2, type).string(8, name);
  writeExternal(writer, external);
  return writer.finish();
}

function writeExternal(writer: MessageWriter, { location, offset, length }: ExternalData): void {
  for (const [key, value] of Object.entries({ location, offset, length }))
    if (value !== undefined)
      writer.bytes(13, new MessageWriter().string(1, key).string(2, String(value)).finish());
  writer.integer(14, 1);
}

/** Fields of TensorProto that hold elements or say where they are: float_data 4, int32_data 5, int64_data 7, raw_data 9, ... */
const ELEMENTS: readonly number[] = [4, 5, 7, 9, 10, 11, 13, 14];

/** A TensorProto whose elements now lie in an external file; its other fields stay byte for byte, in their order. */
export function moveTensor(message: Uint8Array, external: ExternalData, where: string): Uint8Array {
  const writer = new MessageWriter();
  for (const field of readFields(message, where))
    if (!ELEMENTS.includes(field.number)) writer.copy(field.span);
  writeExternal(writer, external);
  return writer.finish();
}
