import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { ModelBuilder, uniform } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { checkFused, checkRefused } from './support/fused.js';
import { K, layerNorm, weight } from './support/layers.js';

const MICROSOFT = { domain: 'com.microsoft' };
const opsets = { 'com.microsoft': 1 };
const heads = (count: number): { integer: number } => ({ integer: count });

/** A norm, Q, K and V of these widths, and what ONNX Runtime's optimisers make of the attention behind them. */
function model(
  widths: readonly number[],
  attend: (m: ModelBuilder, qkv: readonly string[]) => string,
): Uint8Array {
  const m = new ModelBuilder(opsets);
  const h = layerNorm(m, m.input('x', [2, 5, K]));
  const qkv = widths.map((n, i) => m.node('MatMul', [h, weight(m, `w_${i}`, i, [K, n])], [`p_${i}`]));
  m.output(attend(m, qkv));
  return m.finish();
}

/** Lengths of the sequences less one, and the longest one's: two sequences of five. */
const lengths = (m: ModelBuilder): string[] => [
  m.tensor('seqlens', DataType.int32, [2], new Uint8Array(new Int32Array([4, 4]).buffer)),
  m.tensor('longest', DataType.int32, [], new Uint8Array(new Int32Array([5]).buffer)),
];

describe('operators of ONNX Runtime that read projections', () => {
  it('MultiHeadAttention, with the biases in it', async () => {
    const attend = (m: ModelBuilder, qkv: readonly string[]): string =>
      m.node('MultiHeadAttention', [...qkv, m.floats('b', [24], uniform(24, 0.5, 3))], ['y'], { ...MICROSOFT, attributes: { num_heads: heads(2) } }); // prettier-ignore
    const { report } = await checkFused(model([8, 8, 8], attend));
    expect(report.fused[0]?.splits).to.deep.equal([8, 8, 8]);
  });

  it('GroupQueryAttention', async () => {
    const attend = (m: ModelBuilder, qkv: readonly string[]): string =>
      m.node('GroupQueryAttention', [...qkv, '', '', ...lengths(m)], ['y', 'keys', 'values'], { ...MICROSOFT, attributes: { num_heads: heads(2), kv_num_heads: heads(1) } }); // prettier-ignore
    const { report } = await checkFused(model([16, 8, 8], attend));
    expect(report.fused[0]?.splits).to.deep.equal([16, 8, 8]);
  });

  it('GroupQueryAttention of one packed projection', async () => {
    const attend = (m: ModelBuilder, [packed = '']: readonly string[]): string =>
      m.node('GroupQueryAttention', [packed, '', '', '', '', ...lengths(m)], ['y', 'keys', 'values'], { ...MICROSOFT, attributes: { num_heads: heads(2), kv_num_heads: heads(1) } }); // prettier-ignore
    const { report } = await checkFused(model([32], attend));
    expect(report.fused[0]?.splits).to.deep.equal([32]);
  });

  it('BiasGelu behind the first half of an MLP keeps its bias', async () => {
    const gelu = (m: ModelBuilder, [up = '']: readonly string[]): string =>
      m.node('BiasGelu', [up, m.floats('b', [8], uniform(8, 0.5, 3))], ['y'], MICROSOFT);
    const { ops } = await checkFused(model([8], gelu), { options: { targets: ['mlp'] } });
    expect(ops).to.deep.equal(['QKVGemm', 'BiasGelu']);
  });

  it('Attention, which has the weights in it: refused', () => {
    const m = new ModelBuilder(opsets);
    const h = layerNorm(m, m.input('x', [2, 5, K]));
    const inputs = [h, weight(m, 'w', 1, [K, 24]), m.floats('b', [24], uniform(24, 0.5, 3))];
    m.output(m.node('Attention', inputs, ['y'], { ...MICROSOFT, attributes: { num_heads: heads(2) } }));
    checkRefused(
      m.finish(),
      "its output 'h' feeds no MatMul or Gemm with constant weights, but Attention 'y_node', which multiplies by those of Q, K and V itself",
      'y_node',
    );
  });

  it('EmbedLayerNormalization: refused, but its projections are fused with target linear', async () => {
    const m = new ModelBuilder(opsets);
    const table = (name: string, rows: number, seed: number): string =>
      m.floats(name, [rows, K], uniform(rows * K, 1, seed));
    const ids = m.input('ids', [2, 5], DataType.int32);
    const vectors = ['gamma', 'beta'].map((name, i) => m.floats(name, [K], uniform(K, 0.5, i, 1)));
    const inputs = [ids, '', table('words', 9, 1), table('places', 8, 2), '', ...vectors];
    m.node('EmbedLayerNormalization', inputs, ['h', 'mask'], MICROSOFT);
    m.output(m.node('MatMul', ['h', weight(m, 'w', 1)], ['y']));
    const bytes = m.finish();
    expect(fuseBytes(bytes).report.refused.map(({ reason }) => reason)).to.deep.equal([
      'it normalises embeddings that it looks up itself; there is no value before it to begin at',
    ]);
    const inputsOf = [new ort.Tensor('int32', Int32Array.from([0, 1, 2, 3, 4, 5, 6, 7, 8, 0]), [2, 5])];
    const { ops } = await checkFused(bytes, {
      options: { targets: ['qkv', 'mlp', 'linear'] },
      inputs: inputsOf,
    });
    expect(ops).to.deep.equal(['EmbedLayerNormalization', 'QKVGemm']);
  });
});
