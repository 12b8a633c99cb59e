/**
 * The edits of one graph: what fused nodes replace goes, with all that nothing reads any more, in it or in a graph that it
 * holds.
 */
import { encodeAttribute, encodeNode, type Node } from '../onnx/node.js';
import { DataType, encodeTensor } from '../onnx/tensor.js';
import { MessageWriter, readFields, text } from '../onnx/wire.js';
import { DOMAIN, OP } from './function_body.js';
import { encodeBuilt, type BuiltNode } from './fused_node.js';
import type { GraphIndex } from './graph_index.js';
import type { Names } from './names.js';
import { countOps, type OpCounts } from './op_counts.js';
import type { Scope } from './scopes.js';
import { nodesOf, type Site } from './site.js';

/** What passes a norm's output on, and goes where nobody reads what it makes. */
const PASSING = new Set(['Identity', 'Dropout', 'DynamicQuantizeLinear', 'Cast']);

export class GraphEdits {
  private readonly removed = new Set<Node>();
  private readonly added: { domain: string; opType: string }[] = [];
  /** Names that new nodes read. */
  private readonly newReads = new Set<string>();
  /** Readers that now read something else, Shape nodes of a norm's output: their new messages. */
  private readonly redirected = new Map<Node, Uint8Array>();
  private readonly index: GraphIndex;
  /** Edits of the graphs that nodes of this one hold, in the order of `Node.bodies`. */
  private readonly held = new Map<Node, GraphEdits[]>();

  /** @param parent the edits of the graph around this one, which have to be there first. */
  constructor(
    private readonly scope: Scope,
    private readonly names: Names,
    parent?: GraphEdits,
  ) {
    this.index = scope.index;
    const { holder } = scope;
    if (parent && holder) parent.held.set(holder, [...(parent.held.get(holder) ?? []), this]);
  }

  /** Takes out what a site's node replaces; from now on its inputs are read. */
  replace(site: Site, node: BuiltNode): void {
    const { norm } = site;
    for (const input of [...node.inputs, ...(norm?.sum?.terms ?? [])]) this.newReads.add(input);
    for (const member of nodesOf(site)) this.drop(member);
    if (!norm) return;
    const same = new Set([norm.output]);
    for (const value of same) {
      this.redirectShapes(value, norm.input);
      for (const reader of this.index.readers(value))
        if (reader.is('Identity')) same.add(reader.outputs[0] ?? '');
    }
  }

