/** Who produces and who reads each value of a graph, and what is known of its type. */
import { QkvGemmError } from '../errors.js';
import { Graph } from '../onnx/graph.js';
import type { Model } from '../onnx/model.js';
import type { Node } from '../onnx/node.js';
import { DataType, type DataSource, type Tensor } from '../onnx/tensor.js';
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
    'MatMulNBits DynamicQuantizeMatMul FusedMatMul TransposeMatMul FusedMatMulActivation FusedGemm GemmFastGelu ' +
    'Gelu FastGelu BiasGelu QuickGelu BiasSplitGelu BiasAdd ' +
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

/** Where a graph stands in a model. */
export interface Place {
  graph: Graph;
  /** Version of ONNX's own operators. */
  opset: number;
  /** Names the graph in reports: `then_branch of If 'choose'`, `function com.example:Block`; the model's own has none. */
  scope?: string | undefined;
  /** The graph around it, whose values can be read here. */
  parent?: GraphIndex | undefined;
  /** It is a function's body, or lies in one. */
  inFunction?: boolean;
  /** What the calls of a function give for its inputs. */
  callers?: (input: number) => readonly { index: GraphIndex; value: string }[];
}

export class GraphIndex {
  readonly producers = new Map<string, Node>();
  readonly graph: Graph;
  readonly opset: number;
  readonly scope: string | undefined;
  readonly parent: GraphIndex | undefined;
  readonly inFunction: boolean;
  /** Nodes that hold this graph, or call it as a function. */
  readonly users: { index: GraphIndex; node: Node }[] = [];
  /** By node: the graphs that it holds, and the functions that it may call. */
  readonly within = new Map<Node, GraphIndex[]>();
  /** Where its nodes stand among all of the model. */
  readonly ordinals = new Map<Node, number>();
  private readonly readersOf = new Map<string, Node[]>();
  private readonly positions = new Map<Node, number>();
  private readonly outputNames: Set<string>;
  private readonly inputPositions: Map<string, number>;
  private readonly agreed = new Map<string, readonly number[] | undefined>();
  private readonly types = new Map<string, number | undefined>();
  private readonly callers: NonNullable<Place['callers']>;
  private constants: Set<string> | undefined;

