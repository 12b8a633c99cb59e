/** NodeProto: names at once, attributes when asked for. */
import onnxProto from 'onnx-proto';
import { QkvGemmError } from '../errors.js';
import { concat, MessageWriter, readFields, text } from './wire.js';
import { encodeTensor, Tensor } from './tensor.js';

/** An attribute's value, of the kinds that rules look at. */
export interface Attribute {
  float?: number;
  integer?: number;
  string?: string;
  integers?: number[];
  floats?: number[];
  tensor?: Tensor;
  /** GraphProto bytes of `g` and `graphs`. */
  graphs: Uint8Array[];
}

/** `g` and `graphs` of AttributeProto. */
const GRAPH_FIELDS: readonly number[] = [6, 11];

const AttributeType = { float: 1, int: 2, string: 3, tensor: 4, graph: 5, floats: 6, ints: 7, graphs: 10 };

export class Node {
  readonly inputs: string[] = [];
  readonly outputs: string[] = [];
  readonly name: string = '';
  readonly opType: string = '';
  readonly domain: string = '';
  private readonly attributeSpans: Uint8Array[] = [];
  private decoded: Map<string, Attribute> | undefined;
  private referring: readonly string[] | undefined;

  /** @param message a NodeProto's bytes. */
  constructor(
    readonly message: Uint8Array,
    private readonly where: string,
  ) {
    for (const field of readFields(message, where)) {
      if (field.number === 1) this.inputs.push(text(field));
      else if (field.number === 2) this.outputs.push(text(field));
      else if (field.number === 3) this.name = text(field);
      else if (field.number === 4) this.opType = text(field);
      else if (field.number === 5) this.attributeSpans.push(field.value);
      else if (field.number === 7) this.domain = text(field);
    }
    if (this.domain === 'ai.onnx') this.domain = '';
  }

  /** For messages: the name, or the op type with the first output. */
  get label(): string {
    return this.name || `${this.opType} -> ${this.outputs.find((name) => name !== '') ?? ''}`;
  }

  /**
   * Is this the operator? One whose attributes are those of the function that it stands in is none that a rule can say
   * anything of: its values are the callers'.
   */
  is(opType: string, domain = ''): boolean {
    return this.opType === opType && this.domain === domain && this.references.length === 0;
  }

  /** Names of attributes that refer to the function's (ref_attr_name, field 21). */
  get references(): readonly string[] {
    this.referring ??= this.attributeSpans.flatMap((span) => {
      const fields = readFields(span, `an attribute of ${this.where}`);
      const name = fields.find((field) => field.number === 1);
      return fields.some((field) => field.number === 21) ? [name ? text(name) : ''] : [];
    });
    return this.referring;
  }

  /** GraphProto bytes of all attributes that are graphs. The others are not decoded for it. */
  get graphs(): Uint8Array[] {
    return this.bodies.map(({ graph }) => graph);
  }

  /** The same with the names of the attributes: `then_branch`, `body`. */
  get bodies(): { attribute: string; graph: Uint8Array }[] {
    return this.attributeSpans.flatMap((span) => {
      const fields = readFields(span, `an attribute of ${this.where}`);
      const name = fields.find((field) => field.number === 1);
      const graphs = fields.filter((field) => GRAPH_FIELDS.includes(field.number));
      return graphs.map((field) => ({ attribute: name ? text(name) : '', graph: field.value }));
    });
  }

  /**
   * NodeProto bytes, in parts, with other graphs; all else stays byte for byte.
   *
   * @param graphs one for each of `bodies`; undefined where it stays.
   */
  withGraphs(graphs: readonly (readonly Uint8Array[] | undefined)[]): Uint8Array[] {
    let at = 0;
    const writer = new MessageWriter();
    for (const field of readFields(this.message, this.where)) {
      if (field.number !== 5) {
        writer.copy(field.span);
        continue;
      }
      const attribute = new MessageWriter();
      for (const part of readFields(field.value, `an attribute of ${this.where}`)) {
        const graph = GRAPH_FIELDS.includes(part.number) ? graphs[at++] : undefined;
        if (graph) attribute.bytes(part.number, graph);
        else attribute.copy(part.span);
      }
      writer.bytes(5, attribute.parts());
    }
    return writer.parts();
  }

  get attributes(): ReadonlyMap<string, Attribute> {
    this.decoded ??= new Map(this.attributeSpans.map((span) => decodeAttribute(span, this.where)));
    return this.decoded;
  }

  /** An int attribute, or its default. */
  integer(name: string, otherwise: number): number {
    return this.attributes.get(name)?.integer ?? otherwise;
  }

  /** A float attribute, or its default. */
  float(name: string, otherwise: number): number {
    return this.attributes.get(name)?.float ?? otherwise;
  }

  integers(name: string): number[] | undefined {
    return this.attributes.get(name)?.integers;
  }
}

/** Decoded numbers take up to fifty times the space of their encoding. */
const MAX_LISTS = 2 ** 23;

