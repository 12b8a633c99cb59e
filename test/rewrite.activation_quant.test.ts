import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { worstDifference } from '../scripts/bench/difference.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { withQkvGemm } from '../ts/session/index.js';
import { failure } from './support/failure.js';
import { fused } from './support/fused.js';
import { layer, rows, SHAPE, xTensor, type Layer } from './support/layers.js';
import { quiet, runModel } from './support/run.js';
import { spell } from './support/norms.js';

const int8 = { dtype: 'int8', activationQuant: true } as const;

describe('activationQuant', () => {
  const forms: Record<string, Layer> = {
    LayerNorm: {},
    'RMSNorm spelt out, opset 13': { opset: 13, norm: (m, x) => spell(m, x, true) },
    'opset 11': { opset: 11, norm: (m, x) => spell(m, x, false) },
    'opset 18': { opset: 18 },
  };
  for (const [name, form] of Object.entries(forms)) {
    it(`${name}: the attribute is set, and the function body rounds rows as the kernel does`, async () => {
      const original = layer(form);
      const { nodes, report, bytes } = fused(original, { options: int8 });
      expect(nodes[0]?.integer('activation_quant', 0)).to.equal(1);
      expect(report.fused[0]).to.include({ weightType: 'int8', activationQuant: true });
      // The first row is zeros, and comes out as what beta alone gives.
      expect(
        rows(SHAPE)
          .slice(0, SHAPE[2])
          .every((value) => value === 0),
      ).to.equal(true);
      const reference = await runModel(original, [xTensor()]);
      const [kernel, body, weightsAlone] = [
        await runModel(bytes, [xTensor()], withQkvGemm(quiet)),
        await runModel(bytes, [xTensor()]),
        await runModel(fuseBytes(original, { dtype: 'int8' }).model, [xTensor()]),
      ];
      // A rounded row is off by up to half a step of 127 in each element, as the weights are.
      expect(worstDifference(reference, kernel)).to.be.below(5e-2);
      expect(worstDifference(kernel, body), 'with against without the library').to.be.below(2e-5);
      expect(worstDifference(weightsAlone, kernel), 'rows are rounded at all').to.be.above(1e-4);
    });
  }

  it('without a norm as well', async () => {
    const original = layer();
    const { bytes, nodes } = fused(original, { options: { ...int8, targets: ['linear'] } });
    expect(nodes[0]?.integer('activation_quant', 0)).to.equal(1);
    const kernel = await runModel(bytes, [xTensor()], withQkvGemm(quiet));
    expect(worstDifference(kernel, await runModel(bytes, [xTensor()]))).to.be.below(2e-5);
  });

  it('one row', async () => {
    const { bytes } = fused(layer(), { options: int8 });
    const x = new ort.Tensor('float32', rows([1, 1, 12]).fill(0.25), [1, 1, 12]);
    const kernel = await runModel(bytes, [x], withQkvGemm(quiet));
    expect(worstDifference(kernel, await runModel(bytes, [x]))).to.be.below(2e-5);
  });

  it('an error where no weights are int8, and a refusal where the body cannot round', async () => {
    for (const dtype of ['keep', 'fp16', 'bf16'] as const) {
      const error = await failure(() => fuseBytes(layer(), { dtype, activationQuant: true }));
      expect(error.code).to.equal('INVALID_ARGUMENT');
      expect(error.message).to.match(/activationQuant is for int8 weights.*--dtype int8/);
    }
    const old = layer({ opset: 10, norm: (m, x) => spell(m, x, true) });
    const { report, model } = fuseBytes(old, int8);
    expect(report.refused.map(({ reason }) => reason)).to.deep.equal([
      'the model is in opset 10, in which the function body cannot round activations; 11 can',
    ]);
    expect(model).to.equal(old);
    expect(fuseBytes(old, { ...int8, fallback: false }).report.fused).to.have.length(1);
  });
});
