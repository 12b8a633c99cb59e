/** The edits of one graph: what fused nodes replace goes, with all that nothing reads any more. */
import { encodeAttribute, encodeNode, type Node } from '../onnx/node.js';
import { DataType, encodeTensor } from '../onnx/tensor.js';
import { MessageWriter, readFields, text } from '../onnx/wire.js';
import { DOMAIN, OP } from './function_body.js';
import { encodeBuilt, type BuiltNode } from './fused_node.js';
import type { Renamed } from './generated_names.js';
import type { GraphIndex } from './graph_index.js';
import type { Names } from './names.js';
import type { Norm } from './norms/norm.js';
import { countOps, type OpCounts } from './op_counts.js';
import { nodesOf, type Site } from './site.js';

/** What passes a norm's output on, and goes where nobody reads what it makes. */
const PASSING = new Set(['Identity', 'Dropout', 'DynamicQuantizeLinear']);

export class GraphEdits {
  private readonly removed = new Set<Node>();
  private readonly added: { domain: string; opType: string }[] = [];
  /** Names that new nodes read. */
  private readonly newReads = new Set<string>();
  /** Nodes that stay and read another value in place of one: by node, the new name of each old one. */
  private readonly redirected = new Map<Node, Map<string, string>>();

  constructor(
    private readonly index: GraphIndex,
    private readonly names: Names,
  ) {}

  /** Takes out what a site's node replaces; from now on its inputs are read. */
  replace(site: Site, node: BuiltNode): void {
    const { norm } = site;
    for (const input of [...node.inputs, ...(norm?.sum?.terms ?? [])]) this.newReads.add(input);
    for (const member of nodesOf(site)) this.drop(member);
    if (!norm) return;
    // A norm keeps its input's shape: who asks for the shape of its output can ask the input, and the output need not exist.
    // What moves its rows moves the input's; of a sum, the whole.
    for (const reader of this.index.readers(norm.output)) {
      if (reader.is('Shape')) this.redirect(reader, norm.output, norm.input);
      else if (site.moved !== undefined) this.redirect(reader, norm.output, norm.sum?.output ?? norm.input);
    }
  }

  /** From now on a node reads another value where it read `from`. */
  private redirect(reader: Node, from: string, to: string): void {
    if (this.removed.has(reader)) return;
    const names = this.redirected.get(reader) ?? new Map<string, string>();
    this.redirected.set(reader, names.set(from, to));
    this.newReads.add(to);
  }

  /** Does anything still read the norm's output? What only passes it on, to nobody, is taken out. */
  keepNorm({ norm }: Site): boolean {
    if (!norm) return false;
    const passing = new Set<Node>();
    const values = [norm.output];
    for (const value of values) {
      for (const reader of this.index.readers(value)) {
        if (this.removed.has(reader) || !PASSING.has(reader.opType)) continue;
        if (passing.has(reader)) continue;
        passing.add(reader);
        for (const output of reader.outputs) if (output !== '') values.push(output);
      }
    }
    // Backwards: one is dead once those behind it are.
    for (const node of [...passing].reverse())
      if (!node.outputs.some((name) => name !== '' && this.isRead(name))) this.drop(node);
    return this.isRead(norm.output);
  }

  /** Gives an initialiser another name. */
  rename({ tensor, name, readers }: Renamed): void {
    const { graph } = this.index.model;
    if (!this.isRead(tensor.name)) return;
    graph.addInitializer(encodeTensor(name, tensor.type, tensor.dims, tensor.bytes()));
    for (const reader of readers) this.redirect(reader, tensor.name, name); // not those that are gone
    graph.removeInitializer(tensor.name);
    graph.removeValueInfo(tensor.name);
  }

  private drop(node: Node): void {
    this.index.model.graph.removeNode(node);
    this.removed.add(node);
  }

  /** Is a value a graph output, or read by a node that stays or is new? */
  private isRead(name: string): boolean {
    return (
      this.newReads.has(name) ||
      this.index.isGraphOutput(name) ||
      this.index
        .readers(name)
        .some((reader) => !this.removed.has(reader) && !this.redirected.get(reader)?.has(name))
    );
  }