function decodeAttribute(span: Uint8Array, where: string): [string, Attribute] {
  const fields = readFields(span, `an attribute of ${where}`);
  // Tensors and graphs are kept as bytes; the small rest is decoded by the schema's own code.
  const nested = (number: number): Uint8Array[] =>
    fields.filter((f) => f.number === number).map((f) => f.value);
  const lists = fields.filter(({ number }) => number >= 7 && number <= 9);
  const size = lists.reduce((sum, { value }) => sum + value.length, 0);
  if (size > MAX_LISTS) {
    throw new QkvGemmError(
      'UNSUPPORTED_MODEL',
      `An attribute of ${where} lists numbers in ${size} bytes, expected at most ${MAX_LISTS}. Store them as a tensor.`,
    );
  }
  const flat = new MessageWriter();
  for (const field of fields) if (![5, 6, 10, 11].includes(field.number)) flat.copy(field.span);
  let proto;
  try {
    proto = onnxProto.onnx.AttributeProto.decode(flat.finish());
  } catch (error) {
    throw new QkvGemmError(
      'INVALID_MODEL',
      `Not a valid ONNX model: an attribute of ${where} cannot be decoded (${error instanceof Error ? error.message : String(error)}).`,
      { cause: error },
    );
  }
  const result: Attribute = { graphs: [...nested(6), ...nested(11)] };
  const kind = Number(proto.type);
  const has = (type: number, present: boolean): boolean => kind === type || (kind === 0 && present);
  if (has(AttributeType.float, proto.f !== 0)) result.float = proto.f;
  if (has(AttributeType.int, Number(proto.i) !== 0)) result.integer = Number(proto.i);
  if (has(AttributeType.string, proto.s.length > 0)) result.string = new TextDecoder().decode(proto.s);
  if (has(AttributeType.ints, proto.ints.length > 0)) result.integers = proto.ints.map(Number);
  if (has(AttributeType.floats, proto.floats.length > 0)) result.floats = [...proto.floats];
  const tensor = nested(5)[0];
  if (tensor) result.tensor = new Tensor(tensor, `a tensor of ${where}`);
  return [proto.name, result];
}

/** What a new node may carry as attributes, tensors aside. */
export type AttributeValue =
  { float: number } | { integer: number } | { string: string } | { integers: readonly number[] };

/** AttributeProto bytes. `ref`: instead of a value, the name of the enclosing function's attribute. */
export function encodeAttribute(name: string, value: AttributeValue, ref?: string): Uint8Array {
  const writer = new MessageWriter().string(1, name);
  let type: number;
  if ('float' in value) {
    type = AttributeType.float;
    if (!ref) writer.float(2, value.float);
  } else if ('integer' in value) {
    type = AttributeType.int;
    if (!ref) writer.integer(3, value.integer);
  } else if ('string' in value) {
    type = AttributeType.string;
    if (!ref) writer.string(4, value.string);
  } else {
    type = AttributeType.ints;
    if (!ref) for (const i of value.integers) writer.integer(8, i);
  }
  writer.integer(20, type);
  if (ref) writer.string(21, ref);
  return writer.finish();
}

/** AttributeProto bytes of a tensor. */
export function encodeTensorAttribute(
  name: string,
  type: number,
  dims: readonly number[],
  data: Uint8Array,
): Uint8Array {
  return new MessageWriter()
    .string(1, name)
    .bytes(5, encodeTensor('', type, dims, data))
    .integer(20, AttributeType.tensor)
    .finish();
}

export interface NewNode {
  opType: string;
  domain?: string;
  overload?: string;
  name?: string;
  doc?: string;
  inputs: readonly string[];
  outputs: readonly string[];
  attributes?: readonly Uint8Array[];
}

/** NodeProto bytes. Written by hand, because onnx-proto does not know `overload` (field 8). */
export function encodeNode(node: NewNode): Uint8Array {
  const writer = new MessageWriter();
  for (const input of node.inputs) writer.string(1, input);
  for (const output of node.outputs) writer.string(2, output);
  if (node.name) writer.string(3, node.name);
  writer.string(4, node.opType);
  for (const attribute of node.attributes ?? []) writer.bytes(5, attribute);
  if (node.doc) writer.string(6, node.doc);
  if (node.domain) writer.string(7, node.domain);
  if (node.overload) writer.string(8, node.overload);
  return writer.finish();
}

/** NodeProto bytes, in parts, of a Constant that gives a tensor (TensorProto bytes, in parts) under the tensor's name. */
export function encodeConstant(tensor: readonly Uint8Array[]): Uint8Array[] {
  const name = new Tensor(concat(tensor), 'a new constant').name;
  const attribute = new MessageWriter().string(1, 'value').bytes(5, tensor).integer(20, AttributeType.tensor);
  return new MessageWriter().string(2, name).string(4, 'Constant').bytes(5, attribute.parts()).parts();
}
