/**
 * The edits of one graph: what fused nodes replace goes, with all that nothing reads any more, in it or in a graph that it
 * holds.
 */
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
import type { Scope } from './scopes.js';
import { nodesOf, type Site } from './site.js';

/** What passes a norm's output on, and goes where nobody reads what it makes. */
const PASSING = new Set(['Identity', 'Dropout', 'DynamicQuantizeLinear', 'Cast', 'CastLike']);

export class GraphEdits {
  private readonly removed = new Set<Node>();
  private readonly added: { domain: string; opType: string }[] = [];
  /** Names that new nodes read. */
  private readonly newReads = new Set<string>();
  /** Nodes that stay and read another value in place of one, or give theirs another name: by node, new names by old ones. */
  private readonly redirected = new Map<Node, Map<string, string>>();
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
    const { norm, moved } = site;
    for (const input of [...node.inputs, ...(norm?.sum?.terms ?? [])])
      if (input !== moved) this.newReads.add(input); // `keepNorm` says under which name that one is read
    for (const member of nodesOf(site)) this.drop(member);
    if (!norm) return;
    const same = new Set([norm.output]);
    for (const value of same) {
      for (const reader of this.index.readers(value)) {
        // A norm keeps its input's shape: who asks for the shape of its output can ask the input, and the output need not
        // exist.
        if (reader.is('Shape')) this.redirect(reader, value, norm.input);
        // What moves its rows moves the input's; of a sum, the whole.
        else if (moved !== undefined && value === norm.output)
          this.redirect(reader, value, norm.sum?.output ?? norm.input);
        if (reader.is('Identity')) same.add(reader.outputs[0] ?? '');
      }
    }
    for (const { inputs, outputs } of site.recast?.casts ?? []) {
      const [from = '', to = ''] = [inputs[0], outputs[0]];
      const rows = from === norm.output ? (norm.sum?.output ?? norm.input) : from;
      for (const reader of this.index.readers(to)) this.redirect(reader, to, rows);
    }
  }

  /** From now on a node reads another value where it read `from`. */
  private redirect(reader: Node, from: string, to: string): void {
    if (this.removed.has(reader)) return;
    this.nameIn(reader, from, to);
    this.newReads.add(to);
  }

  private nameIn(node: Node, from: string, to: string): void {
    const names = this.redirected.get(node) ?? new Map<string, string>();
    this.redirected.set(node, names.set(from, to));
  }

  /**
   * Does anything still read the norm's output, or that with its rows moved? What only passes it on, to nobody, is taken out.
   * The names of rows that are moved before the norm, and of what the node reads, are final then.
   */
  keepNorm({ norm, moved, recast, outside }: Site, node: BuiltNode): boolean {
    if (!norm) return false;
    const passing = new Set<Node>();
    const values = [norm.output, ...(moved === undefined ? [] : [moved])];
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
    if (moved !== undefined) return this.keepMoved(moved, recast, node);
    // What else reads a norm of a graph around reads it as before.
    return !outside && this.isRead(norm.output);
  }

  /** Others that read what the projections read get it from the node, normalised, under the same name. */
  private keepMoved(moved: string, recast: Site['recast'], node: BuiltNode): boolean {
    const producer = this.index.producers.get(moved);
    // They are the same before the norm.
    const shapes = this.index.readers(moved).filter((reader) => reader.is('Shape'));
    const kept = producer !== undefined && this.isRead(moved, shapes);
    if (kept) {
      const rows = this.names.unique(`${moved}/${OP}`);
      this.nameIn(producer, moved, rows);
      for (const reader of shapes) this.redirect(reader, moved, rows);
      node.inputs[0] = rows;
    }
    // What had 16 bits behind a Cast is in float32 now.
    for (const value of recast?.values ?? [])
      if (value !== moved || !kept) this.index.graph.removeValueInfo(value);
    this.newReads.add(node.inputs[0] ?? '');
    return kept;
  }

  /** Gives an initialiser another name. */
  rename({ tensor, name, readers }: Renamed): void {
    const { graph } = this.index;
    if (!this.isRead(tensor.name)) return;
    graph.addInitializer(encodeTensor(name, tensor.type, tensor.dims, tensor.bytes()));
    for (const reader of readers) this.redirect(reader, tensor.name, name); // not those that are gone
    graph.removeInitializer(tensor.name);
    graph.removeValueInfo(tensor.name);
  }

  private drop(node: Node): void {
    this.index.graph.removeNode(node);
    this.removed.add(node);
  }

  /** Is a value a graph output, or read by a node that stays or is new, here or in a graph that such a node holds? */
  private isRead(name: string, except: readonly Node[] = []): boolean {
    return (
      this.newReads.has(name) ||
      this.index.isGraphOutput(name) ||
      this.index
        .readers(name)
        .some(
          (reader) =>
            !this.removed.has(reader) &&
            !except.includes(reader) &&
            ((reader.inputs.includes(name) && !this.redirected.get(reader)?.has(name)) ||
              this.isReadWithin(reader, name)),
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

  /**
   * Puts a built node where the norm ended, where its rows have been moved, or where the first projection stood.
   *
   * @param normSlot the function has the output `norm`, used or not.
   */
  insert(site: Site, node: BuiltNode, normSlot: boolean, overload: string): void {
    const { norm, projections, moved } = site;
    const { graph } = this.index;
    const start = norm && !site.outside && (this.index.producers.get(norm.output) ?? norm.node);
    const place = moved === undefined ? start || projections[0]?.nodes[0] : this.index.readers(moved)[0];
    if (!place) throw new TypeError('a site without nodes');
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
    const cast = (output: string, to: number | undefined): string =>
      to === undefined || output === ''
        ? output
        : behind('Cast', output, [], [encodeAttribute('to', { integer: to })]);
    const results = projections.flatMap(({ pieces, output, n, flattened, narrowed }) => {
      const outputs = (pieces ?? [{ output }]).map((piece) => cast(piece.output, narrowed));
      if (pieces || !flattened) return outputs;
      // The product had its leading dimensions joined: the op keeps them, so they are joined here.
      const shape = this.names.unique(`${node.name}.shape`);
      const data = new BigInt64Array([-1n, BigInt(n)]);
      graph.addInitializer(encodeTensor(shape, DataType.int64, [2], new Uint8Array(data.buffer)));
      return behind('Reshape', outputs[0] ?? '', [shape]);
    });
    const normOutput = norm && node.report.emitNorm ? cast(moved ?? norm.output, site.recast?.to) : '';
    const [first = '', ...further] = results;
    const y = first === '' ? this.names.unique(`${node.name}.y`) : first; // the op's first output always has a name
    const absent = Array<string>(node.splits.length - results.length).fill('');
    const outputs = normSlot || node.splits.length > 1 ? [y, normOutput, ...further, ...absent] : [y];
    // Where the input's rank is not known, the op cannot say its outputs' type: see ops/shape_inference.cc.
    for (const output of outputs) if (output !== '') graph.addType(output, node.variant.type);
    const message = encodeBuilt(node, outputs, overload);
    if (normOutput !== '') this.newReads.add(normOutput);
    if (norm?.sum)
      for (const bytes of this.sumOf(norm.sum, node, moved !== undefined))
        graph.insertNode(start || place, bytes);
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
    for (const [node, names] of this.redirected) queue.push(...node.inputs.filter((name) => names.has(name)));
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

  /**
   * Writes the nodes that read other values now, puts the edits of inner graphs into the nodes that hold them, and imports
   * the op where a function has opsets of its own.
   */
  finish(): void {
    const { graph } = this.index;
    for (const [reader, names] of this.redirected) {
      if (this.removed.has(reader)) continue;
      graph.insertNode(reader, renamed(reader, names));
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

/** A node's message with other names for some of its inputs and outputs. */
function renamed(node: Node, names: ReadonlyMap<string, string>): Uint8Array {
  const writer = new MessageWriter();
  for (const field of readFields(node.message, node.label)) {
    const name = field.number === 1 || field.number === 2 ? names.get(text(field)) : undefined;
    if (name === undefined) writer.copy(field.span);
    else writer.string(field.number, name);
  }
  return writer.finish();
}
