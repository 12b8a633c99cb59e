/** Builds small ONNX models as bytes, for the tests, the benchmarks and the demo. */
import { encodeAttribute, encodeNode, encodeTensorAttribute, type AttributeValue } from '../ts/onnx/node.js';
import { DataType, elementSize, encodeExternalTensor, encodeTensor } from '../ts/onnx/tensor.js';
import { MessageWriter } from '../ts/onnx/wire.js';
import { fromFloat32 } from '../ts/rewrite/weights/convert.js';

export interface Value {
  name: string;
  /** An element type of `DataType` (default float). */
  type?: number;
  /** Sizes and symbols; absent where the rank is unknown. */
  dims?: readonly (number | string)[];
}

export interface NodeSettings {
  attributes?: Record<string, AttributeValue>;
  /** Attributes that are graphs: the bodies of If, Loop and Scan. */
  graphs?: Record<string, ModelBuilder>;
  domain?: string;
  name?: string;
  /** Which of several functions of that name (IR version 10). */
  overload?: string;
}

/** Where a tensor's data lie in an external file, as the model names it. */
export interface ExternalPlace {
  location: string;
  offset: number;
}

export const IR_VERSION = 8;
export const OPSET = 17;

/**
 * Collects the parts of one graph. Methods that add a value return its name, so that calls nest:
 * `model.node('Add', ['x', model.floats('b', [4], values)], ['y'])`.
 */
export class ModelBuilder {
  private readonly nodes: Uint8Array[] = [];
  /** Each in parts, so that large ones are not copied before the model is put together. */
  private readonly initialisers: Uint8Array[][] = [];
  private readonly inputs: Value[] = [];
  private readonly outputs: Value[] = [];
  private readonly valueInfos: Value[] = [];
  private readonly functions: Uint8Array[] = [];
  private readonly opsets: Map<string, number>;

  constructor(
    opsets: Record<string, number> = {},
    private readonly irVersion = IR_VERSION,
  ) {
    this.opsets = new Map(Object.entries({ '': OPSET, ...opsets }));
  }

  /** Adds a graph input. */
  input(name: string, dims?: readonly (number | string)[], type: number = DataType.float): string {
    this.inputs.push({ name, type, ...(dims ? { dims } : {}) });
    return name;
  }

  /** Adds a graph output. */
  output(name: string, dims?: readonly (number | string)[], type: number = DataType.float): string {
    this.outputs.push({ name, type, ...(dims ? { dims } : {}) });
    return name;
  }

  /** States type and shape of a value inside the graph. */
  valueInfo(name: string, dims?: readonly (number | string)[], type: number = DataType.float): void {
    this.valueInfos.push({ name, type, ...(dims ? { dims } : {}) });
  }

  /** Adds a node; returns its first output. AttributeProto of a graph: name 1, g 6, type 20 (5: graph). */
  node(
    opType: string,
    inputs: readonly string[],
    outputs: readonly string[],
    settings: NodeSettings = {},
  ): string {
    const { attributes = {}, graphs = {}, domain = '', overload = '' } = settings;
    const { name = `${outputs[0] ?? opType}_node` } = settings;
    const encoded = Object.entries(attributes).map(([key, value]) => encodeAttribute(key, value));
    for (const [key, body] of Object.entries(graphs))
      encoded.push(new MessageWriter().string(1, key).bytes(6, body.graph()).integer(20, 5).finish());
    return this.rawNode(
      encodeNode({ opType, domain, name, overload, inputs, outputs, attributes: encoded }),
      outputs[0] ?? '',
    );
  }

  /** Adds the bytes of a NodeProto. */
  rawNode(bytes: Uint8Array, output = ''): string {
    this.nodes.push(bytes);
    return output;
  }

  /** Adds a Constant node that holds floats, stored as `type`. */
  constant(
    name: string,
    dims: readonly number[],
    values: ArrayLike<number>,
    type: number = DataType.float,
  ): string {
    const value = encodeTensorAttribute('value', type, dims, fromFloat32(new Float32Array(values), type));
    return this.rawNode(
      encodeNode({
        opType: 'Constant',
        name: `${name}_node`,
        inputs: [],
        outputs: [name],
        attributes: [value],
      }),
      name,
    );
  }

