/** The rewrite: each site becomes one com.deepspeed.QKVGemm node, with a function body beside it. */
import { QkvGemmError } from '../errors.js';
import { Model } from '../onnx/model.js';
import { encodeAttribute, encodeNode, type Node } from '../onnx/node.js';
import { DataType, encodeTensor, type DataSource } from '../onnx/tensor.js';
import { concat, MessageWriter, readFields, text } from '../onnx/wire.js';
import { checkOptions } from '../options.js';
import { isOlder } from '../session/addon.js';
import { BFLOAT16_OPSET, DOMAIN, OP, planFunctions, encodeVector, type Variant } from './function_body.js';
import { GraphIndex } from './graph_index.js';
import { fail } from './match.js';
import type { FuseOptions } from './options.js';
import type { FusedSite, FuseReport, Refusal, WeightType } from './report.js';
import { findSites, refusal, type Site } from './sites.js';
import { assembleWeights, joinBiases, storedName, vectorOperand } from './weights/assemble.js';

export interface FusedModel {
  /** The model's bytes, in parts that refer to the input where nothing changed. */
  parts: Uint8Array[];
  report: FuseReport;
}

const DTYPES = ['keep', 'fp16', 'bf16', 'int8'] as const;
const WEIGHT_TYPES: Record<number, WeightType> = {
  [DataType.float]: 'float32',
  [DataType.float16]: 'float16',
  [DataType.bfloat16]: 'bfloat16',
  [DataType.int8]: 'int8',
};

/**
 * Rewrites a model given as bytes.
 *
 * @param source reads external data; without it a model whose fused weights are external is an error.
 * @throws QkvGemmError `INVALID_MODEL`, `UNSUPPORTED_MODEL`, `EXTERNAL_DATA`, `INVALID_ARGUMENT`.
 */
export function fuseModel(bytes: Uint8Array, options: FuseOptions = {}, source?: DataSource): FusedModel {
  checkOptions('fuse', options, ['dtype', 'fallback']);
  const dtype = options.dtype ?? 'keep';
  if (!DTYPES.includes(dtype)) {
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `fuse: dtype is '${String(dtype)}', expected one of ${DTYPES.join(', ')}.`,
    );
  }
  const model = new Model(bytes);
  const index = new GraphIndex(model, source);
  const opsBefore = countOps(model.graph.nodes.map((node) => [node.domain, node.opType]));
  const { sites, refused } = findSites(index);
  const held = model.functions.includes(`${DOMAIN}:${OP}`)
    ? 'function'
    : opsBefore[opName(DOMAIN, OP)]
      ? 'node'
      : '';
  // A body that is added would be taken for nodes that are there already, whatever their form.
  if (sites.length > 0 && held !== '' && !(held === 'node' && options.fallback === false)) {
    throw new QkvGemmError(
      'UNSUPPORTED_MODEL',
      `The model already holds the ${held} ${DOMAIN}:${OP}: it has been rewritten before. Rewrite the original instead.`,
    );
  }
  const rewrite = new Rewrite(index, dtype, options.fallback !== false, source);
  const built: { site: Site; node: BuiltNode }[] = [];
  for (const site of sites) {
    const node = rewrite.build(site);
    if ('reason' in node) refused.push(node);
    else built.push({ site, node });
  }
  for (const { site } of built) rewrite.remove(site);
  for (const { site, node } of built) node.report.emitNorm = rewrite.keepNorm(site);
  // One signature for all nodes where that is possible: the output `norm` is there for all or for none.
  const norm = built.some(({ node }) => node.report.emitNorm);
  const plan = planFunctions(
    built.map(({ node }) => ({ ...node.variant, norm })),
    model.opset,
  );
  built.forEach(({ site, node }, i) =>
    rewrite.insert(site, node, norm, options.fallback === false ? '' : (plan.overloads[i] ?? '')),
  );
  const fused = built.map(({ node }) => node.report);
  if (fused.length > 0) {
    rewrite.clean();
    model.addOpset(DOMAIN, 1);
    if (options.fallback !== false) {
      for (const { message } of plan.functions) model.addFunction(message);
    }
    // Version 4 is the first in which an initialiser, such as the new weights, need not be a graph input.
    raiseIrVersion(model, options.fallback === false ? 4 : plan.irVersion);
  }
  const parts = model.encode();
  return {
    parts,
    report: {
      fused,
      refused,
      opsBefore,
      opsAfter: rewrite.countOps(opsBefore),
      bytesBefore: bytes.length,
      bytesAfter: parts.reduce((sum, part) => sum + part.length, 0),
      requires: {
        irVersion: model.resultingIrVersion,
        onnxruntime: oldestRuntime(
          built.map(({ node }) => node),
          options.fallback === false ? '1.22.0' : plan.onnxruntime,
        ),
      },
      functions:
        fused.length === 0 || options.fallback === false
          ? []
          : plan.functions.map(({ overload }) => `${DOMAIN}:${OP}${overload ? `:${overload}` : ''}`),
    },
  };
}

