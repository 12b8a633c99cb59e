/**
 * What a graph must be before anything is looked for in it: every value that is read has one producer, and no node waits for
 * its own result. Rules follow values through the graph and rely on both.
 *
 * Source: ONNX IR specification, "Graphs" and "Names Within a Graph".
 */
import { QkvGemmError } from '../errors.js';
import type { FunctionBody } from '../onnx/function.js';
import { Graph } from '../onnx/graph.js';
import type { Node } from '../onnx/node.js';

/** Graphs within graphs, as deep as is followed. */
export const MAX_NESTING = 32;

/** @throws QkvGemmError `INVALID_MODEL` with the value and the node; `UNSUPPORTED_MODEL` for graphs nested too deep. */
export function checkGraph(graph: Graph): void {
  checkInputs(graph, 'graph inputs');
  checkScope(graph, new Set(), 0, "The graph's output");
}

/** The same for the body of a model-local function, which reads nothing of the graphs that call it. */
export function checkFunction(body: FunctionBody): void {
  checkInputs(body, `inputs of the function '${body.id}'`);
  checkScope(body, new Set(), 0, `An output of the function '${body.id}'`);
}

function checkInputs(graph: Graph, what: string): void {
  const inputs = new Set<string>();
  for (const { name } of graph.inputs) {
    if (inputs.has(name))
      throw new QkvGemmError(
        'INVALID_MODEL',
        `Two ${what} are named '${name}'; names of values must be unique.`,
      );
    inputs.add(name);
  }
}

function definedIn(graph: Graph): Set<string> {
  const names = new Set<string>();
  for (const { name } of graph.inputs) names.add(name);
  for (const name of graph.initializers.keys()) names.add(name);
  for (const name of graph.sparseInitializers) names.add(name);
  for (const node of graph.nodes) for (const name of node.outputs) names.add(name);
  names.delete('');
  return names;
}

/**
 * Checks that all values are defined and that no node waits for itself; returns what each node reads of the graph's own and
 * of those around it, by its subgraphs as well.
 */
function checkScope(
  graph: Graph,
  outer: ReadonlySet<string>,
  depth: number,
  output: string,
): Map<Node, Set<string>> {
  if (depth > MAX_NESTING)
    throw new QkvGemmError('UNSUPPORTED_MODEL', `Subgraphs are nested deeper than ${MAX_NESTING} levels.`);
  const own = definedIn(graph);
  const visible = outer.size === 0 ? own : new Set([...outer, ...own]);
  const require = (name: string, reader: string): void => {
    if (name === '' || visible.has(name)) return;
    throw new QkvGemmError(
      'INVALID_MODEL',
      `${reader} reads the value '${name}', which nothing produces: no node, initialiser or input has that name.`,
    );
  };
  const reads = new Map<Node, Set<string>>();
  for (const node of graph.nodes) {
    const names = new Set(node.inputs);
    for (const input of names) require(input, `Node '${node.label}'`);
    for (const bytes of node.graphs) {
      const body = new Graph(bytes);
      const inner = definedIn(body);
      const captured = [
        ...checkScope(body, visible, depth + 1, "A subgraph's output").values(),
        body.outputs.map(({ name }) => name),
      ];
      for (const set of captured) for (const name of set) if (!inner.has(name)) names.add(name);
    }
    names.delete('');
    reads.set(node, names);
  }
  for (const { name } of graph.outputs) require(name, output);
  checkAcyclic(graph, reads);
  return reads;
}

/** Kahn's algorithm: takes out nodes whose inputs are all there; what is left waits for itself. */
function checkAcyclic(graph: Graph, reads: ReadonlyMap<Node, ReadonlySet<string>>): void {
  const producers = new Map<string, Node>();
  for (const node of graph.nodes) for (const name of node.outputs) if (name !== '') producers.set(name, node);
  const waiting = new Map<Node, number>();
  const readers = new Map<Node, Node[]>();
  const ready: Node[] = [];
  for (const [node, names] of reads) {
    const needed = new Set<Node>();
    for (const name of names) {
      const producer = producers.get(name);
      if (producer) needed.add(producer);
    }
    for (const producer of needed) {
      const list = readers.get(producer);
      if (list) list.push(node);
      else readers.set(producer, [node]);
    }
    if (needed.size > 0) waiting.set(node, needed.size);
    else ready.push(node);
  }
  for (let node = ready.pop(); node; node = ready.pop()) {
    for (const reader of readers.get(node) ?? []) {
      const left = (waiting.get(reader) ?? 0) - 1;
      if (left > 0) waiting.set(reader, left);
      else {
        waiting.delete(reader);
        ready.push(reader);
      }
    }
  }
  const [stuck] = waiting.keys();
  if (!stuck) return;
  throw new QkvGemmError(
    'INVALID_MODEL',
    `The graph has a cycle: node '${stuck.label}' waits for its own result (${waiting.size} nodes are on cycles or behind them).`,
  );
}
