/** GraphProto: its fields in order, nodes and tensors as views, and the edits that a rewrite makes. */
import { QkvGemmError } from '../errors.js';
import { encodeConstant, Node } from './node.js';
import { Tensor } from './tensor.js';
import { integer, integers, MessageWriter, readFields, text, WIRE, type Field } from './wire.js';

/** Field numbers of the message that holds a graph. */
export interface GraphLayout {
  node: number;
  input: number;
  output: number;
  valueInfo: number;
  /** Absent: constants are nodes. */
  initializer?: number;
  sparseInitializer?: number;
  /** Inputs and outputs are stated with types; else they are names alone. */
  stated: boolean;
}

const LAYOUT: GraphLayout = {
  node: 1,
  initializer: 5,
  input: 11,
  output: 12,
  valueInfo: 13,
  sparseInitializer: 15,
  stated: true,
};

/** Element type and shape that the graph states for a value; a dimension is -1 where it is symbolic or unknown. */
export interface ValueInfo {
  name: string;
  type: number | undefined;
  dims: number[] | undefined;
  /** The same with the names of symbolic dimensions, '' where there is neither; absent where the rank is unknown. */
  shape?: (number | string)[];
}

interface Entry<T> {
  field: Field;
  view: T;
}

export class Graph {
  private readonly fields: Field[];
  private readonly nodeEntries: Entry<Node>[] = [];
  readonly initializers = new Map<string, Tensor>();
  /** Names of the sparse ones. */
  readonly sparseInitializers = new Set<string>();
  readonly inputs: ValueInfo[] = [];
  readonly outputs: ValueInfo[] = [];
  readonly valueInfos = new Map<string, ValueInfo>();

  // Edits; all are applied when the graph is encoded.
  private readonly removedNodes = new Set<Node>();
  private readonly insertedBefore = new Map<Node, (Uint8Array | readonly Uint8Array[])[]>();
  private readonly removedInitializers = new Set<string>();
  private readonly removedValueInfos = new Set<string>();
  private readonly removedInputs = new Set<string>();
  private readonly addedValueInfos: Uint8Array[] = [];
  private readonly addedInitializers: Uint8Array[][] = [];

  /** @param message a GraphProto's bytes, or those of a message with another layout. */
  constructor(
    message: Uint8Array,
    private readonly layout: GraphLayout = LAYOUT,
    where = 'the graph',
  ) {
    this.fields = readFields(message, where);
    const FIELD = layout;
    const stated = (field: Field): ValueInfo =>
      layout.stated ? readValueInfo(field.value) : { name: text(field), type: undefined, dims: undefined };
    for (const field of this.fields) {
      if (field.number === FIELD.node) {
        this.nodeEntries.push({ field, view: new Node(field.value, `node ${this.nodeEntries.length}`) });
      } else if (field.number === FIELD.initializer) {
        const tensor = new Tensor(field.value, `initializer ${this.initializers.size}`);
        if (this.initializers.has(tensor.name)) {
          throw new QkvGemmError(
            'INVALID_MODEL',
            `Two initialisers are named '${tensor.name}'; names of values must be unique.`,
          );
        }
        this.initializers.set(tensor.name, tensor);
      } else if (field.number === FIELD.sparseInitializer) {
        // SparseTensorProto: values 1, a TensorProto that bears the name.
        for (const values of readFields(field.value, 'a sparse initialiser'))
          if (values.number === 1)
            this.sparseInitializers.add(new Tensor(values.value, 'a sparse initialiser').name);
      } else if (field.number === FIELD.input) {
        this.inputs.push(stated(field));
      } else if (field.number === FIELD.output) {
        this.outputs.push(stated(field));
      } else if (field.number === FIELD.valueInfo) {
        const info = readValueInfo(field.value);
        this.valueInfos.set(info.name, info);
      }
    }
  }

  get nodes(): Node[] {
    return this.nodeEntries.map((entry) => entry.view);
  }

  removeNode(node: Node): void {
    this.removedNodes.add(node);
  }

  /** Puts a node (NodeProto bytes, in parts or not) before one that is in the graph, even if that one is removed. */
  insertNode(before: Node, message: Uint8Array | readonly Uint8Array[]): void {
    const list = this.insertedBefore.get(before) ?? [];
    list.push(message);
    this.insertedBefore.set(before, list);
  }

  /** States a value's element type where the graph says nothing of the value: ValueInfoProto as `readValueInfo` has it. */
  addType(name: string, type: number): void {
    // ONNX Runtime reads no types from a function.
    if (!this.layout.stated) return;
    if (this.valueInfos.has(name) || this.outputs.some((output) => output.name === name)) return;
    const tensor = new MessageWriter().integer(1, type).finish();
    const typeProto = new MessageWriter().bytes(1, tensor).finish();
    this.addedValueInfos.push(new MessageWriter().string(1, name).bytes(2, typeProto).finish());
  }

