/** Inputs from files: TensorProto (.pb), numpy (.npy), JSON. */
import fs from 'node:fs';
import path from 'node:path';
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { QkvGemmError, reason } from '../errors.js';
import { statOf } from '../files.js';
import { elementSize, Tensor as TensorProto } from '../onnx/tensor.js';
import { float16Bits } from '../rewrite/weights/convert.js';

/** A file with an input, or of JSON with several. */
export interface InputFile {
  /** The input's name; default: what the file says, else the position among those without a name. */
  name?: string;
  /** Path of the file. */
  file: string;
}

type TypeName = Tensor['type'];
type Element = number | bigint | boolean | string;

/** Typed arrays of ONNX Runtime's tensors, by type. */
const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
} as const;

/** TensorProto.DataType to ONNX Runtime's names, of the types that JavaScript can hold. */
export const PROTO_TYPES: Record<number, TypeName> = {
  1: 'float32', 2: 'uint8', 3: 'int8', 4: 'uint16', 5: 'int16', 6: 'int32', 7: 'int64', 9: 'bool', 10: 'float16',
  11: 'float64', 12: 'uint32', 13: 'uint64',
}; // prettier-ignore

/** numpy's type codes, little-endian. */
const NUMPY_TYPES: Record<string, TypeName> = {
  f4: 'float32', f8: 'float64', f2: 'float16', i8: 'int64', u8: 'uint64', i4: 'int32', u4: 'uint32', i2: 'int16',
  u2: 'uint16', i1: 'int8', u1: 'uint8', b1: 'bool',
}; // prettier-ignore

interface Read {
  /** The name that the file gives. */
  name: string;
  type: TypeName;
  dims: number[];
  bytes: Uint8Array;
}

const invalid = (file: string, what: string): QkvGemmError =>
  new QkvGemmError('INVALID_ARGUMENT', `The input file '${file}' ${what}`);

function toTensor({ type, dims, bytes }: Read, TensorOf: typeof Tensor): Tensor {
  const ArrayOf = ARRAYS[type as keyof typeof ARRAYS];
  const data = new ArrayOf(new Uint8Array(bytes).buffer); // a copy, whose address suits any type
  return new TensorOf(type as 'float32', data as Float32Array, dims);
}

function readProto(file: string, bytes: Uint8Array): Read {
  let proto: TensorProto;
  let data: Uint8Array;
  try {
    proto = new TensorProto(bytes, `'${file}'`);
    data = proto.bytes();
  } catch (error) {
    throw invalid(
      file,
      `is no TensorProto: ${reason(error)} Expected what ONNX's backend tests call input_0.pb.`,
    );
  }
  const type = PROTO_TYPES[proto.type];
  if (type === undefined || elementSize(proto.type) === undefined)
    throw invalid(file, `holds elements of data type ${proto.type}, which cannot be fed.`);
  return { name: proto.name, type, dims: [...proto.dims], bytes: data };
}

/** The format of numpy.save: magic, version, length of the header, the header as a Python literal, the elements. */
function readNpy(file: string, bytes: Uint8Array): Read {
  const wide = (bytes[6] ?? 0) >= 2;
  const start = wide ? 12 : 10;
  const magic = String.fromCharCode(...bytes.subarray(1, 6));
  if (bytes[0] !== 0x93 || magic !== 'NUMPY' || bytes.length < start)
    throw invalid(file, 'is no .npy file. Expected what numpy.save writes.');
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder('latin1').decode(bytes.subarray(start, start + length));
  const code = /'descr': *'([^']*)'/.exec(header)?.[1] ?? '';
  const shape = /'shape': *\(([^)]*)\)/.exec(header)?.[1];
  const type = /^[<|=]/.test(code) ? NUMPY_TYPES[code.slice(1)] : undefined;
  if (type === undefined || shape === undefined)
    throw invalid(
      file,
      `holds elements of numpy type '${code}'; expected little-endian ${Object.keys(NUMPY_TYPES).join(', ')}.`,
    );
  if (/'fortran_order': *True/.test(header))
    throw invalid(file, 'is in Fortran order. Save numpy.ascontiguousarray of it.');
  const dims = shape
    .split(',')
    .filter((dim) => dim.trim() !== '')
    .map(Number);
  const data = bytes.subarray(start + length);
  const expected =
    dims.reduce((product, dim) => product * dim, 1) * ARRAYS[type as keyof typeof ARRAYS].BYTES_PER_ELEMENT;
  if (data.length !== expected)
    throw invalid(file, `is [${dims.join(', ')}], ${expected} bytes, but holds ${data.length}.`);
  return { name: '', type, dims, bytes: data };
}

/** An array as far as it is nested, with its dimensions; all rows must be as long. */
function flatten(file: string, value: unknown): { dims: number[]; elements: Element[] } {
  if (!Array.isArray(value)) return { dims: [], elements: [value as Element] };
  const rows = value.map((row) => flatten(file, row));
  const dims = rows[0]?.dims ?? [];
  if (rows.some((row) => String(row.dims) !== String(dims)))
    throw invalid(file, 'holds an array whose rows are not all of one length.');
  return { dims: [value.length, ...dims], elements: rows.flatMap((row) => row.elements) };
}