  /** Adds an initialiser from its bytes, little-endian. */
  tensor(name: string, type: number, dims: readonly number[], data: Uint8Array): string {
    this.initialisers.push(encodeTensor(name, type, dims, data));
    return name;
  }

  /** Adds a float initialiser, stored as `type`: float, float16 or bfloat16, rounded to the nearest even. */
  floats(
    name: string,
    dims: readonly number[],
    values: ArrayLike<number>,
    type: number = DataType.float,
  ): string {
    return this.tensor(name, type, dims, fromFloat32(new Float32Array(values), type));
  }

  /** Adds an int64 initialiser. */
  integers(name: string, dims: readonly number[], values: readonly number[]): string {
    const data = BigInt64Array.from(values, BigInt);
    return this.tensor(name, DataType.int64, dims, new Uint8Array(data.buffer));
  }

  /** Adds an initialiser whose data lie in an external file. */
  external(
    name: string,
    dims: readonly number[],
    place: ExternalPlace,
    type: number = DataType.float,
  ): string {
    const length = (elementSize(type) ?? 0) * dims.reduce((product, dim) => product * dim, 1);
    this.initialisers.push([encodeExternalTensor(name, type, dims, { ...place, length })]);
    return name;
  }

  /** Adds the bytes of a FunctionProto. */
  function(bytes: Uint8Array): void {
    this.functions.push(bytes);
  }

  /** NodeProto bytes of all nodes, in order. */
  nodeBytes(): readonly Uint8Array[] {
    return this.nodes;
  }

  /** GraphProto: node 1, name 2, initializer 5, input 11, output 12, value_info 13. A subgraph is built as a graph. */
  graph(): Uint8Array[] {
    const graph = new MessageWriter();
    for (const node of this.nodes) graph.bytes(1, node);
    graph.string(2, 'graph');
    for (const initialiser of this.initialisers) graph.bytes(5, initialiser);
    for (const value of this.inputs) graph.bytes(11, valueInfo(value));
    for (const value of this.outputs) graph.bytes(12, valueInfo(value));
    for (const value of this.valueInfos) graph.bytes(13, valueInfo(value));
    return graph.parts();
  }

  /** ModelProto: ir_version 1, graph 7, opset_import 8, functions 25. */
  finish(): Uint8Array {
    const model = new MessageWriter().integer(1, this.irVersion).bytes(7, this.graph());
    for (const [domain, version] of this.opsets)
      model.bytes(8, new MessageWriter().string(1, domain).integer(2, version).finish());
    for (const bytes of this.functions) model.bytes(25, bytes);
    return model.finish();
  }
}

/** ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1; its elem_type 1, shape 2; its dim 1; its value 1, param 2. */
export function valueInfo({ name, type = DataType.float, dims }: Value): Uint8Array {
  const tensor = new MessageWriter().integer(1, type);
  if (dims) {
    const shape = new MessageWriter();
    for (const dim of dims) {
      const writer = new MessageWriter();
      shape.bytes(1, (typeof dim === 'number' ? writer.integer(1, dim) : writer.string(2, dim)).finish());
    }
    tensor.bytes(2, shape.finish());
  }
  const typeProto = new MessageWriter().bytes(1, tensor.finish()).finish();
  return new MessageWriter().string(1, name).bytes(2, typeProto).finish();
}

/** Uniform numbers in [centre - limit, centre + limit), the same for the same seed (xorshift32). */
export function uniform(count: number, limit: number, seed: number, centre = 0): Float32Array<ArrayBuffer> {
  const result = new Float32Array(count);
  let state = Math.imul(seed, 0x9e3779b9) | 1;
  for (let i = 0; i < count; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    result[i] = centre + (state / 0x80000000) * limit;
  }
  return result;
}