  /** Does anything still read the norm's output? What only passes it on, to nobody, is taken out. */
  keepNorm({ norm }: Site): boolean {
    if (!norm) return false;
    const passing = new Set<Node>();
    const values = [norm.output];
    for (const value of values) {
      for (const reader of this.index.readers(value)) {
        if (this.removed.has(reader) || reader.domain !== '' || !PASSING.has(reader.opType)) continue;
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

  private drop(node: Node): void {
    this.index.graph.removeNode(node);
    this.removed.add(node);
  }

  /** Is a value a graph output, or read by a node that stays or is new, here or in a graph that such a node holds? */
  private isRead(name: string): boolean {
    return (
      this.newReads.has(name) ||
      this.index.isGraphOutput(name) ||
      this.index
        .readers(name)
        .some(
          (reader) =>
            !this.removed.has(reader) &&
            !this.redirected.has(reader) &&
            (reader.inputs.includes(name) || this.isReadWithin(reader, name)),
        ) ||
      this.newReadsWithin(name)
    );
  }

  private isReadWithin(holder: Node, name: string): boolean {
    return (this.held.get(holder) ?? []).some((inner) => !inner.index.defines(name) && inner.isRead(name));
  }

  /** New nodes of inner graphs may read what none read before. */
  private newReadsWithin(name: string): boolean {
    for (const [holder, edits] of this.held)
      if (!this.removed.has(holder) && edits.some((inner) => inner.readsNewly(name))) return true;
    return false;
  }

  private readsNewly(name: string): boolean {
    return this.newReads.has(name) || this.newReadsWithin(name);
  }

  /** Puts a built node where the norm ended, or where the first projection stood. `normSlot`: the function has the output `norm`, used or not. */
  insert({ norm, projections }: Site, node: BuiltNode, normSlot: boolean, overload: string): void {
    const { graph } = this.index;
    const place = norm ? (this.index.producers.get(norm.output) ?? norm.node) : projections[0]?.nodes[0];
    if (!place) throw new TypeError('a site without nodes');
    const { emitNorm } = node.report;
    for (const { home, parts } of node.initializers) home.graph.addInitializer(parts);
    const after: Uint8Array[] = [];
    /** A node behind the new one that makes `output`; returns the name of what it reads. */
    const behind = (
      opType: string,
      output: string,
      inputs: string[],
      attributes: Uint8Array[] = [],
    ): string => {
      const value = this.names.unique(`${output}/${OP}`);
      const name = this.names.unique(`${node.name}/${opType}`);
      after.unshift(encodeNode({ opType, name, inputs: [value, ...inputs], outputs: [output], attributes }));
      this.added.push({ domain: '', opType });
      return value;
    };
    const results = projections.flatMap(({ pieces, output, n, flattened, narrowed }) => {
      const outputs = (pieces ?? [{ output }]).map((piece) => {
        if (narrowed === undefined || piece.output === '') return piece.output;
        return behind('Cast', piece.output, [], [encodeAttribute('to', { integer: narrowed })]);
      });
      if (pieces || !flattened) return outputs;
      // The product had its leading dimensions joined: the op keeps them, so they are joined here.
      const shape = this.names.unique(`${node.name}.shape`);
      const data = new BigInt64Array([-1n, BigInt(n)]);
      graph.addInitializer(encodeTensor(shape, DataType.int64, [2], new Uint8Array(data.buffer)));
      return behind('Reshape', outputs[0] ?? '', [shape]);
    });
    const [first = '', ...further] = results;
    const y = first === '' ? this.names.unique(`${node.name}.y`) : first; // the op's first output always has a name
    const outputs =
      normSlot || further.length > 0 ? [y, norm && emitNorm ? norm.output : '', ...further] : [y];
    // Where the input's rank is not known, the op cannot say its outputs' type: see ops/shape_inference.cc.
    for (const output of outputs) if (output !== '') graph.addType(output, node.variant.type);
    const message = encodeBuilt(node, outputs, overload);
    if (norm && emitNorm) this.newReads.add(norm.output);
    const before = norm?.sum ? this.sumOf(norm.sum.terms, node) : [];
    for (const bytes of [...before, message, ...after]) graph.insertNode(place, bytes);
    this.added.push({ domain: DOMAIN, opType: OP });
  }

  /**
   * NodeProtos that add terms up to the node's input. Three and more terms of a 16-bit type are added in float32 and rounded
   * once, as ONNX Runtime's kernels do on the CPU; of two, one Add in the type itself does the same.
   */
  private sumOf(terms: readonly string[], node: BuiltNode): Uint8Array[] {
    const { type } = node.variant;
    const [sum = ''] = node.inputs;
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

  /** A norm keeps its input's shape: who asks for the shape of its output can ask the input, and the output need not exist. */
  private redirectShapes(output: string, input: string): void {
    if (output === '') return;
    for (const reader of this.index.readers(output)) {
      if (!reader.is('Shape') || this.removed.has(reader) || this.redirected.has(reader)) continue;
      const writer = new MessageWriter();
      for (const field of readFields(reader.message, reader.label)) {
        if (field.number === 1 && text(field) === output) writer.string(1, input);
        else writer.copy(field.span);
      }
      this.redirected.set(reader, writer.finish());
      this.newReads.add(input);
    }
  }

  /**
   * Removes what only the replaced nodes needed: nodes without readers, their initialisers, value infos of vanished names. In
   * inner graphs first: what they no longer read may go in this one.
   *
   * @returns names of outer values that nodes removed here read.
   */
  clean(): string[] {
    const { graph } = this.index;
    const queue = [...this.held.values()].flat().flatMap((inner) => inner.clean());
    queue.push(...[...this.removed].flatMap((node) => node.inputs));
    const freed = new Set<string>();
    for (let name = queue.pop(); name !== undefined; name = queue.pop()) {
      if (name === '' || this.isRead(name)) continue;
      if (!this.index.defines(name)) freed.add(name);
      const producer = this.index.producers.get(name);
      if (producer && !this.removed.has(producer)) {
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
    return [...freed];
  }

  /** Puts the edits of inner graphs into the nodes that hold them, and imports the op where a function has opsets of its own. */
  finish(): void {
    const { graph } = this.index;
    for (const [reader, message] of this.redirected) {
      if (this.removed.has(reader)) continue;
      graph.insertNode(reader, message);
      graph.removeNode(reader);
    }
    for (const [holder, edits] of this.held) {
      if (this.removed.has(holder)) continue;
      for (const inner of edits) inner.finish();
      if (!edits.some(({ index }) => index.graph.changed)) continue;
      const graphs = edits.map(({ index }) => (index.graph.changed ? index.graph.encode() : undefined));
      graph.insertNode(holder, holder.withGraphs(graphs));
      graph.removeNode(holder);
    }
    if (this.scope.body && graph.changed) this.scope.body.addOpset(DOMAIN, 1);
  }

  countOps(before: OpCounts): OpCounts {
    const constants = Array.from({ length: this.index.graph.addedConstants }, () => ({
      domain: '',
      opType: 'Constant',
    }));
    return countOps(constants, countOps(this.added, countOps(this.removed, before, -1)));
  }
}
