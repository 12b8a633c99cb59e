import { expect } from 'chai';
import { worstDifference } from '../scripts/bench/difference.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { withQkvGemm } from '../ts/session/index.js';
import { corpusInputs, corpusModel, corpusModels, withoutTraining } from '../models/corpus.js';
import { quiet, runModel } from './support/run.js';

/**
 * Fused nodes a model, from its architecture: two layers each, and each layer has one norm that leads to attention. Where
 * the norm stands behind the attention (OLMo-2) there is none.
 */
const LAYERS = 2;
const ARCHITECTURES: Record<string, number> = {
  bert: LAYERS,
  bloom: LAYERS,
  clip_text: LAYERS,
  distilbert: LAYERS,
  gemma: LAYERS,
  gpt2: LAYERS,
  gpt_neox: LAYERS,
  llama: LAYERS,
  olmo2: 0,
  phi: LAYERS,
  qwen2: LAYERS,
  t5_encoder: LAYERS,
  vit: LAYERS,
  whisper_encoder: LAYERS,
};
/** Forms of weights that are not read yet. */
const UNREAD = ['dynint8', 'qdq8', 'nbits8'];

/** `family.exporter` or `family.exporter.variant`. */
function expectedCount(name: string): number | undefined {
  const [family = '', , variant = ''] = name.split('.');
  if (UNREAD.includes(variant)) return 0;
  return ARCHITECTURES[family];
}

/** float16 graphs round every intermediate to 11 bits; the fused op rounds once. */
const boundOf = (name: string): number => (name.endsWith('.fp16') ? 4e-3 : 2e-5);

describe('the corpus', () => {
  const models = corpusModels();

  it('holds no architecture that the table of expected counts lacks', () => {
    expect(models.filter((name) => expectedCount(name) === undefined)).to.deep.equal([]);
  });

  for (const name of models) {
    const expected = expectedCount(name);

    it(`${name}: ${expected} fused nodes, and the same answers three ways`, async () => {
      const original = corpusModel(name);
      const { report } = fuseBytes(original);
      expect(report.fused.length, JSON.stringify(report.refused, undefined, 1)).to.equal(expected);

      const steady = withoutTraining(original);
      const { model } = fuseBytes(steady);
      const inputs = corpusInputs(name);
      const reference = await runModel(steady, inputs);
      const bound = boundOf(name);
      expect(
        worstDifference(reference, await runModel(model, inputs, withQkvGemm(quiet))),
        'with the library',
      ).to.be.below(bound);
      expect(worstDifference(reference, await runModel(model, inputs)), 'without the library').to.be.below(
        bound,
      );
    });
  }

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
        expect(worstDifference(reference, fused), `${name} against the original`).to.be.below(
          WEIGHT_BOUNDS[dtype],
        );
        expect(
          worstDifference(await runModel(model, inputs), fused),
          `${name} with against without`,
        ).to.be.below(2e-5);
        for (const site of report.fused)
          expect(site.weightSqnrDb, name).to.be.above({ fp16: 60, bf16: 40, int8: 30 }[dtype]);
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
