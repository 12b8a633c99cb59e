import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { LLAMA_SMALL, layerBytes, writeLlamaStack } from '../models/llama_stack.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { inspectModel, type ModelDescription } from '../ts/inspect/inspect.js';
import { rowsOf } from '../ts/inspect/rows.js';
import { K, N } from '../models/attention.js';
import { writeAttentionModel } from './support/attention.js';
import { qkvgemm, testFolder } from './support/command.js';
import { failure } from './support/failure.js';

describe('inspect', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  it('says what a model is', async () => {
    const model = writeAttentionModel(folder());
    const d = await inspectModel(model);
    expect(d).to.include({ file: model, bytes: fs.statSync(model).size, irVersion: 8, producer: '' });
    expect(d.opsets).to.deep.equal({ '': 17 });
    expect(d.inputs).to.deep.equal([{ name: 'x', type: 'float32', shape: ['batch', 'sequence', K] }]);
    expect(d.outputs).to.deep.equal([{ name: 'y', type: 'float32', shape: ['batch', 'sequence', N] }]);
    expect(d.ops).to.include({ MatMul: 5, LayerNormalization: 1, Softmax: 1 });
    const elements = 2 * K + 3 * K * N + N;
    expect(d.weights).to.deep.equal({ float32: { tensors: 6, elements, bytes: 4 * elements } });
    expect(d.externalFiles).to.deep.equal([]);
  });

  it('finds what can be fused, with its cost at a number of rows', async () => {
    const model = writeAttentionModel(folder(), { residual: true, n: 16 });
    const { blocks, problem } = await inspectModel(model, { dims: { batch: 2, sequence: 5 } });
    expect(problem).to.equal(undefined);
    expect(blocks).to.have.length(1);
    expect(blocks[0]).to.deep.include({
      state: 'fusible',
      norm: 'h_node',
      normType: 'layer_norm',
      emitNorm: true,
      k: 16,
      n: 48,
      splits: [16, 16, 16],
      activationType: 'float32',
      weightType: 'float32',
      weightBytes: 4 * 16 * 48,
    });
    expect(blocks[0]?.cost).to.deep.equal({
      rows: 10,
      flops: 2 * 10 * 16 * 48,
      bytes: 4 * (16 * 48 + 10 * (16 + 48 + 16)),
    });
    const [other] = (await inspectModel(model, { rows: 3 })).blocks;
    expect(other?.cost?.rows).to.equal(3);
    expect((await inspectModel(model)).blocks[0]).not.to.have.property('cost');
  });

  it('finds nodes that are there already, of any weight type', async () => {
    const model = new Uint8Array(fs.readFileSync(writeAttentionModel(folder())));
    for (const [dtype, weightType, bytes] of [
      ['keep', 'float32', 4 * K * 3 * N],
      ['bf16', 'bfloat16', 2 * K * 3 * N],
      ['int8', 'int8', K * 3 * N + 4 * 3 * N],
    ] as const) {
      fs.writeFileSync(at('fused.onnx'), fuseBytes(model, { dtype }).model);
      const { blocks, functions, refused } = await inspectModel(at('fused.onnx'));
      expect(blocks).to.have.length(1);
      expect(blocks[0], dtype).to.deep.include({
        state: 'fused',
        normType: 'layer_norm',
        k: K,
        n: 3 * N,
        splits: [N, N, N],
        activationType: 'float32',
        weightType,
        weightBytes: bytes,
      });
      expect(functions).to.deep.equal(['com.deepspeed:QKVGemm']);
      expect(refused).to.deep.equal([]);
    }
  });

  it('models with external data, whose file is named with its size', async () => {
    const model = writeLlamaStack(folder(), LLAMA_SMALL);
    const targets = ['qkv', 'mlp'] as const;
    const d = await inspectModel(model, { targets, dims: { batch: 1, sequence: 4 } });
    expect(d.externalFiles).to.deep.equal([
      { file: at('weights.bin'), bytes: LLAMA_SMALL.layers * layerBytes(LLAMA_SMALL) },
    ]);
    expect(d.blocks).to.have.length(2 * LLAMA_SMALL.layers);
    expect(d.blocks.map(({ activationType }) => activationType)).to.deep.equal(
      new Array(d.blocks.length).fill('float16'),
    );
    expect(d.blocks[1]?.targets).to.deep.equal(['mlp']);
    expect(d.blocks[1]?.cost?.flops).to.equal(2 * 4 * 512 * 2 * 1792);
  });

  it('says why nothing can be fused, and of a model that was rewritten that it was', async () => {
    const model = writeAttentionModel(folder(), { attention: false });
    const { blocks, refused } = await inspectModel(model);
    expect(blocks).to.deep.equal([]);
    expect(refused.map(({ node }) => node)).to.deep.equal(['h_node']);
    const both = writeLlamaStack(folder(), { ...LLAMA_SMALL, layers: 1 });
    const { model: bytes } = await import('../ts/index.js').then(({ fuse }) => fuse(both));
    fs.writeFileSync(at('fused.onnx'), bytes);
    const again = await inspectModel(at('fused.onnx'), { targets: ['mlp'] });
    expect(again.blocks.map(({ state }) => state)).to.deep.equal(['fused']);
    expect(again.problem).to.contain('has been rewritten before');
  });

  it('rows follow from token ids and hidden states, not from pictures', () => {
    const sizes = { batch: 2, sequence: 8 };
    const ids = { type: 'int64', shape: ['batch', 'sequence'] };
    expect(rowsOf([ids], sizes)).to.deep.equal({ rows: 16, samples: 2 });
    expect(rowsOf([{ type: 'float16', shape: ['batch', 'sequence', 64] }], sizes)).to.deep.equal({
      rows: 16,
      samples: 2,
    });
    expect(rowsOf([{ type: 'float32', shape: ['batch', 3, 224, 224] }], sizes)).to.equal(undefined);
    expect(rowsOf([ids], { batch: 2 })).to.equal(undefined);
    expect(rowsOf([{ type: 'int64', shape: ['batch'] }, ids], sizes)?.rows).to.equal(16);
  });

  it('on the command line, as text and as JSON', async () => {
    const model = writeAttentionModel(folder());
    const { code, stdout, stderr } = qkvgemm(['inspect', model, '--dims', 'batch=1,sequence=128']);
    expect([code, stderr]).to.deep.equal([0, '']);
    expect(stdout).to.contain('input  x: float32 [batch, sequence, 16]');
    expect(stdout).to.match(/│ h_node\/QKVGemm │ fusible │ layer_norm \(layer-normalization\) │ 16 │ 8 8 8 /);
    expect(stdout).to.contain('│ 128 ');
    const json = qkvgemm(['inspect', model, '--json']);
    expect(json.code).to.equal(0);
    expect((JSON.parse(json.stdout) as ModelDescription).blocks).to.have.length(1);
    const wrong = qkvgemm(['inspect', model, '--dims', 'rows=1']);
    expect([wrong.code, wrong.stdout]).to.deep.equal([1, '']);
    expect(wrong.stderr).to.contain("'rows'").and.to.contain('batch, sequence');
    expect((await failure(() => inspectModel(at('none.onnx')))).code).to.equal('FILE_NOT_FOUND');
    expect((await failure(() => inspectModel(model, { rows: 0 }))).code).to.equal('INVALID_ARGUMENT');
  });
});
