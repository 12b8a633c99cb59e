/** Who produces and who reads each value of a graph, and what is known of its type. */
import { QkvGemmError } from '../errors.js';
import { Graph } from '../onnx/graph.js';
import type { Model } from '../onnx/model.js';
import type { Node } from '../onnx/node.js';
import { DataType, type DataSource } from '../onnx/tensor.js';
import { MAX_NESTING } from './check_graph.js';

/** Ops whose first output has the element type of the input at this index; of norms, it is the scale's. */
const TYPE_OF_INPUT: Record<string, number> = {
  Where: 1,
  LayerNormalization: 1,
  RMSNormalization: 1,
  SimplifiedLayerNormalization: 1,
  DequantizeLinear: 1,
};
/** Likewise of com.microsoft's operators. */
const TYPE_OF_FIRST_INPUT_MICROSOFT = new Set(
  (
    'MatMulNBits DynamicQuantizeMatMul FusedMatMul FusedGemm Gelu FastGelu BiasGelu QuickGelu BiasSplitGelu BiasAdd ' +
    'SkipLayerNormalization SkipSimplifiedLayerNormalization Attention MultiHeadAttention GroupQueryAttention RotaryEmbedding'
  ).split(' '),
);
const TYPE_OF_FIRST_INPUT = new Set(
  (
    'Identity Add Sub Mul Div Pow Neg Sqrt Reciprocal Abs Exp Log Relu Gelu Erf Tanh Sigmoid Softmax LogSoftmax Clip Max Min ' +
    'Gather GatherElements GatherND Reshape Transpose Squeeze Unsqueeze Flatten Expand Tile Slice Split Concat Pad ' +
    'MatMul Gemm Conv ReduceMean ReduceSum ReduceMax Dropout ' +
    'BatchNormalization AveragePool MaxPool GlobalAveragePool HardSigmoid HardSwish LeakyRelu Einsum'
  ).split(' '),
);
const MAX_TYPE_DEPTH = 2000;

export class GraphIndex {
  readonly producers = new Map<string, Node>();
  private readonly readersOf = new Map<string, Node[]>();
  private readonly positions = new Map<Node, number>();
  private readonly outputNames: Set<string>;
  private readonly inputTypes: Map<string, number | undefined>;
  private readonly inputDims: Map<string, readonly number[] | undefined>;
  private readonly types = new Map<string, number | undefined>();
  private constants: Set<string> | undefined;

  /** @param source reads external data of small constants; without it they are an error. */
  constructor(
    readonly model: Model,
    readonly source?: DataSource,
  ) {
    const { graph } = model;
    this.outputNames = new Set(graph.outputs.map((output) => output.name));
    this.inputDims = new Map(graph.inputs.map((input) => [input.name, input.dims]));
    this.inputTypes = new Map(graph.inputs.map((input) => [input.name, input.type]));
    graph.nodes.forEach((node, position) => {
      this.positions.set(node, position);
      for (const output of node.outputs) {
        if (output === '') continue;
        const other = this.producers.get(output);
        if (other || this.inputTypes.has(output) || graph.initializers.has(output)) {
          throw new QkvGemmError(
            'INVALID_MODEL',
            `Value '${output}' is produced twice: by ${other ? `node '${other.label}'` : graph.initializers.has(output) ? 'an initialiser' : 'a graph input'} and by node '${node.label}'.`,
          );
        }
        this.producers.set(output, node);
      }
      const names = new Set(node.inputs);
      // A value that a subgraph reads from outside counts as read by the node that holds the subgraph.
      for (const bytes of node.graphs) collectNames(new Graph(bytes), names, 0);
      names.delete('');
      for (const name of names) {
        const list = this.readersOf.get(name);
        if (list) list.push(node);
        else this.readersOf.set(name, [node]);
      }
    });
  }

  /** Nodes that read a value, each once, in graph order. */
  readers(name: string): readonly Node[] {
    return this.readersOf.get(name) ?? [];
  }

  isGraphOutput(name: string): boolean {
    return this.outputNames.has(name);
  }

  isGraphInput(name: string): boolean {
    return this.inputTypes.has(name);
  }

