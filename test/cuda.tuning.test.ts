/** Plans found by timing in the CUDA provider. Skipped, with the reason, where there is no GPU or no provider. */
import { expect } from 'chai';
import fs from 'node:fs';
import type * as ort from 'onnxruntime-node';
import { qkvGemmModel, randomOperands, type QkvGemmSpec } from '../models/qkv_gemm.js';
import { mismatches, reference } from '../models/qkv_gemm_reference.js';
import { DataType } from '../ts/onnx/tensor.js';
import { withQkvGemm } from '../ts/session/index.js';
import { testFolder } from './support/command.js';
import { whyNoGpu } from './support/cuda.js';
import { quiet } from './support/run.js';
import { runOp } from './support/run_op.js';
import { field, tuned, tuningFile } from './support/tuning.js';

const { float16, int8 } = DataType;
const cuda: ort.InferenceSession.SessionOptions = { ...quiet, executionProviders: ['cuda'] };

function spec(rows: number, form: Partial<QkvGemmSpec> = {}): QkvGemmSpec {
  return { dims: [rows, 256], n: 384, type: float16, weightType: float16, gamma: float16, ...form };
}

async function check(form: QkvGemmSpec, tune: 'cached' | 'on'): Promise<void> {
  const operands = randomOperands(form, 1);
  const actual = await runOp(qkvGemmModel(form, operands), withQkvGemm(cuda, { tune }));
  expect(
    mismatches(reference(form, operands, 'deviations', form.type === DataType.float ? 'TF32' : 'T'), actual),
  ).to.deep.equal([]);
}

describe('tuning on CUDA', function () {
  this.timeout(120_000);
  const folder = testFolder();
  const cacheBefore = process.env.QKVGEMM_CACHE_DIR;

  before(async function () {
    const why = await whyNoGpu();
    if (why === undefined) return;
    console.log(`  (nothing is timed on a GPU: ${why})`);
    this.skip();
  });
  beforeEach(() => (process.env.QKVGEMM_CACHE_DIR = folder()));
  afterEach(() => {
    if (cacheBefore === undefined) delete process.env.QKVGEMM_CACHE_DIR;
    else process.env.QKVGEMM_CACHE_DIR = cacheBefore;
  });

  for (const [what, form] of Object.entries<Partial<QkvGemmSpec>>({
    float16: {},
    float32: { type: DataType.float, weightType: DataType.float, gamma: DataType.float },
    'int8 weights': { weightType: int8, scale: { shape: [384] } },
    'int8 weights and activations': { weightType: int8, scale: { shape: [384] }, activationQuant: true },
  }))
    it(`keeps what it timed, and computes with it: ${what}`, async () => {
      for (const rows of [1, 12, 20, 30, 200]) await check(spec(rows, form), 'on');
      const entries = tuned(folder());
      expect(entries.map((entry) => Number(field(entry, 'rows'))).sort((a, b) => a - b)).to.deep.equal([
        1, 12, 32, 256,
      ]);
      for (const entry of entries) {
        expect(field(entry, 'device')).to.match(/ sm_\d+, \d+ multiprocessors, driver .* for CUDA \d+$/);
        expect(entry.plan).to.match(
          /^(stream|tile|hopper) \d+x\d+, (clusters of \dx\d, |parts of K: \d, )?rows /,
        );
        // Up to 16 rows of floats keep their accuracy, which stream plans alone do.
        if (form.type === DataType.float && Number(field(entry, 'rows')) <= 16)
          expect(entry.plan).to.match(/^stream /);
      }
      const text = fs.readFileSync(tuningFile(folder()), 'utf8');
      for (const rows of [1, 25, 200]) await check(spec(rows, form), 'cached');
      expect(fs.readFileSync(tuningFile(folder()), 'utf8')).to.equal(text);
    });

  it('times nothing where weights come with each call', async () => {
    await check(spec(12, { fed: ['weight'] }), 'on');
    expect(tuned(folder())).to.deep.equal([]);
  });

  it('computes right with every plan that a file may name', async () => {
    await check(spec(12), 'on');
    const [entry] = tuned(folder());
    if (entry === undefined) throw new Error('nothing was kept');
    for (const name of [
      'stream 16x16',
      'stream 96x16',
      'tile 64x32',
      'tile 128x128',
      'stream 16x8',
      'hopper 1x1',
    ]) {
      const entries = [{ ...entry, plan: `${name}, rows input` }];
      fs.writeFileSync(tuningFile(folder()), JSON.stringify({ version: 1, entries }));
      await check(spec(12), 'cached');
    }
  });
});
