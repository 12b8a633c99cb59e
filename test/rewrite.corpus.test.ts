import { expect } from 'chai';
import { worstDifference } from '../scripts/bench/difference.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { withQkvGemm } from '../ts/session/index.js';
import type { Target } from '../ts/rewrite/options.js';
import { corpusInputs, corpusModel, corpusModels, withoutTraining } from '../models/corpus.js';
import { quiet, runModel } from './support/run.js';
import { roundingOfModel } from '../scripts/bench/rounding.js';

/**
 * Fused nodes a layer, from the architecture, for each choice of targets. Of the usual ones, the first norm leads to
 * attention and the second to the MLP, and the attention's output and the MLP's second half are projections without a norm.
 */
const TARGETS = { qkv: 1, 'qkv,mlp': 2, 'qkv,mlp,linear': 4 } as const;
type Targets = keyof typeof TARGETS;
const LAYERS = 2;
/** Architectures that differ, by family. */
const OTHERS: Record<string, Record<Targets, number>> = {
  // One norm for attention and MLP, side by side.
  phi: { 'qkv': 1, 'qkv,mlp': 1, 'qkv,mlp,linear': 3 },
  // Norms stand behind attention and MLP; Q, K, V and the MLP's first half read the residual as it is.
  olmo2: { 'qkv': 0, 'qkv,mlp': 0, 'qkv,mlp,linear': 4 },
}; // prettier-ignore
const USUAL = [
  'bert',
  'bloom',
  'clip_text',
  'distilbert',
  'gemma',
  'gpt2',
  'gpt_neox',
  'llama',
  'qwen2',
  't5_encoder',
  'vit',
  'whisper_encoder',
];
/**
 * Calibrated models round activations between norm and projections, which the fused op would not. Without a norm, the
 * projections read what has been rounded.
 */
const CALIBRATED = 'qdq8';
/** Models whose weights are integers. */
const INTEGERS = /\.(nbits8|qdq8|dynint8)$/;
/** Models that round activations when they run; the fused nodes do not. */
const DYNAMIC = /\.dynint8$/;

/** `family.exporter` or `family.exporter.variant`. */
function expectedCount(name: string, targets: Targets = 'qkv'): number | undefined {
  const [family = '', , variant = ''] = name.split('.');
  const layer = OTHERS[family] ?? (USUAL.includes(family) ? TARGETS : undefined);
  if (variant === CALIBRATED && !targets.includes('linear')) return 0;
  return layer && LAYERS * layer[targets];
}

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

/** float16 graphs round every intermediate to 11 bits; the fused op rounds once. */
const boundOf = (name: string): number =>
  name.endsWith('.fp16') ? 4e-3 : DYNAMIC.test(name) ? DYNAMIC_BOUND : 2e-5;

/**
 * What the library's kernels round comes on top. Where activations are quantised behind a product, its rounding moves some
 * of them by a whole step, as in dynamically quantised models.
 */
function allowanceOf(name: string, model: Uint8Array): number {
  const rounding = roundingOfModel(model);
  return rounding > 0 && /\.(qdq8|dynint8)$/.test(name) ? DYNAMIC_BOUND : rounding;
}

describe('the corpus', () => {
  const models = corpusModels();

  it('holds no architecture that the table of expected counts lacks', () => {
    expect(models.filter((name) => expectedCount(name) === undefined)).to.deep.equal([]);
  });

  for (const name of models) {
    for (const targets of Object.keys(TARGETS) as Targets[]) {
      const expected = expectedCount(name, targets);
      const options = { targets: targets.split(',') as Target[] };

      it(`${name}, ${targets}: ${expected} fused nodes, and the same answers three ways`, async () => {
        const original = corpusModel(name);
        const { report } = fuseBytes(original, options);
        expect(report.fused.length, JSON.stringify(report.refused, undefined, 1)).to.equal(expected);

        const steady = withoutTraining(original);
        const { model } = fuseBytes(steady, options);
        const inputs = corpusInputs(name);
        const reference = await runModel(steady, inputs);
        const bound = boundOf(name);
        expect(
          worstDifference(reference, await runModel(model, inputs, withQkvGemm(quiet))),
          'with the library',
        ).to.be.below(bound + allowanceOf(name, model));
        expect(worstDifference(reference, await runModel(model, inputs)), 'without the library').to.be.below(
          bound,
        );
      });
    }
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
        const allowance = allowanceOf(name, model);
        expect(worstDifference(reference, fused), `${name} against the original`).to.be.below(
          bound + allowance,
        );
        expect(
          worstDifference(await runModel(model, inputs), fused),
          `${name} with against without`,
        ).to.be.below(2e-5 + allowance);
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
