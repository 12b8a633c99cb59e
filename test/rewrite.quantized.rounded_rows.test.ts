/** Rows that a model rounds to 8 bits when it runs: the fused node rounds them to int8 by default. */
import { expect } from 'chai';
import { worstDifference } from '../scripts/bench/difference.js';
import { withQkvGemm } from '../ts/session/index.js';
import { MICROSOFT, opsets, K, store, chain, build, weightsFor } from './support/dynamic_quantized.js';
import { fused, type Fused } from './support/fused.js';
import { carried, floatLayer, inputOf, layerOf, meaning, NAMES } from './support/quantized.js';
import { quiet, runModel } from './support/run.js';

describe('rows that a model rounds to 8 bits when it runs', () => {
  const weights = weightsFor({});
  const originals: Record<string, Uint8Array> = {
    MatMulInteger: build(weights, chain),
    MatMulIntegerToFloat: build(weights, (m, name, w) => {
      const { q, scale, zero } = store(m, name, w, {});
      const inputs = ['h_q', q, 'h_s', scale, 'h_z', zero];
      return m.node('MatMulIntegerToFloat', inputs, [name], { domain: MICROSOFT });
    }),
    DynamicQuantizeMatMul: layerOf(
      K,
      (m, h) =>
        weights.map((w, i) => {
          const { q, scale, zero } = store(m, NAMES[i] ?? '', w, {});
          return m.node('DynamicQuantizeMatMul', [h, q, scale, zero], [NAMES[i] ?? ''], {
            domain: MICROSOFT,
          });
        }),
      { opsets },
    ),
  };
  const attribute = ({ nodes }: Fused): number | undefined => nodes[0]?.integer('activation_quant', 0);

  for (const [form, original] of Object.entries(originals))
    it(`${form}: the node rounds each to int8, by at most half a step of its own`, async () => {
      const result = fused(original);
      expect(attribute(result)).to.equal(1);
      expect(result.report.fused[0]).to.include({ weightType: 'int8', activationQuant: true });
      const numbers = weights.map(meaning);
      expect(carried(result)).to.deep.equal(numbers);
      const inputs = inputOf(K);
      const formula = await runModel(floatLayer(K, numbers, []), inputs);
      const normalised = layerOf(K, (m, h) => [m.node('Identity', [h], ['q'])]);
      const h = (await runModel(normalised, inputs))[1] ?? new Float32Array();
      expect(h.length % K).to.equal(0);
      const kernel = await runModel(result.bytes, inputs, withQkvGemm(quiet));
      expect(worstDifference(kernel, await runModel(result.bytes, inputs))).to.be.below(2e-5);
      let farthest = 0;
      numbers.forEach((values, part) => {
        const n = weights[part]?.n ?? 1;
        const [exact, is] = [formula[part + 1] ?? [], kernel[part + 1] ?? []];
        expect(is).to.have.length((h.length / K) * n);
        for (let i = 0; i < is.length; i++) {
          const row = h.subarray(Math.floor(i / n) * K, Math.floor(i / n) * K + K);
          const step = Math.max(...row.map(Math.abs)) / 127;
          const column = values.filter((_, at) => at % n === i % n);
          const most = (step / 2) * column.reduce((sum, value) => sum + Math.abs(value), 0);
          const off = Math.abs((is[i] ?? NaN) - (exact[i] ?? NaN));
          expect(off, `${part}[${i}]`).to.be.at.most(1.0001 * most + 1e-6);
          farthest = Math.max(farthest, off / most);
        }
      });
      expect(farthest, 'rows are rounded at all').to.be.above(0.01);
    });

  it('activationQuant says otherwise', () => {
    for (const original of Object.values(originals)) {
      const exact = fused(original, { options: { activationQuant: false } });
      expect(attribute(exact)).to.equal(0);
      expect(exact.report.fused[0]).to.not.have.property('activationQuant');
      expect(attribute(fused(original, { options: { activationQuant: true } }))).to.equal(1);
      // Integers stay integers whatever floats become.
      expect(attribute(fused(original, { options: { dtype: 'fp16' } }))).to.equal(1);
    }
  });

  it('not without a norm, unless it is asked for: rows of one sign would lose a bit', () => {
    const original = originals['MatMulInteger'] ?? new Uint8Array();
    const targets = ['linear'] as const;
    expect(attribute(fused(original, { options: { targets } }))).to.equal(0);
    expect(attribute(fused(original, { options: { targets, activationQuant: true } }))).to.equal(1);
  });

  it('weights that are integers alone do not make rows so', () => {
    const model = (dequantize: boolean): Uint8Array =>
      layerOf(K, (m, h) =>
        weights.map((w, i) => {
          const name = NAMES[i] ?? '';
          const { q, scale, zero } = store(m, name, w, {});
          const axis = { attributes: { axis: { integer: 1 } } };
          const floats = dequantize
            ? m.node('DequantizeLinear', [q, scale, zero], [`w_${name}`], axis)
            : m.floats(`w_${name}`, [w.k, w.n], meaning(w));
          return m.node('MatMul', [h, floats], [name]);
        }),
      );
    expect(fused(model(true)).report.fused[0]).to.include({ weightType: 'int8' });
    expect(attribute(fused(model(true)))).to.equal(0);
    expect(attribute(fused(model(false), { options: { dtype: 'int8' } }))).to.equal(0);
  });
});
