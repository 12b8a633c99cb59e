/** Which projections lead to attention, where weights or attention itself are of integers. */
import { expect } from 'chai';
import type { ModelBuilder } from '../models/builder.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { DataType } from '../ts/onnx/tensor.js';
import { withQkvGemm } from '../ts/session/index.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import {
  bytesOf,
  carried,
  inputOf,
  integers,
  layerOf,
  meaning,
  NAMES,
  type Integers,
} from './support/quantized.js';
import { quiet, runModel } from './support/run.js';
import { roundingOfModel } from '../scripts/bench/rounding.js';

const { float, int8, uint8 } = DataType;
const K = 32;
const WEIGHTS = NAMES.map((_, i) => integers(K, 8, 30 + i));

/** A weight behind DequantizeLinear, one scale a column. */
function dequantized(m: ModelBuilder, name: string, w: Integers): string {
  const inputs = [
    m.tensor(`q_${name}`, int8, [w.k, w.n], bytesOf(w.values)),
    m.floats(`s_${name}`, [w.n], w.scale),
    m.tensor(`z_${name}`, int8, [w.n], bytesOf(w.zeroPoint)),
  ];
  return m.node('DequantizeLinear', inputs, [`w_${name}`], { attributes: { axis: { integer: 1 } } });
}

const project = (m: ModelBuilder, h: string): string[] =>
  NAMES.map((name, i) =>
    m.node('MatMul', [h, dequantized(m, name, WEIGHTS[i] ?? integers(K, 8, 1))], [name]),
  );

const mlp = (m: ModelBuilder, h: string): void => {
  const up = m.node('MatMul', [h, dequantized(m, 'up', integers(K, 20, 60))], ['up']);
  const act = m.node('Relu', [up], ['act']);
  m.output(m.node('MatMul', [act, dequantized(m, 'down', integers(20, K, 63))], ['down']));
};

describe('attention in quantised models', () => {
  it('an MLP whose weights are dequantised is none', async () => {
    const original = layerOf(K, project, { after: mlp });
    const result = fused(original);
    // When it optimises, ONNX Runtime rounds the activations of the MLP's products, in either model.
    const plain = { ...quiet, graphOptimizationLevel: 'disabled' } as const;
    const before = await runModel(original, inputOf(K), plain);
    for (const options of [withQkvGemm(plain), plain])
      expect(worstDifference(before, await runModel(result.bytes, inputOf(K), options))).to.be.at.most(
        2e-5 + roundingOfModel(result.bytes),
      );
    expect(result.report.fused[0]?.splits).to.deep.equal([8, 8, 8]);
    expect(result.report.fused[0]?.emitNorm).to.equal(true);
    expect(carried(result)).to.deep.equal(WEIGHTS.map(meaning));
    checkRefused(
      layerOf(K, () => ['x'], { after: mlp, expose: false }),
      "none of its 1 projections leads to attention (they meet a constant weight or the graph's end first)",
      'up_node',
    );
  });

  /** Queries and keys meet in a product of integers; values stay out of it. */
  const integerScores = (m: ModelBuilder, h: string): string[] => {
    const [q = '', k = '', v = ''] = project(m, h);
    m.node('DynamicQuantizeLinear', [q], ['qq', 'qs', 'qz']);
    const perm = { attributes: { perm: { integers: [0, 2, 1] } } };
    m.node('DynamicQuantizeLinear', [m.node('Transpose', [k], ['k_turned'], perm)], ['kq', 'ks', 'kz']);
    const sum = m.node('MatMulInteger', ['qq', 'kq', 'qz', 'kz'], ['qk']);
    const cast = m.node('Cast', [sum], ['qk_f'], { attributes: { to: { integer: float } } });
    const scores = m.node('Mul', [cast, m.node('Mul', ['qs', 'ks'], ['qks'])], ['qk_scaled']);
    return [m.node('MatMul', [scores, v], ['mixed'])];
  };

  it('a product of two dynamically quantised values is', () => {
    const { report } = fused(layerOf(K, integerScores, { expose: false }));
    expect(report.fused[0]?.splits).to.deep.equal([8, 8, 8]);
  });

  it('a product of two values that are rounded and dequantised is', async () => {
    const rounded = (m: ModelBuilder, value: string): string => {
      const [s, z] = [
        m.floats(`${value}_s`, [], [0.05]),
        m.tensor(`${value}_z`, uint8, [], new Uint8Array([128])),
      ];
      return m.node(
        'DequantizeLinear',
        [m.node('QuantizeLinear', [value, s, z], [`${value}_q8`]), s, z],
        [`${value}_dq`],
      );
    };
    const original = layerOf(K, (m, h) => project(m, h).map((name) => rounded(m, name)), { expose: false });
    const { report } = await checkFused(original, { inputs: inputOf(K) });
    expect(report.fused[0]?.splits).to.deep.equal([8, 8, 8]);
  });
});