/** One input of a JSON file: nested arrays, or `{ "dims": [...], "data": [...] }` with `"type"` if not the model's. */
function fromJson(file: string, value: unknown, expected: TypeName, TensorOf: typeof Tensor): Tensor {
  const form = value as { dims?: unknown; data?: unknown; type?: unknown };
  const given = typeof value === 'object' && value !== null && !Array.isArray(value);
  const { dims, elements } = flatten(file, given ? form.data : value);
  const type = (given && typeof form.type === 'string' ? form.type : expected) as keyof typeof ARRAYS;
  const ArrayOf = Object.hasOwn(ARRAYS, type) ? ARRAYS[type] : undefined;
  if (!ArrayOf) throw invalid(file, `gives the type '${type}'; expected ${Object.keys(ARRAYS).join(', ')}.`);
  const big = type === 'int64' || type === 'uint64';
  const converted = elements.map((element) => {
    const number = typeof element === 'boolean' ? Number(element) : element;
    if (typeof number !== 'number' || (big && !Number.isSafeInteger(number)))
      throw invalid(file, `holds ${JSON.stringify(element)} where ${type} is expected.`);
    return big ? BigInt(number) : type === 'float16' ? float16Bits(number) : number;
  });
  const array = (ArrayOf as typeof Float32Array).from(converted as number[]);
  const shape = given && Array.isArray(form.dims) ? form.dims.map(Number) : dims;
  const count = shape.reduce((product, dim) => product * dim, 1);
  if (count !== array.length)
    throw invalid(file, `says dims [${shape.join(', ')}], ${count} elements, but holds ${array.length}.`);
  return new TensorOf(type as 'float32', array, shape);
}

function readBytes(file: string): Uint8Array {
  const stat = statOf(file);
  if (!stat)
    throw new QkvGemmError('FILE_NOT_FOUND', `The input file '${file}' does not exist. Check the path.`);
  try {
    return new Uint8Array(fs.readFileSync(file));
  } catch (error) {
    throw new QkvGemmError('FILE_NOT_READABLE', `The input file '${file}' cannot be read: ${reason(error)}.`);
  }
}

/** A folder stands for its input_0.pb, input_1.pb, ..., as ONNX's backend tests name them. */
function expand(files: readonly InputFile[]): InputFile[] {
  return files.flatMap((input) => {
    if (!statOf(input.file)?.isDirectory()) return [input];
    const names = fs.readdirSync(input.file).filter((name) => /^input_\d+\.pb$/.test(name));
    if (names.length === 0)
      throw new QkvGemmError('FILE_NOT_FOUND', `The folder '${input.file}' holds no input_0.pb.`);
    const number = (name: string): number => Number(/\d+/.exec(name)?.[0]);
    return names.sort((x, y) => number(x) - number(y)).map((name) => ({ file: path.join(input.file, name) }));
  });
}

/**
 * Reads inputs of a model.
 *
 * @param inputs the model's own, for names, order and the types of JSON's numbers.
 * @throws QkvGemmError `INVALID_ARGUMENT` for what does not fit the model, `FILE_NOT_FOUND`, `FILE_NOT_READABLE`.
 */
export function readInputs(
  files: readonly InputFile[],
  inputs: readonly InferenceSession.ValueMetadata[],
  TensorOf: typeof Tensor,
): Record<string, Tensor> {
  const feeds: Record<string, Tensor> = {};
  const names = inputs.map(({ name }) => name);
  let position = 0;
  const put = (file: string, name: string, tensorOf: (type: TypeName) => Tensor): void => {
    const input = inputs.find((candidate) => candidate.name === name);
    if (!input?.isTensor)
      throw invalid(file, `is for '${name}', but the model's inputs are: ${names.join(', ') || 'none'}.`);
    if (Object.hasOwn(feeds, name)) throw invalid(file, `is the second one for '${name}'.`);
    const tensor = tensorOf(input.type);
    const fits =
      tensor.dims.length === input.shape.length &&
      input.shape.every((dim, i) => typeof dim === 'string' || dim < 0 || dim === tensor.dims[i]);
    if (tensor.type !== input.type || !fits)
      throw invalid(
        file,
        `holds ${tensor.type} [${tensor.dims.join(', ')}]; '${name}' is ${input.type} [${input.shape.join(', ')}].`,
      );
    feeds[name] = tensor;
  };
  for (const { name, file } of expand(files)) {
    const bytes = readBytes(file);
    const kind = path.extname(file).toLowerCase();
    if (kind === '.json') {
      let values: unknown;
      try {
        values = JSON.parse(new TextDecoder().decode(bytes));
      } catch (error) {
        throw invalid(file, `is no JSON: ${reason(error)}.`);
      }
      const all = name === undefined ? Object.entries(values as object) : [[name, values] as const];
      for (const [key, value] of all) put(file, key, (type) => fromJson(file, value, type, TensorOf));
    } else if (kind === '.pb' || kind === '.npy') {
      const read = kind === '.pb' ? readProto(file, bytes) : readNpy(file, bytes);
      const own =
        name ?? (names.includes(read.name) ? read.name : (names[position++] ?? `input ${position - 1}`));
      put(file, own, () => toTensor(read, TensorOf));
    } else {
      throw invalid(file, `ends in '${kind}'; expected .pb (TensorProto), .npy or .json.`);
    }
  }
  return feeds;
}
