/** Checks of a rewrite: that the result is a sound model, what stands in it, and that three runs agree. */
import { expect } from 'chai';
import type * as ort from 'onnxruntime-node';
import { worstDifference } from '../../scripts/bench/difference.js';
import { Graph } from '../../ts/onnx/graph.js';
import { Model } from '../../ts/onnx/model.js';
import type { Node } from '../../ts/onnx/node.js';
import type { DataSource } from '../../ts/onnx/tensor.js';
import { fuseBytes } from '../../ts/rewrite/fuse.js';
import type { FuseOptions } from '../../ts/rewrite/options.js';
import type { FuseReport } from '../../ts/rewrite/report.js';
import { withQkvGemm } from '../../ts/session/index.js';
import { xTensor } from './layers.js';
import { quiet, runModel } from './run.js';

export interface Check {
  /** Fused nodes that are expected (default 1). */
  count?: number;
  inputs?: readonly ort.Tensor[];
  options?: FuseOptions;
  source?: DataSource;
  /** Largest difference from the original, of the largest magnitude (default 2e-5: float32 summed in another order). */
  bound?: number;
  /** Is the result to be checked for soundness (default true)? What the original lacks, the result lacks. */
  sound?: boolean;
  /** The model that both are compared with (default the original). */
  reference?: Uint8Array;
}

export interface Fused {
  bytes: Uint8Array;
  model: Model;
  report: FuseReport;
  /** The com.deepspeed.QKVGemm nodes, those of subgraphs and functions included. */
  nodes: Node[];
  /** Op types of the graph, in order. */
  ops: string[];
}

/** Rewrites without running: checks that the result is sound, and that its report and its graph agree. */
export function fused(original: Uint8Array, check: Check = {}): Fused {
  const { count = 1, options = {}, source, sound = true } = check;
  const { model: bytes, report } = fuseBytes(original, options, source);
  expect(report.fused, JSON.stringify(report.refused, undefined, 1)).to.have.length(count);
  const model = new Model(bytes);
  if (sound) expectSound(model);
  const nodes = allNodes(model).filter((node) => node.is('QKVGemm', 'com.deepspeed'));
  expect(nodes.map(({ name }) => name)).to.include.members(report.fused.map(({ node }) => node));
  const counts: Record<string, number> = {};
  for (const { domain, opType } of allNodes(model)) {
    const name = domain === '' ? opType : `${domain}.${opType}`;
    counts[name] = (counts[name] ?? 0) + 1;
  }
  expect(report.opsAfter).to.deep.equal(counts);
  expect(model.graph.outputs).to.deep.equal(new Model(original).graph.outputs);
  return { bytes, model, report, nodes, ops: model.graph.nodes.map(({ opType }) => opType) };
}

/** Rewrites and runs three ways: the original as it stands, the result with the library, and without it. */
export async function checkFused(original: Uint8Array, check: Check = {}): Promise<Fused> {
  const result = fused(original, check);
  const { inputs = [xTensor()], bound = 2e-5, reference = original } = check;
  const expected = await runModel(reference, inputs, { ...quiet, graphOptimizationLevel: 'disabled' });
  for (const [i, values] of expected.entries())
    if (values.length > 0)
      expect(
        values.some((value) => value !== 0),
        `output ${i}`,
      ).to.equal(true);
  for (const [how, options] of [
    ['with the library', withQkvGemm(quiet)],
    ['without the library', quiet],
  ] as const) {
    const actual = await runModel(result.bytes, inputs, options);
    expect(worstDifference(expected, actual), how).to.be.at.most(bound);
  }
  return result;
}

/** Nothing is fused, the one refusal has this reason, and the model comes out byte for byte. */
export function checkRefused(original: Uint8Array, reason: string, at?: string): void {
  const { model, report } = fuseBytes(original);
  expect(report.fused).to.deep.equal([]);
  expect(report.refused.map((refusal) => refusal.reason)).to.deep.equal([reason]);
  if (at !== undefined) expect(report.refused[0]?.at).to.equal(at);
  expect(Buffer.compare(model, original), 'the bytes').to.equal(0);
  expect(report.opsAfter).to.deep.equal(report.opsBefore);
  expect(report.functions).to.deep.equal([]);
}

/** What is neither fused nor worth a refusal comes out byte for byte. */
export function checkUntouched(original: Uint8Array): void {
  const { model, report } = fuseBytes(original);
  expect(report.fused).to.deep.equal([]);
  expect(report.refused).to.deep.equal([]);
  expect(Buffer.compare(model, original), 'the bytes').to.equal(0);
}

/** The nodes of a model's graph, of the graphs in it, and of its functions but the op's own. */
function allNodes(model: Model): Node[] {
  const bodies = model.functionBodies.filter(
    ({ domain, name }) => `${domain}.${name}` !== 'com.deepspeed.QKVGemm',
  );
  return [model.graph, ...bodies].flatMap(nodesIn);
}

function nodesIn(graph: Graph): Node[] {
  return graph.nodes.flatMap((node) => [node, ...node.graphs.flatMap((bytes) => nodesIn(new Graph(bytes)))]);
}

/**
 * Every value is there before it is read, made once, and every domain is imported, in subgraphs and functions as well.
 * Nothing has the name of something outside that can be read there.
 */
export function expectSound(model: Model): void {
  expectSoundGraph(model.graph, model.opsets, []);
  for (const body of model.functionBodies) expectSoundGraph(body, body.opsets, []);
}

function expectSoundGraph(graph: Graph, opsets: ReadonlyMap<string, number>, outer: Iterable<string>): void {
  const own = [...graph.inputs.map(({ name }) => name), ...graph.initializers.keys()];
  const made = new Set(['', ...outer]);
  for (const name of graph.inputs.length > 0 ? new Set(own) : own) {
    expect(made, `'${name}', an input or initialiser`).to.not.include(name);
    made.add(name);
  }
  for (const node of graph.nodes) {
    for (const name of node.inputs) expect(made, `'${name}', read by ${node.label}`).to.include(name);
    for (const bytes of node.graphs) expectSoundGraph(new Graph(bytes), opsets, made);
    for (const name of node.outputs) {
      if (name !== '') expect(made, `'${name}', made by ${node.label}`).to.not.include(name);
      made.add(name);
    }
    expect(opsets.has(node.domain), `opset of '${node.domain}'`).to.equal(true);
  }
  for (const { name } of graph.outputs) expect(made, `output '${name}'`).to.include(name);
  for (const name of graph.valueInfos.keys()) expect(made, `value info of '${name}'`).to.include(name);
  const names = graph.nodes.map(({ name }) => name).filter((name) => name !== '');
  expect(new Set(names).size, 'node names').to.equal(names.length);
}
