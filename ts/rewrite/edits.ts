/** The edits of one graph: what fused nodes replace goes, with all that nothing reads any more. */
import { encodeNode, type Node } from '../onnx/node.js';
import { DataType, encodeTensor } from '../onnx/tensor.js';
import { MessageWriter, readFields, text } from '../onnx/wire.js';
import { DOMAIN, OP } from './function_body.js';
import { encodeBuilt, type BuiltNode } from './fused_node.js';
import type { GraphIndex } from './graph_index.js';
import type { Names } from './names.js';
import { countOps, type OpCounts } from './op_counts.js';
import type { Site } from './sites.js';

/** What passes a norm's output on, and goes where nobody reads what it makes. */
const PASSING = new Set(['Identity', 'Dropout', 'DynamicQuantizeLinear']);

export class GraphEdits {
  private readonly removed = new Set<Node>();
  private readonly added: { domain: string; opType: string }[] = [];
  /** Names that new nodes read. */
  private readonly newReads = new Set<string>();
  /** Readers that now read something else: Shape nodes of a norm's output. */
  private readonly redirected = new Set<Node>();

  constructor(
    private readonly index: GraphIndex,
    private readonly names: Names,
  ) {}

  /** Takes out what a site's node replaces; from now on its inputs are read. */
  replace({ norm, projections }: Site, node: BuiltNode): void {
    for (const input of node.inputs) this.newReads.add(input);
    for (const member of [...norm.nodes, ...projections.flatMap((p) => p.nodes)]) {
      this.drop(member);
    }
    this.redirectShapes(norm.output, norm.input);
  }

  /** Does anything still read the norm's output? What only passes it on, to nobody, is taken out. */
  keepNorm({ norm }: Site): boolean {
    const passing = new Set<Node>();
    const values = [norm.output];
    for (const value of values) {
      for (const reader of this.index.readers(value)) {
        if (this.removed.has(reader) || !PASSING.has(reader.opType)) continue;
        if (passing.has(reader)) continue;
        passing.add(reader);
        values.push(...reader.outputs.filter((output) => output !== ''));
      }
    }
    // Backwards: one is dead once those behind it are.
    for (const node of [...passing].reverse())
      if (!node.outputs.some((name) => name !== '' && this.isRead(name))) this.drop(node);
    return this.isRead(norm.output);
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
      this.index.readers(name).some((reader) => !this.removed.has(reader) && !this.redirected.has(reader))
    );
  }

  /** Puts a built node where the norm ended. `normSlot`: the function has the output `norm`, used or not. */
  insert({ norm, projections }: Site, node: BuiltNode, normSlot: boolean, overload: string): void {
    const { graph } = this.index.model;
    const last = this.index.producers.get(norm.output) ?? norm.node;
    const { emitNorm } = node.report;
    for (const parts of node.initializers) graph.addInitializer(parts);
    const after: Uint8Array[] = [];
    const results = projections.map((p) => {
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
    const [y = '', ...further] = results;
    const outputs = normSlot || further.length > 0 ? [y, emitNorm ? norm.output : '', ...further] : [y];
    // Where the input's rank is not known, the op cannot say its outputs' type: see ops/shape_inference.cc.
    for (const output of outputs) if (output !== '') graph.addType(output, node.variant.type);
    const message = encodeBuilt(node, outputs, overload);
    if (emitNorm) this.newReads.add(norm.output);
    for (const bytes of [message, ...after]) graph.insertNode(last, bytes);
    this.added.push({ domain: DOMAIN, opType: OP });
  }

  /** A norm keeps its input's shape: who asks for the shape of its output can ask the input, and the output need not exist. */
  private redirectShapes(output: string, input: string): void {
    const { graph } = this.index.model;
    for (const reader of this.index.readers(output)) {
      if (!reader.is('Shape') || this.removed.has(reader) || this.redirected.has(reader)) continue;
      const writer = new MessageWriter();
      for (const field of readFields(reader.message, reader.label)) {
        if (field.number === 1 && text(field) === output) writer.string(1, input);
        else writer.copy(field.span);
      }
      graph.insertNode(reader, writer.finish());
      graph.removeNode(reader);
      this.redirected.add(reader);
      this.newReads.add(input);
    }
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
        queue.push(...producer.inputs);
      } else if (!producer && graph.initializers.has(name) && !this.index.isOverridable(name)) {
        graph.removeInitializer(name);
        if (this.index.isGraphInput(name)) graph.removeInput(name);
      }
    }
    for (const node of this.removed) {
      for (const name of node.outputs) if (!this.isRead(name)) graph.removeValueInfo(name);
    }
  }

  countOps(before: OpCounts): OpCounts {
    return countOps(this.added, countOps(this.removed, before, -1));
  }
}
