/**
 * Models of many architectures and export paths: small ones that come with the repository, and, where QKVGEMM_MODELS names
 * a folder, all that models/export/ makes.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { corpusInputs, modelsIn } from '../models/corpus.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { fuseFile } from '../ts/fuse_file.js';
import type { Target } from '../ts/rewrite/options.js';
import { withQkvGemm } from '../ts/session/index.js';
import { quiet, runModel } from './support/run.js';

const TARGETS = ['qkv', 'qkv,mlp', 'qkv,mlp,linear'] as const;
type Counts = readonly [number, number, number];

/** Fused nodes of two layers for each choice of targets, from the architecture. */
const FAMILIES: [Counts, string][] = [
  // Two norms a layer, before attention and before the MLP, and a projection without a norm behind each.
  [[2, 4, 8], 'roberta mpnet esm layoutlm nomic_bert modernbert torch_prenorm bart_encoder deit beit siglip clip_vision blip_vision dinov2 dinov2_swiglu'],
  // As well a norm before the projection to the vocabulary; of falcon_new, norms of attention's own.
  [[2, 5, 9], 'mistral mistral_cache qwen3 qwen3_cache gemma2 gemma3 phi3 falcon_new opt stablelm bigcode mpt granite smollm3 starcoder2 nemotron glm olmo persimmon biogpt xglm helium gpt_neo'],
  // One norm for attention and MLP.
  [[2, 3, 7], 'falcon cohere cohere2 gptj codegen stablelm_parallel'],
  // Weights of experts are chosen when the model runs; the router is a projection that leads to none of them.
  [[2, 3, 7], 'mixtral qwen3_moe olmoe'],
  // Low ranks: Q and K, V have a norm before their second factor.
  [[6, 9, 13], 'deepseek_v3'],
  // A projection of the embeddings between their norm and the first layer, which is fused with `mlp`.
  [[1, 4, 9], 'electra albert rembert'],
  // Nobody but its projections reads a norm that moves behind a Transpose; here the residual does.
  [[0, 2, 8], 'torch_postnorm'],
  // The mask is multiplied in between the embeddings' norm and the first layer.
  [[1, 3, 8], 'deberta_v2'],
  // As well projections of the relative positions.
  [[1, 3, 9], 'deberta'],
  // Convolutions beside attention, with projections of their own.
  [[2, 4, 10], 'convbert'],
  // No norms at all.
  [[0, 0, 17], 'mobilebert'],
  // Attention, attention to the encoder, MLP; K and V of the encoder's states come from one value in both layers.
  [[4, 6, 13], 'bart_decoder mbart_decoder whisper_decoder trocr_decoder t5_decoder mt5_decoder'],
  // No norm of the embeddings.
  [[3, 5, 13], 'marian_decoder'],
  // A norm of the features before they are projected.
  [[2, 5, 9], 'wav2vec2 wav2vec2_stable hubert'],
  // Two stages of two layers: rows are cut into windows and rolled between norm and projections.
  [[4, 9, 17], 'swin'],
  // Windows that are padded with zeros, whose norm is not zero, in the first layer.
  [[1, 3, 8], 'sam_vision'],
  // A norm of the shortened sequence, for K and V.
  [[3, 5, 9], 'segformer'],
  // No attention.
  [[0, 2, 4], 'convnext'],
]; // prettier-ignore

/** Models that differ from their family, and why. */
const EXCEPTIONS: [RegExp, Counts][] = [
  [/\.nbits4$/, [0, 0, 0]], // 4 bits
  [/^roberta\.dynamo18\.script_ort$/, [0, 2, 6]], // Attention has the weights in it
  [/^whisper_decoder\.dynamo18\.script_ort$/, [2, 4, 11]], // Attention likewise
  [/^helium\.dynamo18$/, [0, 0, 9]], // the exporter leaves out an epsilon of 1e-8
  [/^swin\.ts/, [0, 5, 17]], // how much is padded is computed when the model runs
  [/^opt\.ts14\.ort_ext$/, [2, 3, 7]], // FusedGemm has ReLU in it
  [/^wav2vec2\.ts14\.ort_ext$/, [2, 4, 9]], // RMSNorm with a shift behind it
  [/^deberta\.ts/, [1, 3, 10]], // the positions are cut once for each layer
];

/** What ONNX Runtime itself does not run: the counts are checked. */
const NOT_RUN =
  /^((mistral|mistral_cache|qwen3|gemma2|gemma3|phi3|modernbert)\.dynamo23|cohere2?\.ts|helium\.ts|(?!roberta|whisper).*script_ort|.*bf16$)/;
const RUNS_ALL_THE_SAME = /^mistral\.dynamo23raw$/;

function expectedCounts(name: string): Counts | undefined {
  const [family = ''] = name.split('.');
  return (
    EXCEPTIONS.find(([pattern]) => pattern.test(name))?.[1] ??
    FAMILIES.find(([, families]) => families.split(' ').includes(family))?.[0]
  );
}