/**
 * ONNX Runtime before this reads the type of an absent input that others follow before it calls a custom op's shape
 * inference, and crashes where the library is registered.
 */
const GAPS_NEED = '1.24.1';

function oldestRuntime(nodes: readonly BuiltNode[], otherwise: string): string {
  if (nodes.length === 0) return 'any';
  return nodes.some(({ inputs }) => inputs.includes('')) && isOlder(otherwise, GAPS_NEED)
    ? GAPS_NEED
    : otherwise;
}

/** From IR version 4 on an initialiser among the graph's inputs is one that callers may override; before, it had to be there. */
function raiseIrVersion(model: Model, version: number): void {
  if (model.irVersion < 4 && version >= 4) {
    for (const input of model.graph.inputs)
      if (model.graph.initializers.has(input.name)) model.graph.removeInput(input.name);
  }
  model.requireIrVersion(version);
}

function opName(domain: string, opType: string): string {
  return domain === '' ? opType : `${domain}.${opType}`;
}

function countOps(ops: Iterable<readonly [string, string]>): Record<string, number> {
  const counts = new Map<string, number>();
  for (const [domain, opType] of ops)
    counts.set(opName(domain, opType), (counts.get(opName(domain, opType)) ?? 0) + 1);
  return Object.fromEntries([...counts].sort(([a], [b]) => (a < b ? -1 : 1)));
}

/** A fused node before it is put into the graph. */
interface BuiltNode {
  name: string;
  inputs: string[];
  transposed: boolean;
  variant: Omit<Variant, 'norm'>;
  report: FusedSite;
  initializers: Uint8Array[][];
}

/** The edits of one model, and the names that are taken in it. */
class Rewrite {
  private readonly names = new Set<string>();
  private readonly removed = new Set<Node>();
  private readonly added: [string, string][] = [];
  /** Names that new nodes read. */
  private readonly newReads = new Set<string>();
  /** Readers that now read something else: Shape nodes of a norm's output. */
  private readonly redirected = new Set<Node>();

  constructor(
    private readonly index: GraphIndex,
    private readonly dtype: NonNullable<FuseOptions['dtype']>,
    private readonly fallback: boolean,
    private readonly source: DataSource | undefined,
  ) {
    const { graph } = index.model;
    for (const node of graph.nodes) {
      for (const name of [node.name, ...node.inputs, ...node.outputs]) this.names.add(name);
      for (const attribute of node.attributes.values())
        for (const bytes of attribute.graphs) this.reserve(bytes, 0);
    }
    for (const list of [graph.inputs, graph.outputs]) for (const { name } of list) this.names.add(name);
    for (const names of [graph.initializers.keys(), graph.sparseInitializers, graph.valueInfos.keys()])
      for (const name of names) this.names.add(name);
  }

  /** Names inside subgraphs shadow or read outer ones: none of them is used anew. */
  private reserve(graph: Uint8Array, depth: number): void {
    if (depth > 32) return;
    for (const field of readFields(graph, 'a subgraph')) {
      if (field.number === 1) {
        for (const inner of readFields(field.value, 'a node')) {
          if (inner.number <= 3) this.names.add(text(inner));
          if (inner.number !== 5) continue;
          for (const part of readFields(inner.value, 'an attribute')) {
            if (part.number === 6 || part.number === 11) this.reserve(part.value, depth + 1);
          }
        }
      } else if ([5, 11, 12].includes(field.number)) {
        const name = readFields(field.value, 'a value').find(
          (f) => f.number === (field.number === 5 ? 8 : 1),
        );
        if (name) this.names.add(text(name));
      }
    }
  }

  private readonly unique = (base: string): string => {
    let name = base;
    for (let i = 1; this.names.has(name); i++) name = `${base}_${i}`;
    this.names.add(name);
    return name;
  };