  /** From IR version 4 on, an initialiser that is also a graph input is only its default: callers may feed another. */
  isOverridable(name: string): boolean {
    return this.model.irVersion >= 4 && this.isGraphInput(name) && this.model.graph.initializers.has(name);
  }

  /** Does a value depend on constants alone, whatever is computed from them? Wider than what `findConstant` can read. */
  isConstant(name: string): boolean {
    this.constants ??= this.constantValues();
    return this.constants.has(name);
  }

  private constantValues(): Set<string> {
    const { graph } = this.model;
    const constants = new Set(graph.sparseInitializers);
    for (const name of graph.initializers.keys()) if (!this.isOverridable(name)) constants.add(name);
    for (const node of graph.nodes) {
      const inputs = node.inputs.filter((name) => name !== '');
      if (!inputs.every((name) => constants.has(name))) continue;
      // Other nodes without inputs draw random numbers; what has a body may read the graph's values in it.
      if (inputs.length === 0 ? !node.is('Constant') : hasBodyOrChance(node)) continue;
      for (const output of node.outputs) constants.add(output);
    }
    constants.delete('');
    return constants;
  }

  /** Shape that the graph states for a value; -1 for a dimension without a size. */
  dimsOf(name: string): readonly number[] | undefined {
    const { graph } = this.model;
    return graph.valueInfos.get(name)?.dims ?? this.inputDims.get(name);
  }

  position(node: Node): number {
    return this.positions.get(node) ?? -1;
  }

  /** Element type that a Cast or CastLike gives; undefined of other nodes, and where it is not known. */
  castTo(node: Node | undefined): number | undefined {
    if (node?.is('Cast')) return node.integer('to', 0) || undefined;
    return node?.is('CastLike') ? this.typeOf(node.inputs[1] ?? '') : undefined;
  }

  /** Element type of a value (DataType), as far as the graph says or the ops on the way imply it. */
  typeOf(name: string, depth = 0): number | undefined {
    if (this.types.has(name)) return this.types.get(name);
    if (depth > MAX_TYPE_DEPTH) return undefined;
    const { graph } = this.model;
    let type =
      graph.initializers.get(name)?.type ?? this.inputTypes.get(name) ?? graph.valueInfos.get(name)?.type;
    const node = this.producers.get(name);
    if (type === undefined && node?.domain === '') {
      const first = TYPE_OF_INPUT[node.opType] ?? (TYPE_OF_FIRST_INPUT.has(node.opType) ? 0 : undefined);
      if (node.is('Cast')) type = this.castTo(node);
      else if (node.is('CastLike')) type = this.typeOf(node.inputs[1] ?? '', depth + 1);
      else if (node.is('Constant')) type = constantType(node);
      else if (first !== undefined && node.inputs[first]) type = this.typeOf(node.inputs[first], depth + 1);
    }
    if (type === undefined && node?.domain === 'com.microsoft' && node.inputs[0] !== undefined)
      if (TYPE_OF_FIRST_INPUT_MICROSOFT.has(node.opType)) type = this.typeOf(node.inputs[0], depth + 1);
    this.types.set(name, type);
    return type;
  }
}

function hasBodyOrChance(node: Node): boolean {
  return /^(Random|Multinomial|Bernoulli)/.test(node.opType) || node.graphs.length > 0;
}

function constantType(node: Node): number | undefined {
  const { attributes } = node;
  if (attributes.has('value_int') || attributes.has('value_ints')) return DataType.int64;
  if (attributes.has('value_float') || attributes.has('value_floats')) return DataType.float;
  return attributes.get('value')?.tensor?.type;
}

/** Names that a graph and the graphs inside it read: more than it captures, which errs on the safe side. */
function collectNames(graph: Graph, into: Set<string>, depth: number): void {
  if (depth > MAX_NESTING)
    throw new QkvGemmError('UNSUPPORTED_MODEL', `Subgraphs are nested deeper than ${MAX_NESTING} levels.`);
  for (const node of graph.nodes) {
    for (const input of node.inputs) into.add(input);
    for (const bytes of node.graphs) collectNames(new Graph(bytes), into, depth + 1);
  }
  for (const output of graph.outputs) into.add(output.name);
}
