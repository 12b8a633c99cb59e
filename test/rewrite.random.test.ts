import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { uniform } from '../models/builder.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { Model } from '../ts/onnx/model.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { withQkvGemm } from '../ts/session/index.js';
import { expectSound } from './support/fused.js';
import { randomModel } from './support/random_model.js';
import { quiet, runModel } from './support/run.js';
import { roundingOfModel } from '../scripts/bench/rounding.js';

const MODELS = 80;
const DTYPES = ['fp16', 'bf16', 'int8'] as const;

describe('models made at random', () => {
  it(`${MODELS} of them give the same answers three ways, or come out as they were`, async () => {
    let [fused, pieces, sums] = [0, 0, 0];
    for (let seed = 1; seed <= MODELS; seed++) {
      const { bytes, dims } = randomModel(seed);
      const { model, report } = fuseBytes(bytes);
      if (report.fused.length === 0) {
        expect(model, `seed ${seed}`).to.equal(bytes);
        continue;
      }
      fused += report.fused.length;
      pieces += report.fused.filter(({ rules }) => /split|slice/.test(rules.projection)).length;
      sums += report.fused.filter(({ rules }) => rules.norm.startsWith('skip')).length;
      expectSound(new Model(model));
      const input = [new ort.Tensor('float32', uniform(48, 1, seed, 0.3), dims)];
      const expected = await runModel(bytes, input, { ...quiet, graphOptimizationLevel: 'disabled' });
      for (const options of [withQkvGemm(quiet), quiet]) {
        const actual = await runModel(model, input, options);
        expect(worstDifference(expected, actual), `seed ${seed}`).to.be.below(2e-5);
      }
      const all = fuseBytes(bytes, { targets: ['qkv', 'mlp', 'linear'] }).model;
      expectSound(new Model(all));
      for (const options of [withQkvGemm(quiet), quiet]) {
        const actual = await runModel(all, input, options);
        expect(worstDifference(expected, actual), `seed ${seed}, all targets`).to.be.below(2e-5);
      }
      const dtype = DTYPES[seed % 3] ?? 'int8';
      const rounded = fuseBytes(bytes, { dtype }).model;
      const [kernel, body] = [
        await runModel(rounded, input, withQkvGemm(quiet)),
        await runModel(rounded, input),
      ];
      expect(worstDifference(kernel, body), `seed ${seed}, ${dtype}`).to.be.below(
        2e-5 + roundingOfModel(rounded),
      );
    }
    expect(fused, 'fused nodes').to.be.above(MODELS);
    expect(pieces, 'cut behind').to.be.above(10);
    expect(sums, 'norms of sums').to.be.above(10);
  });
});