  /**
   * @param source reads external data of small constants; without it they are an error.
   * @param place a graph of the model; default: the model's own.
   */
  constructor(
    readonly model: Model,
    readonly source?: DataSource,
    place: Place = { graph: model.graph, opset: model.opset },
  ) {
    const { graph } = place;
    this.graph = graph;
    this.opset = place.opset;
    this.scope = place.scope;
    this.parent = place.parent;
    this.inFunction = place.inFunction ?? false;
    this.callers = place.callers ?? (() => []);
    this.outputNames = new Set(graph.outputs.map((output) => output.name));
    this.inputPositions = new Map(graph.inputs.map((input, i) => [input.name, i]));
    const what = place.scope === undefined ? 'a graph input' : `an input of the ${place.scope}`;
    graph.nodes.forEach((node, position) => {
      this.positions.set(node, position);
      for (const output of node.outputs) {
        if (output === '') continue;
        const other = this.producers.get(output);
        if (other || this.inputPositions.has(output) || graph.initializers.has(output)) {
          throw new QkvGemmError(
            'INVALID_MODEL',
            `Value '${output}' is produced twice: by ${other ? `node '${other.label}'` : graph.initializers.has(output) ? 'an initialiser' : what} and by node '${node.label}'.`,
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

  /** A node of this graph holds another, or calls it. */
  enter(node: Node, inner: GraphIndex): void {
    this.within.set(node, [...(this.within.get(node) ?? []), inner]);
    inner.users.push({ index: this, node });
  }

  /** Is a value one of this graph's own, and not of a graph around it? */
  defines(name: string): boolean {
    return (
      this.producers.has(name) ||
      this.inputPositions.has(name) ||
      this.graph.initializers.has(name) ||
      this.graph.sparseInitializers.has(name)
    );
  }

  /** The graph whose value a name means here: this one, or the nearest around it that has the name. */
  home(name: string): GraphIndex {
    return this.definerOf(name) ?? this;
  }

  private definerOf(name: string): GraphIndex | undefined {
    return this.defines(name) ? this : this.parent?.definerOf(name);
  }

  /** An initialiser of this graph or of one around it. */
  initializer(name: string): Tensor | undefined {
    return this.home(name).graph.initializers.get(name);
  }

  /** Nodes that read a value, each once, in graph order. */
  readers(name: string): readonly Node[] {
    return this.readersOf.get(name) ?? [];
  }

  isGraphOutput(name: string): boolean {
    return this.outputNames.has(name);
  }

  isGraphInput(name: string): boolean {
    return this.inputPositions.has(name);
  }

  /** From IR version 4 on, an initialiser that is also a graph input is only its default: callers may feed another. */
  isOverridable(name: string): boolean {
    const newer = this.model.irVersion >= 4 || this.parent !== undefined;
    return newer && this.isGraphInput(name) && this.graph.initializers.has(name);
  }

  /** Does a value depend on constants alone, whatever is computed from them? Wider than what `findConstant` can read. */
  isConstant(name: string): boolean {
    const home = this.home(name);
    home.constants ??= home.constantValues();
    return home.constants.has(name);
  }

  private constantValues(): Set<string> {
    const { graph } = this;
    const constants = new Set(graph.sparseInitializers);
    for (const name of graph.initializers.keys()) if (!this.isOverridable(name)) constants.add(name);
    for (const node of graph.nodes) {
      const inputs = node.inputs.filter((name) => name !== '');
      const known = (name: string): boolean =>
        constants.has(name) || (!this.defines(name) && this.parent?.isConstant(name) === true);
      if (!inputs.every(known)) continue;
      // Other nodes without inputs draw random numbers; what has a body may read the graph's values in it.
      if (inputs.length === 0 ? !node.is('Constant') : hasBodyOrChance(node)) continue;
      for (const output of node.outputs) constants.add(output);
    }
    constants.delete('');
    return constants;
  }

  /** Shape that the graph states for a value, or a function's calls agree on; -1 for a dimension without a size. */
  dimsOf(name: string): readonly number[] | undefined {
    const home = this.home(name);
    if (home !== this) return home.dimsOf(name);
    const stated = this.graph.valueInfos.get(name)?.dims;
    const position = this.inputPositions.get(name);
    if (stated || position === undefined) return stated;
    return this.graph.inputs[position]?.dims ?? this.agreedDims(name, position);
  }

  /** What the calls of a function give for one of its inputs. */
  argumentsFor(name: string): readonly { index: GraphIndex; value: string }[] {
    const position = this.inputPositions.get(name);
    return position === undefined ? [] : this.callers(position);
  }

  /** Dimensions in which all calls of a function agree; -1 where they do not. */
  private agreedDims(name: string, position: number): readonly number[] | undefined {
    if (this.agreed.has(name)) return this.agreed.get(name);
    const [first, ...others] = this.callers(position).map(({ index, value }) => index.dimsOf(value));
    const dims = others.every((other) => other?.length === first?.length)
      ? first?.map((dim, axis) => (others.every((other) => other?.[axis] === dim) ? dim : -1))
      : undefined;
    this.agreed.set(name, dims);
    return dims;
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
    const home = this.home(name);
    if (home !== this) return home.typeOf(name, depth);
    if (this.types.has(name)) return this.types.get(name);
    if (depth > MAX_TYPE_DEPTH) return undefined;
    const { graph } = this;
    let type =
      graph.initializers.get(name)?.type ?? this.inputType(name, depth) ?? graph.valueInfos.get(name)?.type;
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

  /** As the graph states it, or as all calls of a function give it. */
  private inputType(name: string, depth: number): number | undefined {
    const position = this.inputPositions.get(name);
    if (position === undefined) return undefined;
    const stated = this.graph.inputs[position]?.type;
    if (stated !== undefined) return stated;
    const [first, ...others] = this.callers(position).map(({ index, value }) =>
      index.typeOf(value, depth + 1),
    );
    return others.every((type) => type === first) ? first : undefined;
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
