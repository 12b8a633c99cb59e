/** Finds what can be fused: norms with the projections that lead to attention, and the reasons for the rest. */
import { DataType, dataTypeName } from '../onnx/tensor.js';
import type { Node } from '../onnx/node.js';
import { findConstant } from './constants.js';
import { OLDEST_OPSET } from './function_body.js';
import type { GraphIndex } from './graph_index.js';
import { groupByAttention } from './grouping.js';
import type { Failure } from './match.js';
import type { Norm } from './norms/norm.js';
import { normRules } from './norms/index.js';
import { projectionRules } from './projections/index.js';
import type { Projection } from './projections/projection.js';
import type { Refusal } from './report.js';

/** One norm and the projections that become one node with it. */
export interface Site {
  norm: Norm;
  projections: Projection[];
  /** Nodes between the norm and its projections that change nothing (Identity, Dropout). */
  aliases: Node[];
  /** Element type of the norm's input and of the node's outputs (DataType). */
  type: number;
}

/** Norms whose result has the type of their scale, which need not be their input's. */
const RETYPING = new Set(['RMSNormalization', 'SimplifiedLayerNormalization']);

export function findSites(index: GraphIndex): { sites: Site[]; refused: Refusal[] } {
  const sites: Site[] = [];
  const refused: Refusal[] = [];
  const taken = new Set<Node>();
  for (const node of index.model.graph.nodes) {
    for (const rule of normRules) {
      const match = rule.match(index, node);
      if (!match) continue;
      if (!match.ok) {
        refused.push(refusal(node, rule.name, match));
        break;
      }
      const found = siteOf(index, match.value, taken);
      if ('reason' in found) refused.push(refusal(node, rule.name, found));
      else {
        for (const member of [...match.value.nodes, ...found.projections.flatMap((p) => p.nodes)])
          taken.add(member);
        sites.push(found);
      }
      break;
    }
  }
  return { sites, refused };
}

export function refusal(node: Node, rule: string, failure: Failure): Refusal {
  const at = failure.at && failure.at !== node ? { at: failure.at.label } : {};
  return { node: node.label, opType: node.opType, rule, reason: failure.reason, ...at };
}

function siteOf(index: GraphIndex, norm: Norm, taken: ReadonlySet<Node>): Site | Failure {
  const failed = (reason: string, at?: Node): Failure =>
    at ? { ok: false, reason, at } : { ok: false, reason };
  const { opset } = index.model;
  if (opset < OLDEST_OPSET)
    return failed(
      `the model ${opset ? `is in opset ${opset}` : 'names no opset'}, expected ${OLDEST_OPSET} or newer`,
    );
  const overlap = norm.nodes.find((node) => taken.has(node));
  if (overlap) return failed('part of the norm belongs to another fused node', overlap);

  const { values, nodes: aliases } = aliasesOf(index, norm.output);
  const projections: Projection[] = [];
  let nearest: Failure | undefined;
  for (const value of values) {
    for (const reader of index.readers(value)) {
      for (const rule of projectionRules) {
        const match = rule.match(index, reader, value);
        if (match?.ok) projections.push(match.value);
        else nearest ??= match;
        if (match) break;
      }
    }
  }
  if (projections.length === 0) {
    return nearest ?? failed(`its output '${norm.output}' feeds no MatMul or Gemm with constant weights`);
  }
  const { groups, others } = groupByAttention(index, projections);
  const [group] = groups.sort((a, b) => b.length - a.length);
  if (!group) {
    return failed(
      `none of its ${projections.length} projections leads to attention (they meet a constant weight or the graph's end first)`,
      others[0]?.node,
    );
  }
  const [first] = group;
  const k = first?.k ?? 0;
  for (const [what, vector] of [
    ['scale', norm.gamma],
    ['shift', norm.beta],
  ] as const) {
    if (vector && vector.tensor.count !== k) {
      return failed(
        `the ${what} '${vector.name}' has ${vector.tensor.count} elements, the weights have K = ${k}`,
      );
    }
  }
  const mixed = group.find((p) => p.k !== k);
  if (mixed) return failed(`weights have K = ${k} and K = ${mixed.k}`, mixed.node);
  const length = index.dimsOf(norm.input)?.at(-1) ?? -1;
  if (length >= 0 && length !== k)
    return failed(`the norm's input '${norm.input}' has ${length} columns, the weights have K = ${k}`);
  // A Reshape may cut rows in pieces of K; a scale or shift of K elements says that it does not.
  const cut = length < 0 && !norm.gamma && !norm.beta ? group.find((p) => p.flattened) : undefined;
  if (cut) return failed(`how long the rows before Reshape are is not known (K = ${k} behind it)`, cut.node);
  const stated = index.typeOf(norm.input);
  if (stated === undefined && norm.nodes.some((node) => RETYPING.has(node.opType)))
    return failed(`the element type of its input '${norm.input}' is not known`);
  const type = stated ?? first?.weight.type ?? DataType.float;
  const other = group.find((p) => p.weight.type !== type);
  if (other) {
    return failed(
      `the norm's input is ${dataTypeName(type)}, the weight '${other.weight.name}' ${dataTypeName(other.weight.type)}`,
      other.node,
    );
  }
  return { norm, projections: group, aliases, type };
}

/** A value and what Identity, Dropout without a mask, or DynamicQuantizeLinear makes of it. */
function aliasesOf(index: GraphIndex, value: string): { values: Set<string>; nodes: Node[] } {
  const values = new Set([value]);
  const nodes: Node[] = [];
  for (const name of values) {
    for (const reader of index.readers(name)) {
      const output = reader.outputs[0];
      if (reader.inputs[0] !== name || output === undefined || values.has(output)) continue;
      // Integer products read it; their rules look at what they read.
      if (reader.is('DynamicQuantizeLinear')) {
        values.add(output);
        continue;
      }
      if (!reader.is('Identity') && !(reader.is('Dropout') && dropsNothing(index, reader))) continue;
      values.add(output);
      nodes.push(reader);
    }
  }
  return { values, nodes };
}

/**
 * Dropout whose mask is not used. Exporters leave it in models that were in training mode; ONNX Runtime takes it out when
 * it optimises a graph, whatever its ratio and its constant mode say, so that a session computes what is computed without
 * it. A mode that callers choose is left to them.
 */
function dropsNothing(index: GraphIndex, node: Node): boolean {
  const mode = node.inputs[2];
  if (mode && !findConstant(index, mode)) return false;
  const mask = node.outputs[1];
  return !mask || (index.readers(mask).length === 0 && !index.isGraphOutput(mask));
}