/** Activations of 16 bits round every intermediate. Those of 8 bits, which the fused op does not have, are another matter. */
const boundOf = (name: string): number =>
  /\.(fp16(io)?|tfopt16)$/.test(name) ? 4e-3 : DYNAMIC.test(name) ? 0.1 : 2e-5;
/** Exported in float16: compared with what the original loses against the float32 model. */
const HALF = /\.(ts17|dynamo18)half$/;
const DYNAMIC = /\.dynu?int8$/;

/** ONNX Runtime's optimisations make products of rounded activations of DequantizeLinear and MatMul; none shall differ for that. */
const settingsOf = (name: string): ort.InferenceSession.SessionOptions =>
  name.endsWith('.qdqw8') ? { ...quiet, graphOptimizationLevel: 'disabled' } : quiet;

/** The original without optimisations; some float16 models do not load without, because Casts are missing then. */
async function reference(file: string, inputs: readonly ort.Tensor[]): Promise<Float32Array[]> {
  try {
    return await runModel(file, inputs, { ...quiet, graphOptimizationLevel: 'disabled' });
  } catch {
    return await runModel(file, inputs, quiet);
  }
}

const here = path.dirname(fileURLToPath(import.meta.url));
const FOLDERS = [path.join(here, '..', 'models', 'fixtures', 'exported')];
const given = process.env.QKVGEMM_MODELS;
if (given === undefined) console.log('  (QKVGEMM_MODELS names no folder of what models/export/ makes)');
else FOLDERS.push(given);

for (const folder of FOLDERS) {
  describe(`exported models in ${folder}`, () => {
    const models = modelsIn(folder);
    let scratch = '';
    before(() => {
      scratch = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-breadth-'));
    });
    after(() => {
      fs.rmSync(scratch, { recursive: true });
    });

    it('there are some, and the table of expected counts has them all', () => {
      expect(models).to.not.be.empty;
      expect(models.filter((name) => expectedCounts(name) === undefined)).to.deep.equal([]);
    });

    for (const name of models) {
      TARGETS.forEach((targets, i) => {
        const count = expectedCounts(name)?.[i];
        it(`${name}, ${targets}: ${count} fused nodes, and the same answers three ways`, async function () {
          this.timeout(60_000);
          const file = path.join(folder, name, 'model.onnx');
          const output = path.join(scratch, `${name}.onnx`);
          // No session of the CPU's loads a bfloat16 model.
          const verify = !name.endsWith('bf16');
          const options = { targets: targets.split(',') as Target[], overwrite: true, verify };
          const { report } = await fuseFile(file, output, options);
          expect(report.fused.length, JSON.stringify(report.refused, undefined, 1)).to.equal(count);
          if (count === 0) return;
          const inputs = corpusInputs(name, folder);
          if (NOT_RUN.test(name) && !RUNS_ALL_THE_SAME.test(name)) {
            let failed = false;
            await reference(file, inputs).catch(() => (failed = true));
            expect(failed, 'the original fails').to.equal(true);
            return;
          }
          const original = await reference(file, inputs);
          const wide = name.replace(HALF, '.dynamo18');
          const expected = HALF.test(name)
            ? await reference(path.join(folder, wide, 'model.onnx'), corpusInputs(wide, folder))
            : original;
          const bound = HALF.test(name) ? 2 * worstDifference(expected, original) : boundOf(name);
          const settings = settingsOf(name);
          for (const [how, session] of [
            ['with the library', withQkvGemm(settings)],
            ['without the library', settings],
          ] as const)
            expect(worstDifference(expected, await runModel(output, inputs, session)), how).to.be.below(bound);
        });
      });
    }

    it('dynamically quantised models come no farther from the float model that they were made of', async function () {
      this.timeout(120_000);
      const dynamic = models.filter((name) => DYNAMIC.test(name) && models.includes(name.replace(DYNAMIC, '')));
      if (dynamic.length === 0) this.skip();
      for (const name of dynamic) {
        const inputs = corpusInputs(name, folder);
        const [float, original] = [name.replace(DYNAMIC, ''), name].map((n) => path.join(folder, n, 'model.onnx'));
        const output = path.join(scratch, `${name}.onnx`);
        await fuseFile(original ?? '', output, { targets: ['qkv', 'mlp', 'linear'], overwrite: true });
        const truth = await runModel(float ?? '', inputs, quiet);
        const before = meanDifference(truth, await runModel(original ?? '', inputs, quiet));
        for (const settings of [withQkvGemm(quiet), quiet])
          expect(meanDifference(truth, await runModel(output, inputs, settings)), `${name}, before ${before}`).to.be.at.most(before);
      }
    });
  }); // prettier-ignore
}

/** Root of the mean squared difference of all outputs' elements. */
function meanDifference(expected: readonly Float32Array[], actual: readonly Float32Array[]): number {
  const squares = expected.flatMap((values, output) =>
    Array.from(values, (value, i) => (value - (actual[output]?.[i] ?? NaN)) ** 2),
  );
  return Math.sqrt(squares.reduce((a, b) => a + b, 0) / squares.length);
}
