/**
 * The op in onnxruntime-node's CUDA provider: every form of the contract, what breaks it, rows and runs at once, and where
 * the nodes run. Skipped, with the reason, where there is no GPU or no provider.
 */
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { attentionModel, K as DEPTH } from '../models/attention.js';
import { uniform } from '../models/builder.js';
import { qkvGemmModel, randomOperands, type QkvGemmSpec } from '../models/qkv_gemm.js';
import { mismatches, reference, type Products } from '../models/qkv_gemm_reference.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { copies, placement } from '../scripts/bench/gpu/profile.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { cudaDevices } from '../ts/session/addon.js';
import { withQkvGemm } from '../ts/session/index.js';
import { whyNoGpu } from './support/cuda.js';
import { SECTIONS } from './support/op_cases.js';
import { attributes, floatForm, inputs, weights } from './support/op_mistakes.js';
import { quiet, runModel } from './support/run.js';
import { runOp, runSession } from './support/run_op.js';

const { float, float16, bfloat16, int8 } = DataType;
const cuda: ort.InferenceSession.SessionOptions = { ...quiet, executionProviders: ['cuda'] };

/** Tells this library, and cuBLAS when it is loaded, whether float32 may be rounded to TensorFloat32. */
const OVERRIDE = 'NVIDIA_TF32_OVERRIDE';
const overrideBefore = process.env[OVERRIDE];

function setOverride(value: string | undefined): void {
  if (value === undefined) delete process.env[OVERRIDE];
  else process.env[OVERRIDE] = value;
}

/** What is out of bounds for kernels that form such products. */
async function check(spec: QkvGemmSpec, products: Products = 'T'): Promise<string[]> {
  const operands = randomOperands(spec, 1);
  const actual = await runOp(qkvGemmModel(spec, operands), withQkvGemm(cuda));
  return mismatches(reference(spec, operands, 'deviations', products), actual);
}

/** The same of several, by name. */
async function checkAll(cases: Record<string, QkvGemmSpec>, products?: Products): Promise<object> {
  const wrong: Record<string, string[]> = {};
  for (const [name, spec] of Object.entries(cases)) {
    const found = await check(spec, products).catch((error: unknown) => [String(error)]);
    if (found.length > 0) wrong[name] = found.slice(0, 3);
  }
  return wrong;
}

/** Shapes that the kernels' tiles do not divide, and that they do, one row to many. */
function tileShapes(): Record<string, QkvGemmSpec> {
  const cases: Record<string, QkvGemmSpec> = {};
  for (const type of [float, float16, bfloat16])
    for (const int of [false, true])
      for (const [m, k, splits] of [
        [1, 256, [128, 64, 64]],
        [16, 248, [130, 6, 64]],
        [17, 257, [64, 64, 65]],
        [130, 128, [128, 128, 128]],
        [300, 72, [200]],
      ] as const) {
        const n = splits.reduce((sum: number, width) => sum + width, 0);
        const form = int ? { weightType: int8, scale: { shape: [n] } } : { weightType: type };
        cases[`${m} rows, K=${k}, splits ${splits.join(', ')}, type ${type}${int ? ', int8' : ''}`] = {
          dims: [m, k],
          n,
          type,
          splits,
          gamma: type,
          beta: type,
          bias: type,
          ...form,
        };
      }
  return cases;
}

