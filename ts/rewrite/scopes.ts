/**
 * The graphs of a model in which something can be fused: its own, the bodies of If, Loop, Scan and the like, and the
 * model-local functions that are called. A subgraph reads values of the graphs around it; a function reads its inputs alone.
 *
 * Source: ONNX IR specification, "Names Within a Graph" and "Functions".
 */
import { QkvGemmError } from '../errors.js';
import type { FunctionBody } from '../onnx/function.js';
import { Graph } from '../onnx/graph.js';
import type { Model } from '../onnx/model.js';
import type { Node } from '../onnx/node.js';
import type { DataSource } from '../onnx/tensor.js';
import { checkFunction, MAX_NESTING } from './check_graph.js';
import { DOMAIN, OP } from './function_body.js';
import { GraphIndex } from './graph_index.js';

export interface Scope {
  index: GraphIndex;
  parent: Scope | undefined;
  /** Of a subgraph: the node that holds it. */
  holder: Node | undefined;
  /** Of a function. */
  body: FunctionBody | undefined;
  children: Scope[];
}

const keyOf = (domain: string, name: string): string => `${domain}:${name}`;

/** All scopes, each behind the one around it; functions behind the model's own graph. */
export function scopesOf(model: Model, source?: DataSource): Scope[] {
  const scopes: Scope[] = [];
  let ordinal = 0;
  const add = (scope: Scope): void => {
    const { index } = scope;
    scopes.push(scope);
    for (const node of index.graph.nodes) {
      index.ordinals.set(node, ordinal++);
      for (const { attribute, graph } of node.bodies) {
        const around = index.scope === undefined ? '' : `, in ${index.scope}`;
        const inner = new GraphIndex(model, source, {
          graph: new Graph(graph),
          opset: index.opset,
          scope: `${attribute} of ${node.opType} '${node.label}'${around}`,
          parent: index,
          inFunction: index.inFunction,
        });
        index.enter(node, inner);
        const child: Scope = { index: inner, parent: scope, holder: node, body: undefined, children: [] };
        scope.children.push(child);
        add(child);
      }
    }
  };
  const root = new GraphIndex(model, source);
  add({ index: root, parent: undefined, holder: undefined, body: undefined, children: [] });

  const bodies = model.functionBodies.filter(({ domain, name }) => domain !== DOMAIN || name !== OP);
  const called = calledFunctions(model.graph, bodies);
  for (const body of called) {
    checkFunction(body);
    const { opsets } = body;
    const index: GraphIndex = new GraphIndex(model, source, {
      graph: body,
      opset: opsets.get('') ?? 0,
      scope: `function ${body.id}`,
      inFunction: true,
      // Asked once all scopes are there.
      callers: (input) =>
        index.users.map((call) => ({ index: call.index, value: call.node.inputs[input] ?? '' })),
    });
    add({ index, parent: undefined, holder: undefined, body, children: [] });
  }
  // With overloads, a call may be one of another function of that name: what all give holds for each.
  const functions = new Map<string, GraphIndex[]>();
  for (const { index, body } of scopes) {
    if (!body) continue;
    const key = keyOf(body.domain, body.name);
    functions.set(key, [...(functions.get(key) ?? []), index]);
  }
  for (const { index } of scopes)
    for (const node of index.graph.nodes)
      for (const inner of functions.get(keyOf(node.domain, node.opType)) ?? []) index.enter(node, inner);
  return scopes;
}

/** The functions that a graph calls, directly or through others, in the model's order. Throws where one calls itself. */
function calledFunctions(graph: Graph, bodies: readonly FunctionBody[]): FunctionBody[] {
  if (bodies.length === 0) return [];
  const named = new Map<string, FunctionBody[]>();
  for (const body of bodies) {
    const key = keyOf(body.domain, body.name);
    named.set(key, [...(named.get(key) ?? []), body]);
  }
  const called = new Set<FunctionBody>();
  const done = new Set<FunctionBody>();
  const visit = (within: Graph, path: readonly FunctionBody[]): void => {
    for (const key of callsIn(within, 0)) {
      for (const body of named.get(key) ?? []) {
        called.add(body);
        if (path.includes(body))
          throw new QkvGemmError('INVALID_MODEL', `The function '${body.id}' calls itself.`);
        if (path.length >= MAX_NESTING)
          throw new QkvGemmError(
            'UNSUPPORTED_MODEL',
            `Functions call one another more than ${MAX_NESTING} deep, up to '${body.id}'.`,
          );
        if (done.has(body)) continue;
        visit(body, [...path, body]);
        done.add(body);
      }
    }
  };
  visit(graph, []);
  return bodies.filter((body) => called.has(body));
}

/** `domain:operator` of all nodes of a graph and of the graphs in it. */
function callsIn(graph: Graph, depth: number, into = new Set<string>()): Set<string> {
  if (depth > MAX_NESTING) return into; // said elsewhere
  for (const node of graph.nodes) {
    into.add(keyOf(node.domain, node.opType));
    for (const bytes of node.graphs) callsIn(new Graph(bytes), depth + 1, into);
  }
  return into;
}