  /** Puts a built node where the norm ended, or where the first projection stood. `normSlot`: the function has the output `norm`, used or not. */
  insert({ norm, projections, moved }: Site, node: BuiltNode, normSlot: boolean, overload: string): void {
    const { graph } = this.index.model;
    const start = norm && (this.index.producers.get(norm.output) ?? norm.node);
    const place = moved === undefined && start ? start : projections[0]?.nodes[0];
    if (!place) throw new TypeError('a site without nodes');
    const { emitNorm } = node.report;
    for (const parts of node.initializers) graph.addInitializer(parts);
    const after: Uint8Array[] = [];
    const results = projections.flatMap((p) => {
      if (p.pieces) return p.pieces.map((piece) => piece.output);
      if (!p.flattened) return p.output;
      // The product had its leading dimensions joined: the op keeps them, so they are joined here.
      const value = this.names.unique(`${p.output}/${OP}`);
      const shape = this.names.unique(`${node.name}.shape`);
      const data = new BigInt64Array([-1n, BigInt(p.n)]);
      graph.addInitializer(encodeTensor(shape, DataType.int64, [2], new Uint8Array(data.buffer)));
      const name = this.names.unique(`${node.name}/Reshape`);
      after.push(encodeNode({ opType: 'Reshape', name, inputs: [value, shape], outputs: [p.output] }));
      this.added.push({ domain: '', opType: 'Reshape' });
      return value;
    });
    const [first = '', ...further] = results;
    const y = first === '' ? this.names.unique(`${node.name}.y`) : first; // the op's first output always has a name
    const outputs =
      normSlot || further.length > 0 ? [y, norm && emitNorm ? norm.output : '', ...further] : [y];
    // Where the input's rank is not known, the op cannot say its outputs' type: see ops/shape_inference.cc.
    for (const output of outputs) if (output !== '') graph.addType(output, node.variant.type);
    const message = encodeBuilt(node, outputs, overload);
    if (norm && emitNorm) this.newReads.add(norm.output);
    if (norm?.sum)
      for (const bytes of this.sumOf(norm.sum, node, moved !== undefined))
        graph.insertNode(start ?? place, bytes);
    for (const bytes of [message, ...after]) graph.insertNode(place, bytes);
    this.added.push({ domain: DOMAIN, opType: OP });
  }

  /**
   * NodeProtos that add terms up to the node's input. Three and more terms of a 16-bit type are added in float32 and rounded
   * once, as ONNX Runtime's kernels do on the CPU; of two, one Add in the type itself does the same.
   */
  private sumOf({ terms, output }: NonNullable<Norm['sum']>, node: BuiltNode, moved: boolean): Uint8Array[] {
    const { type } = node.variant;
    const sum = moved ? output : (node.inputs[0] ?? '');
    const messages: Uint8Array[] = [];
    const emit = (opType: string, inputs: string[], output: string, to?: number): string => {
      const attributes = to === undefined ? [] : [encodeAttribute('to', { integer: to })];
      const name = this.names.unique(`${node.name}/${opType}`);
      messages.push(encodeNode({ opType, name, inputs, outputs: [output], attributes }));
      this.added.push({ domain: '', opType });
      return output;
    };
    const fresh = (): string => this.names.unique(`${sum}/${OP}`);
    const wide = type !== DataType.float && terms.length > 2;
    const addends = wide ? terms.map((term) => emit('Cast', [term], fresh(), DataType.float)) : terms;
    const total = addends.reduce((left, right, i) =>
      emit('Add', [left, right], i === addends.length - 1 && !wide ? sum : fresh()),
    );
    if (wide) emit('Cast', [total], sum, type);
    return messages;
  }

  /** Removes what only the replaced nodes needed: nodes without readers, their initialisers, value infos of vanished names. */
  clean(): void {
    const { graph } = this.index.model;
    const queue = [...new Set([...this.removed].flatMap((node) => node.inputs))];
    while (queue.length > 0) {
      const name = queue.pop() ?? '';
      if (name === '' || this.isRead(name)) continue;
      const producer = this.index.producers.get(name);
      if (producer && !this.removed.has(producer) && !this.redirected.has(producer)) {
        if (producer.outputs.some((output) => output !== '' && this.isRead(output))) continue;
        this.drop(producer);
        for (const input of producer.inputs) queue.push(input);
      } else if (!producer && graph.initializers.has(name) && !this.index.isOverridable(name)) {
        graph.removeInitializer(name);
        if (this.index.isGraphInput(name)) graph.removeInput(name);
      }
    }
    for (const node of this.removed) {
      for (const name of node.outputs) if (!this.isRead(name)) graph.removeValueInfo(name);
    }
  }

  /** Writes the nodes that read other values now. */
  writeRedirected(): void {
    const { graph } = this.index.model;
    for (const [node, names] of this.redirected) {
      const writer = new MessageWriter();
      for (const field of readFields(node.message, node.label)) {
        const name = field.number === 1 ? names.get(text(field)) : undefined;
        if (name === undefined) writer.copy(field.span);
        else writer.string(1, name);
      }
      graph.insertNode(node, writer.finish());
      graph.removeNode(node);
    }
  }

  countOps(before: OpCounts): OpCounts {
    return countOps(this.added, countOps(this.removed, before, -1));
  }
}
