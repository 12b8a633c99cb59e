import { expect } from 'chai';
import { worstDifference } from '../scripts/bench/difference.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { withQkvGemm } from '../ts/session/index.js';
import { corpusInputs, corpusModel, corpusModels, withoutTraining } from '../models/corpus.js';
import { quiet, runModel } from './support/run.js';

/** Fused nodes per model: each has two layers, and OLMo-2 normalises behind its attention. */
const EXPECTED: [RegExp, number][] = [
  [/^bert\.(ts13|ts17|dynamo18)$/, 2],
  [/^(distilbert|gpt2|gpt_neox|qwen2|vit|clip_text|t5_encoder)\.[a-z]+\d+$/, 2],
  [/^llama\.(ts13|ts17|dynamo18)$/, 2],
  [/^whisper_encoder\.ts17$/, 2],
  [/^olmo2\./, 0],
  [/^(bert\.ts17|llama\.dynamo18)\.(nbits8|dynint8)$/, 2],
  // Calibrated models round activations between norm and projections, which the fused op would not.
  [/^(bert\.ts17|llama\.dynamo18)\.qdq8$/, 0],
];
/** Models whose weights are integers. */
const INTEGERS = /\.(nbits8|qdq8|dynint8)$/;
/** Models that round activations when they run; the fused nodes do not. */
const DYNAMIC = /\.dynint8$/;

/**
 * Between such a model and the fused one, of the largest output: what rounding activations to 8 bits costs, 1/255 of their
 * range in each product, passed on by two layers, whose other products stay as they were.
 */
const DYNAMIC_BOUND = 4e-2;

/** Root of the mean squared difference of all outputs' elements. */
function meanDifference(expected: readonly Float32Array[], actual: readonly Float32Array[]): number {
  let [sum, count] = [0, 0];
  expected.forEach((values, output) =>
    values.forEach((value, i) => {
      sum += (value - (actual[output]?.[i] ?? NaN)) ** 2;
      count++;
    }),
  );
  return Math.sqrt(sum / count);
}

describe('the corpus', () => {
  const models = corpusModels();

  for (const name of models) {
    const expected = EXPECTED.find(([pattern]) => pattern.test(name))?.[1];
    if (expected === undefined) continue;

    it(`${name}: ${expected} fused nodes, and the same answers three ways`, async () => {
      const original = corpusModel(name);
      const { report } = fuseBytes(original);
      expect(report.fused.length, JSON.stringify(report.refused, undefined, 1)).to.equal(expected);

      const steady = withoutTraining(original);
      const { model } = fuseBytes(steady);
      const inputs = corpusInputs(name);
      const reference = await runModel(steady, inputs);
      const bound = DYNAMIC.test(name) ? DYNAMIC_BOUND : 2e-5;
      expect(
        worstDifference(reference, await runModel(model, inputs, withQkvGemm(quiet))),
        'with the library',
      ).to.be.below(bound);
      expect(worstDifference(reference, await runModel(model, inputs)), 'without the library').to.be.below(
        bound,
      );
    });
  }

  it('dynamically quantised models come no farther from the float model that they were made of', async function () {
    const dynamic = models.filter((name) => DYNAMIC.test(name));
    if (dynamic.length === 0) this.skip();
    for (const name of dynamic) {
      const inputs = corpusInputs(name);
      const float = await runModel(corpusModel(name.replace(DYNAMIC, '')), inputs);
      const original = corpusModel(name);
      const { model } = fuseBytes(original);
      const before = meanDifference(float, await runModel(original, inputs));
      const [after, without] = [
        meanDifference(float, await runModel(model, inputs, withQkvGemm(quiet))),
        meanDifference(float, await runModel(model, inputs)),
      ];
      for (const error of [after, without]) expect(error, `${name}, before ${before}`).to.be.at.most(before);
    }
  });

  it('every model, whatever is fused in it, runs both ways as before', async function () {
    if (models.length === 0) this.skip();
    for (const name of models) {
      const steady = withoutTraining(corpusModel(name));
      const { model } = fuseBytes(steady);
      const inputs = corpusInputs(name);
      const reference = await runModel(steady, inputs);
      // float16 graphs round every intermediate to 11 bits; the fused op rounds once.
      const bound = name.endsWith('.fp16') ? 4e-3 : DYNAMIC.test(name) ? DYNAMIC_BOUND : 2e-5;
      expect(
        worstDifference(reference, await runModel(model, inputs, withQkvGemm(quiet))),
        `${name} with`,
      ).to.be.below(bound);
      expect(worstDifference(reference, await runModel(model, inputs)), `${name} without`).to.be.below(bound);
    }
  });

  // What rounding the weights costs, of the largest output: 2^-11 and 2^-8 per weight, 1/254 of a column's largest for
  // int8, averaged over dot products and passed through two layers of these tiny models.
  const WEIGHT_BOUNDS = { fp16: 2e-3, bf16: 2e-2, int8: 4e-2 } as const;
  for (const dtype of ['fp16', 'bf16', 'int8'] as const) {
    it(`${dtype} weights: close to the original, and the same with and without the library`, async function () {
      if (models.length === 0) this.skip();
      for (const name of models) {
        const steady = withoutTraining(corpusModel(name));
        const { model, report } = fuseBytes(steady, { dtype });
        if (report.fused.length === 0 || name.endsWith('.fp16')) continue;
        const inputs = corpusInputs(name);
        const reference = await runModel(steady, inputs);
        const fused = await runModel(model, inputs, withQkvGemm(quiet));
        const bound = DYNAMIC.test(name) ? DYNAMIC_BOUND : INTEGERS.test(name) ? 2e-5 : WEIGHT_BOUNDS[dtype];
        expect(worstDifference(reference, fused), `${name} against the original`).to.be.below(bound);
        expect(
          worstDifference(await runModel(model, inputs), fused),
          `${name} with against without`,
        ).to.be.below(2e-5);
        for (const site of report.fused) {
          // Weights that are integers already stay as they are.
          if (INTEGERS.test(name)) expect(site, name).to.not.have.property('weightSqnrDb');
          else expect(site.weightSqnrDb, name).to.be.above({ fp16: 60, bf16: 40, int8: 30 }[dtype]);
        }
      }
    });
  }

  it('is deterministic: the same input gives the same bytes', function () {
    if (models.length === 0) this.skip();
    for (const name of models) {
      const bytes = corpusModel(name);
      expect(Buffer.compare(fuseBytes(bytes).model, fuseBytes(bytes).model), name).to.equal(0);
    }
  });
});