  build(site: Site): BuiltNode | Refusal {
    const { norm, projections, type } = site;
    const name = this.unique(`${norm.node.name || norm.output}/${OP}`);
    const initializers: Uint8Array[][] = [];
    const add = (parts: Uint8Array[]): void => void initializers.push(parts);
    const weights = assembleWeights(this.index, projections, this.dtype, name, this.unique, this.source);
    if (!weights.ok) return refusal(norm.node, norm.rule, weights);
    const { opset } = this.index.model;
    if (this.fallback && opset < BFLOAT16_OPSET && weights.value.type === DataType.bfloat16) {
      const reason = `the model is in opset ${opset}, in which the function body cannot read bfloat16; ${BFLOAT16_OPSET} can`;
      return refusal(norm.node, norm.rule, fail(reason));
    }
    initializers.push(...weights.value.initializers);
    const k = projections[0]?.k ?? 0;
    const n = projections.reduce((sum, p) => sum + p.n, 0);
    const vector = (constant: typeof norm.gamma, what: string, fill: number): string =>
      vectorOperand(
        this.index,
        constant,
        { length: k, fill },
        type,
        () => this.unique(`${name}.${what}`),
        add,
        this.source,
      );
    const inputs = [norm.input, weights.value.weight, vector(norm.gamma, 'gamma', 1)];
    inputs.push(norm.normType === 'layer_norm' ? vector(norm.beta, 'beta', 0) : '');
    let bias = this.bias(site, name, add);
    if (bias === undefined && weights.value.scale !== undefined) {
      // No gap before the scale: see GAPS_NEED.
      bias = this.unique(`${name}.bias`);
      add([encodeVector(bias, new Float32Array(n))]);
    }
    inputs.push(bias ?? '', weights.value.scale ?? '');
    while (inputs.at(-1) === '') inputs.pop();
    for (const input of inputs) this.newReads.add(input);
    const splits = projections.map((p) => p.n);
    return {
      name,
      inputs,
      transposed: weights.value.transposed,
      initializers,
      variant: {
        normType: norm.normType,
        splits: splits.length,
        transposed: weights.value.transposed,
        type,
        weightType: weights.value.type,
        bias: bias !== undefined,
      },
      report: {
        node: name,
        rules: { norm: norm.rule, projection: [...new Set(projections.map((p) => p.rule))].join(', ') },
        replaced: [...norm.nodes, ...projections.flatMap((p) => p.nodes)].map((node) => node.label),
        normType: norm.normType,
        epsilon: norm.epsilon,
        k,
        n,
        splits,
        emitNorm: false,
        weightType: WEIGHT_TYPES[weights.value.type] ?? 'float32',
        ...(weights.value.sqnrDb === undefined ? {} : { weightSqnrDb: weights.value.sqnrDb }),
      },
    };
  }

  private bias(
    { projections, type }: Site,
    name: string,
    add: (parts: Uint8Array[]) => void,
  ): string | undefined {
    const [only] = projections;
    const existing = only?.bias && storedName(this.index, only.bias);
    if (projections.length === 1 && only?.bias && existing !== undefined && only.biasFactor === 1) {
      const { tensor } = only.bias;
      if (tensor.dims.length === 1 && (tensor.type === type || tensor.type === DataType.float))
        return existing;
    }
    const values = joinBiases(projections, this.source);
    if (!values) return undefined;
    const fresh = this.unique(`${name}.bias`);
    add([encodeVector(fresh, values)]);
    return fresh;
  }

  /** Takes out what a site's node replaces. */
  remove({ norm, projections }: Site): void {
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
        if (this.removed.has(reader) || !(reader.is('Identity') || reader.is('Dropout'))) continue;
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
      const value = this.unique(`${p.output}/${OP}`);
      const shape = this.unique(`${node.name}.shape`);
      const data = new BigInt64Array([-1n, BigInt(p.n)]);
      graph.addInitializer(encodeTensor(shape, DataType.int64, [2], new Uint8Array(data.buffer)));
      const name = this.unique(`${node.name}/Reshape`);
      after.push(encodeNode({ opType: 'Reshape', name, inputs: [value, shape], outputs: [p.output] }));
      this.added.push(['', 'Reshape']);
      return value;
    });
    const [y = '', ...further] = results;
    const outputs = normSlot || further.length > 0 ? [y, emitNorm ? norm.output : '', ...further] : [y];
    // Where the input's rank is not known, the op cannot say its outputs' type: see ops/shape_inference.cc.
    for (const output of outputs) if (output !== '') graph.addType(output, node.variant.type);
    const message = encodeNode({
      opType: OP,
      domain: DOMAIN,
      overload,
      name: node.name,
      doc: `${node.report.rules.norm} + ${node.report.rules.projection}`,
      inputs: node.inputs,
      outputs,
      attributes: [
        encodeAttribute('norm_type', { string: norm.normType }),
        encodeAttribute('epsilon', { float: norm.epsilon }),
        encodeAttribute('transposed', { integer: node.transposed ? 1 : 0 }),
        encodeAttribute('splits', { integers: node.report.splits }),
        encodeAttribute('emit_norm', { integer: emitNorm ? 1 : 0 }),
        encodeAttribute('activation_quant', { integer: 0 }),
      ],
    });
    if (emitNorm) this.newReads.add(norm.output);
    for (const bytes of [message, ...after]) graph.insertNode(last, bytes);
    this.added.push([DOMAIN, OP]);
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

  countOps(before: Record<string, number>): Record<string, number> {
    const counts = new Map(Object.entries(before));
    const change = (name: string, by: number): void => void counts.set(name, (counts.get(name) ?? 0) + by);
    for (const node of this.removed) change(opName(node.domain, node.opType), -1);
    for (const [domain, opType] of this.added) change(opName(domain, opType), 1);
    return Object.fromEntries(
      [...counts].filter(([, count]) => count > 0).sort(([a], [b]) => (a < b ? -1 : 1)),
    );
  }
}

/** The same, as one array. */
export function fuseBytes(
  bytes: Uint8Array,
  options: FuseOptions = {},
  source?: DataSource,
): { model: Uint8Array; report: FuseReport } {
  const { parts, report } = fuseModel(bytes, options, source);
  return { model: parts.length === 1 && parts[0] ? parts[0] : concat(parts), report };
}