describe('the CUDA provider', function () {
  before(async function () {
    // What ONNX Runtime computes itself is not to be rounded. cuBLAS is loaded with the first session.
    setOverride('0');
    const why = await whyNoGpu();
    if (why === undefined) return;
    setOverride(overrideBefore);
    console.log(`  (nothing is tested on a GPU: ${why})`);
    this.skip();
  });

  after(() => setOverride(overrideBefore));

  for (const [section, cases] of Object.entries({ ...SECTIONS, tiles: tileShapes() })) {
    it(`computes: ${section}`, async () => {
      expect(await checkAll(cases)).to.deep.equal({});
    });

    it(`computes with float32 rounded to TensorFloat32: ${section}`, async () => {
      const floats = Object.entries(cases).filter(([, spec]) => (spec.type ?? float) === float);
      expect(floats).not.to.deep.equal([]);
      setOverride(undefined);
      try {
        expect(await checkAll(Object.fromEntries(floats), 'TF32')).to.deep.equal({});
      } finally {
        setOverride('0');
      }
    });
  }

  it('says what is wrong in the words of the CPU', async () => {
    for (const [name, { spec = floatForm, operands, settings, message }] of Object.entries({
      ...attributes,
      ...weights,
      ...inputs,
    })) {
      const model = qkvGemmModel(spec, { ...randomOperands(spec), ...operands }, settings);
      const found = await runOp(model, withQkvGemm(cuda)).then(
        () => '',
        (error: unknown) => String(error),
      );
      expect(found, name).to.contain(`com.deepspeed.QKVGemm node 'qkv': ${message}`);
    }
  });

  // A session each, on the device of that number.
  for (const [fed, devices] of [
    [[], [0]],
    [['weight'], [0]],
    [[], [0, 0]],
    [['weight'], [0, 0]],
    [[], [0, 1]],
    [['weight'], [0, 1]],
  ] as const) {
    const what = `weights ${fed.length > 0 ? 'fed' : 'constant'}, sessions on devices ${devices.join(' and ')}`;
    it(`takes any number of rows, in turn and at once; ${what}`, async function () {
      if (cudaDevices().length <= Math.max(...devices)) {
        console.log(`      (there are not ${Math.max(...devices) + 1} CUDA devices)`);
        this.skip();
      }
      const spec: QkvGemmSpec = {
        dims: [2, 3, 40],
        n: 44,
        splits: [20, 12, 12],
        type: float16,
        weightType: float16,
        gamma: float16,
        beta: float,
        emitNorm: true,
        fed,
      };
      const operands = randomOperands(spec);
      const { bytes } = qkvGemmModel(spec, operands, { inputDims: ['batch', 'sequence', 40] });
      const sessions: ort.InferenceSession[] = [];
      for (const deviceId of devices) {
        const executionProviders = [{ name: 'cuda', deviceId }] as const;
        sessions.push(
          await ort.InferenceSession.create(bytes, withQkvGemm({ ...quiet, executionProviders })),
        );
      }
      const runs = [[1, 1], [5, 9], [0, 4], [1, 97], [2, 3], [1, 700], [1, 1]].map((lead, seed) => {
        const form = { ...spec, dims: [...lead, 40] };
        const own = { ...operands, input: randomOperands(form, seed + 2).input };
        const expected = reference(form, own, 'deviations', 'T');
        const { feeds } = qkvGemmModel(form, own);
        return async (): Promise<void> => {
          for (const own of await Promise.all(sessions.map((session) => runSession(session, feeds))))
            expect(mismatches(expected, own), String(lead)).to.deep.equal([]);
        };
      }); // prettier-ignore
      for (const run of runs) await run();
      for (let round = 0; round < 20; round++) await Promise.all([...runs, ...runs].map((run) => run()));
      for (const session of sessions) await session.release();
    });
  }

  it('runs the fused nodes of a model on the device, with no copies around them', async () => {
    const original = attentionModel();
    const { model, report } = fuseBytes(original);
    expect(report.fused).to.have.length(1);
    const x = new ort.Tensor('float32', uniform(2 * 5 * DEPTH, 1, 3), [2, 5, DEPTH]);
    const placed = await placement(model, [x], withQkvGemm(cuda));
    expect(placed.ops.QKVGemm).to.equal(1);
    expect(placed.providers).to.deep.equal(['CUDAExecutionProvider']);
    expect(copies(placed)).to.equal(copies(await placement(original, [x], cuda)));
    const expected = await runModel(original, [x], quiet);
    expect(worstDifference(expected, await runModel(model, [x], withQkvGemm(cuda)))).to.be.below(2e-5);
  });

  it('serves a session on the CPU beside one on the device', async () => {
    const spec = floatForm;
    const operands = randomOperands(spec);
    const { bytes, feeds } = qkvGemmModel(spec, operands);
    const both = [withQkvGemm(cuda), withQkvGemm({ ...withQkvGemm(cuda), executionProviders: ['cpu'] })];
    const sessions = await Promise.all(both.map((options) => ort.InferenceSession.create(bytes, options)));
    for (const session of [...sessions, ...sessions])
      expect(mismatches(reference(spec, operands), await runSession(session, feeds))).to.deep.equal([]);
    for (const session of sessions) await session.release();
  });
});
