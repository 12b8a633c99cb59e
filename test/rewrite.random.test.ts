import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { uniform } from '../models/builder.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { Model } from '../ts/onnx/model.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import type { Target } from '../ts/rewrite/options.js';
import { withQkvGemm } from '../ts/session/index.js';
import { expectSound } from './support/fused.js';
import { randomModel } from './support/random_model.js';
import { quiet, runModel } from './support/run.js';
import { roundingOfModel } from '../scripts/bench/rounding.js';

/** From QKVGEMM_RANDOM=FIRST:COUNT, which takes all sets of targets for each model. */
const [FIRST = 1, MODELS = 80] = (process.env.QKVGEMM_RANDOM ?? '1:80').split(':').map(Number);
const LONG = process.env.QKVGEMM_RANDOM !== undefined;
const DTYPES = ['fp16', 'bf16', 'int8'] as const;
const TARGETS: readonly (readonly Target[])[] = [
  ['qkv', 'mlp', 'linear'],
  ['qkv', 'mlp'],
  ['mlp'],
  ['linear'],
];

/** Float32 summed in another order; the original rounds to float16 what the node does not, or in another place. */
const boundOf = ({ low }: { low: boolean }): number => (low ? 2e-2 : 2e-5);

describe('models made at random', () => {
  it(`${MODELS} of them give the same answers three ways, or come out as they were`, async function () {
    if (LONG) this.timeout(0);
    const seen = { fused: 0, refused: 0, untouched: 0, pieces: 0, sums: 0, within: 0, moved: 0, low: 0 };
    for (let seed = FIRST; seed < FIRST + MODELS; seed++) {
      const made = randomModel(seed);
      const { bytes, dims } = made;
      const input = [new ort.Tensor('float32', uniform(48, 1, seed, 0.3), dims)];
      const expected = await runModel(bytes, input, { ...quiet, graphOptimizationLevel: 'disabled' });
      // ONNX Runtime's own optimiser changes what some of these models give, by up to 2e-3 of the largest.
      const optimised = await runModel(bytes, input);
      const nearest = (actual: Float32Array[]): number =>
        Math.min(worstDifference(expected, actual), worstDifference(optimised, actual));
      const others = LONG ? TARGETS : [TARGETS[0] ?? [], TARGETS[seed % TARGETS.length] ?? []];
      for (const targets of [['qkv'] as const, ...new Set(others)]) {
        const what = `seed ${seed}, ${targets.join()}`;
        const { model, report } = fuseBytes(bytes, { targets });
        if (report.fused.length === 0) {
          expect(model, what).to.equal(bytes);
          continue;
        }
        expectSound(new Model(model));
        for (const options of [withQkvGemm(quiet), quiet]) {
          const actual = await runModel(model, input, options);
          expect(nearest(actual), what).to.be.below(boundOf(made));
        }
      }
      const { report } = fuseBytes(bytes);
      seen.refused += report.refused.length;
      if (report.fused.length === 0) seen.untouched++;
      for (const { rules, scope } of report.fused) {
        seen.fused++;
        if (/split|slice/.test(rules.projection)) seen.pieces++;
        if (rules.norm.startsWith('skip')) seen.sums++;
        if (scope !== undefined) seen.within++;
      }
      if (made.low) seen.low++;
      if (report.fused.length === 0) continue;
      const dtype = DTYPES[seed % 3] ?? 'int8';
      const rounded = fuseBytes(bytes, { dtype }).model;
      const [kernel, body] = [
        await runModel(rounded, input, withQkvGemm(quiet)),
        await runModel(rounded, input),
      ];
      // A Loop has two rounds.
      expect(worstDifference(kernel, body), `seed ${seed}, ${dtype}`).to.be.below(
        boundOf(made) + 2 * roundingOfModel(rounded),
      );
    }
    if (LONG) console.log(`      seeds ${FIRST} to ${FIRST + MODELS - 1}: ${JSON.stringify(seen)}`);
    expect(seen.fused, 'fused nodes').to.be.above(MODELS);
    expect(seen.pieces, 'cut behind').to.be.above(MODELS / 8);
    expect(seen.sums, 'norms of sums').to.be.above(MODELS / 8);
    expect(seen.within, 'in graphs within').to.be.above(MODELS / 8);
  });
});