  /** @param parts a TensorProto's bytes. Where there are no initialisers it becomes a Constant node before all others. */
  addInitializer(parts: Uint8Array[]): void {
    this.addedInitializers.push(parts);
  }

  /** How many new constants become nodes. */
  get addedConstants(): number {
    return this.layout.initializer === undefined ? this.addedInitializers.length : 0;
  }

  removeInitializer(name: string): void {
    this.removedInitializers.add(name);
  }

  removeValueInfo(name: string): void {
    this.removedValueInfos.add(name);
  }

  removeInput(name: string): void {
    this.removedInputs.add(name);
  }

  get changed(): boolean {
    return (
      this.removedNodes.size +
        this.insertedBefore.size +
        this.removedInitializers.size +
        this.removedInputs.size >
        0 || this.addedInitializers.length + this.addedValueInfos.length + this.removedValueInfos.size > 0
    );
  }

  /** The graph with its edits: untouched fields are the original bytes, in the original order. */
  encode(): Uint8Array[] {
    const { initializer, node, valueInfo } = this.layout;
    const writer = new MessageWriter();
    const nodeOf = new Map(this.nodeEntries.map((entry) => [entry.field, entry.view]));
    const lastInitializer = this.fields.findLastIndex((field) => field.number === initializer);
    const lastNode = this.fields.findLastIndex((field) => field.number === node);
    const addInitializersAfter = lastInitializer >= 0 ? lastInitializer : lastNode;
    const firstNode = this.fields.findIndex((field) => field.number === node);
    this.fields.forEach((field, index) => {
      if (initializer === undefined && index === firstNode)
        for (const parts of this.addedInitializers) writer.bytes(node, encodeConstant(parts));
      if (!this.isRemoved(field, nodeOf, writer)) writer.copy(field.span);
      if (initializer !== undefined && index === addInitializersAfter) {
        for (const parts of this.addedInitializers) writer.bytes(initializer, parts);
      }
    });
    for (const message of this.addedValueInfos) writer.bytes(valueInfo, message);
    for (const field of this.addedFields) writer.copy(field);
    return writer.parts();
  }

  /** Fields, tags included, that the message gets behind all others. */
  protected get addedFields(): readonly Uint8Array[] {
    return [];
  }

  private isRemoved(field: Field, nodeOf: Map<Field, Node>, writer: MessageWriter): boolean {
    const { layout } = this;
    switch (field.number) {
      case layout.node: {
        const node = nodeOf.get(field);
        if (!node) return false;
        for (const message of this.insertedBefore.get(node) ?? []) writer.bytes(layout.node, message);
        return this.removedNodes.has(node);
      }
      case layout.initializer:
        return (
          this.removedInitializers.size > 0 &&
          this.removedInitializers.has(new Tensor(field.value, 'initializer').name)
        );
      case layout.valueInfo:
        return this.removedValueInfos.size > 0 && this.removedValueInfos.has(readValueInfo(field.value).name);
      case layout.input:
        return (
          layout.stated &&
          this.removedInputs.size > 0 &&
          this.removedInputs.has(readValueInfo(field.value).name)
        );
      default:
        return false;
    }
  }
}

/** ValueInfoProto: name 1, type 2 { tensor_type 1 { elem_type 1, shape 2 { dim 1 { dim_value 1, dim_param 2 } } } }. */
function readValueInfo(message: Uint8Array): ValueInfo {
  const where = 'a value info';
  const fields = readFields(message, where);
  const child = (list: Field[], number: number): Field[] | undefined => {
    const field = list.find((f) => f.number === number);
    return field && readFields(field.value, where);
  };
  const nameField = fields.find((f) => f.number === 1);
  const type = child(fields, 2);
  const tensor = type && child(type, 1);
  const elem = tensor?.find((f) => f.number === 1);
  const shape = tensor && child(tensor, 2);
  const sizes = shape
    ?.filter((f) => f.number === 1)
    .map((dim) => {
      const parts = readFields(dim.value, where);
      const symbol = parts.find((f) => f.number === 2 && f.wire === WIRE.bytes);
      return integers(parts, 1)[0] ?? (symbol ? text(symbol) : '');
    });
  return {
    name: nameField ? text(nameField) : '',
    type: elem && integer(elem),
    dims: sizes?.map((size) => (typeof size === 'number' ? size : -1)),
    ...(sizes ? { shape: sizes } : {}),
  };
}
