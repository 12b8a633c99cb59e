import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { ModelBuilder, uniform } from '../models/builder.js';
import { Graph } from '../ts/onnx/graph.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { checkFused, fused } from './support/fused.js';
import { attend, K, layerNorm, N, weight, xTensor } from './support/layers.js';
import { quiet } from './support/run.js';

const IN = 'gemm_input_shape';
const OUT = 'gemm_output_shape';

/** A model as ONNX Runtime saves one whose shapes are fixed: a MatMul and its Add became Reshape, Gemm, Reshape. */
function saved(after?: (m: ModelBuilder) => void): Uint8Array {
  const m = new ModelBuilder();
  m.input('x', [2, 5, K]);
  const flat = m.node('Reshape', ['x', m.integers(IN, [2], [10, K])], ['flat']);
  const product = m.node('Gemm', [flat, weight(m, 'w', 9, [K, K]), m.floats('b', [K], uniform(K, 1, 8))], ['product']);
  const h = layerNorm(m, m.node('Reshape', [product, m.integers(OUT, [3], [2, 5, K])], ['again']));
  const results = ['q', 'k', 'v'].map((name, i) =>
    m.node('Add', [m.node('MatMul', [h, weight(m, `w_${name}`, i)], [`${name}_product`]), m.floats(`b_${name}`, [N], uniform(N, 1, i))], [name]),
  );
  m.output(attend(m, results));
  after?.(m);
  return m.finish();
} // prettier-ignore

const shapesOf = (bytes: Uint8Array): string[] =>
  fused(bytes, { sound: false })
    .model.graph.nodes.filter((node) => node.is('Reshape'))
    .map((node) => node.inputs[1] ?? '');

describe('initialisers that bear names that ONNX Runtime gives when it loads a model', () => {
  it('get other names: without, the session without the library would fail', async () => {
    const { model } = await checkFused(saved());
    expect(shapesOf(saved())).to.deep.equal([`${IN}/QKVGemm`, `${OUT}/QKVGemm`]);
    expect([...model.graph.initializers.keys()]).to.not.include.members([IN, OUT]);
  });

  it('ONNX Runtime saves such models', async () => {
    const m = new ModelBuilder();
    m.input('x', [2, 5, K]);
    const product = m.node('MatMul', ['x', weight(m, 'w', 9, [K, K])], ['product']);
    m.output(m.node('Add', [product, m.floats('b', [K], uniform(K, 1, 8))], ['y']));
    const optimizedModelFilePath = path.join(os.tmpdir(), `qkvgemm-saved-${process.pid}.onnx`);
    const session = await ort.InferenceSession.create(m.finish(), { ...quiet, optimizedModelFilePath, graphOptimizationLevel: 'basic' });
    await session.release();

    const bytes = fs.readFileSync(optimizedModelFilePath);
    fs.rmSync(optimizedModelFilePath);
    expect(bytes.includes(IN)).to.equal(true);
  }); // prettier-ignore

  it('keep them where a caller reads them', () => {
    const output = (m: ModelBuilder): string => m.output(IN, [2], DataType.int64);
    expect(shapesOf(saved((m) => void output(m)))).to.deep.equal([IN, `${OUT}/QKVGemm`]);
    const input = (m: ModelBuilder): string => m.input(OUT, [3], DataType.int64);
    expect(shapesOf(saved((m) => void input(m)))).to.deep.equal([`${IN}/QKVGemm`, OUT]);
  });

  it('keep them where a subgraph reads them', () => {
    const branch = (): ModelBuilder => {
      const body = new ModelBuilder();
      body.output(body.node('Identity', [IN], ['inner']), [2], DataType.int64);
      return body;
    };
    const model = saved((m) => {
      const graphs = { then_branch: branch(), else_branch: branch() };
      const condition = m.input('condition', [], DataType.bool);
      m.output(m.node('If', [condition], ['chosen'], { graphs }), [2], DataType.int64);
    });
    expect(shapesOf(model)).to.deep.equal([IN, `${OUT}/QKVGemm`]);
  });

  it('get other names in subgraphs, and where a subgraph has its own of the same name', async () => {
    const inner = new ModelBuilder();
    const flat = inner.node('Reshape', ['x', inner.integers(IN, [2], [10, K])], ['inner_flat']);
    inner.output(inner.node('Reshape', [flat, inner.integers('inner_target', [1], [-1])], ['inner_y']));
    const other = new ModelBuilder();
    other.output(other.node('Reshape', ['x', other.integers('other_target', [1], [-1])], ['other_y']));
    const model = saved((m) => {
      const condition = m.input('condition', [], DataType.bool);
      m.output(m.node('If', [condition], ['chosen'], { graphs: { then_branch: inner, else_branch: other } }));
    });
    const inputs = [xTensor(), new ort.Tensor('bool', [true], [])];
    const result = await checkFused(model, { inputs });
    expect(shapesOf(model)).to.deep.equal([`${IN}/QKVGemm`, `${OUT}/QKVGemm`]);
    const [branch] = result.model.graph.nodes.find((node) => node.is('If'))?.graphs ?? [];
    expect([...new Graph(branch ?? new Uint8Array()).initializers.keys()]).to.deep.equal(['inner_target', `${IN}/QKVGemm_1`]);
  }); // prettier-ignore

  it('keep them where nothing is fused', () => {
    const { model } = fuseBytes(saved(), { skip: ['h_node'] });
    expect(Buffer.compare(model, saved())).to.equal(0);
  });
});
