/** The library and the function body on every onnxruntime-node that is supported, and what is said on an older one. */
import { expect } from 'chai';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { attentionModel, K as LENGTH, type AttentionOptions } from '../models/attention.js';
import { relativeDifference } from '../scripts/bench/difference.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { isOlder } from '../ts/version_order.js';
import { attentionInput } from './support/attention.js';
import { installRuntime, runWith, type Job, type JobResult } from './support/ort_versions.js';
import { expected, fusedModel, K, ROWS, TOLERANCE, x, type Form } from './support/session_models.js';
import { roundingOf } from '../scripts/bench/rounding.js';

const { float } = DataType;

/** Kinds of node: which inputs, which outputs. */
const forms: Record<string, Form> = {
  'gamma and beta': { gamma: float, beta: float },
  'no optional input': {},
  'all inputs': { gamma: float, beta: float, bias: float },
  'rms_norm': { norm: 'rms_norm', gamma: float },
  'no norm': { norm: 'none' },
  'splits and an absent second output': { gamma: float, beta: float, splits: [8, 4, 4] },
  'splits and the normalised input': { gamma: float, beta: float, splits: [8, 4, 4], emitNorm: true },
  'the normalised input alone': { gamma: float, emitNorm: true },
}; // prettier-ignore

/**
 * Kinds with an absent input before a present one. ONNX Runtime 1.22 and 1.23 read the type of the absent input before
 * they call a custom op's shape inference, and crash.
 */
const formsWithGaps: Record<string, Form> = {
  'an absent input in the middle': { gamma: float, bias: float },
  'two absent inputs before bias': { bias: float },
  'rms_norm with bias': { norm: 'rms_norm', gamma: float, bias: float },
  'no norm, bias': { norm: 'none', bias: float },
};

/** Layers whose rewritten form is one node: without a bias, with the normalised input read again; with a gap before bias. */
const LAYER: AttentionOptions = { n: LENGTH, biases: [], residual: true };
const LAYER_WITH_GAP: AttentionOptions = { norm: 'rms_norm', n: LENGTH, biases: ['q', 'k', 'v'] };
const layerInput = attentionInput();
const forLayer = { x: Array.from(layerInput.data as Float32Array), dims: [...layerInput.dims] };

function outputs(result: JobResult | undefined): Record<string, number[]> {
  if (!result) throw new Error('no result');
  if (!result.ok) throw new Error(result.message);
  return result.outputs;
}

describe('releases of onnxruntime-node', function () {
  this.timeout(600_000);
  let folder = '';
  const write = (name: string, bytes: Uint8Array): string => {
    const file = path.join(folder, name);
    fs.writeFileSync(file, bytes);
    return file;
  };
  const job = (model: string, more: Partial<Job> = {}): Job => ({
    model,
    x: Array.from(x),
    dims: [ROWS, K],
    ...more,
  });
  before(() => (folder = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-versions-'))));
  after(() => {
    fs.rmSync(folder, { recursive: true, force: true });
  });

  for (const version of ['1.22.0', '1.24.3', '1.27.0', '1.30.0']) {
    it(`${version}: runs the op in all its forms, by path and by bytes`, () => {
      const all = { ...forms, ...(isOlder(version, '1.24.0') ? {} : formsWithGaps) };
      const jobs = Object.values(all).map((form, i) =>
        job(write(`form${i}.onnx`, fusedModel(form)), { library: true, buffer: i % 2 === 1 }),
      );
      const report = runWith(installRuntime(version), jobs);
      expect(report.version).to.equal(version);
      Object.entries(all).forEach(([name, form], i) => {
        const wanted = expected(form);
        const found = outputs(report.results[i]);
        expect(Object.keys(found).sort(), name).to.deep.equal(Object.keys(wanted).sort());
        for (const [output, values] of Object.entries(wanted))
          expect(relativeDifference(values, found[output] ?? []), `${name}: ${output}`).to.be.lessThan(
            TOLERANCE,
          );
      });
    });

    it(`${version}: does not know the op without the library`, () => {
      const model = write('bare.onnx', fusedModel());
      const report = runWith(installRuntime(version), [
        job(model),
        job(model, { library: true }),
        job(model),
      ]);
      expect(report.results.map(({ ok }) => ok)).to.deep.equal([false, true, false]);
      const failed = report.results[2];
      expect(failed?.ok === false && failed.message).to.match(/QKVGemm/);
    });

    it(`${version}: runs a rewritten model with the library and without it`, () => {
      const original = attentionModel(LAYER);
      const { model, report: fuse } = fuseBytes(original);
      expect(fuse.fused).to.have.length(1);
      expect(fuse.functions).to.have.length(1);
      const fused = write('fused.onnx', model);
      const bodyless = write('bodyless.onnx', fuseBytes(original, { fallback: false }).model);
      const report = runWith(installRuntime(version), [
        job(write('original.onnx', original), forLayer),
        job(fused, forLayer),
        job(fused, { ...forLayer, library: true }),
        job(bodyless, forLayer),
        job(bodyless, { ...forLayer, library: true }),
      ]);
      const wanted = outputs(report.results[0]).y ?? [];
      expect(wanted).to.have.length(layerInput.size);
      for (const i of [1, 2, 4])
        expect(relativeDifference(wanted, outputs(report.results[i]).y ?? []), `job ${i}`).to.be.lessThan(
          TOLERANCE,
        );
      expect(report.results[3]?.ok).to.equal(false);
    });
  }

  it('states the runtime that a rewritten model needs, and leaves no gap among the inputs without need', () => {
    const needed = (bytes: Uint8Array, dtype: 'keep' | 'int8', fallback: boolean): string => {
      const { report } = fuseBytes(bytes, { dtype, fallback });
      expect(report.fused).to.have.length(1);
      return report.requires.onnxruntime;
    };
    for (const fallback of [true, false]) {
      expect(needed(attentionModel(LAYER), 'keep', fallback)).to.equal('1.22.0');
      expect(needed(attentionModel(LAYER), 'int8', fallback)).to.equal('1.22.0');
      expect(needed(attentionModel(LAYER_WITH_GAP), 'keep', fallback)).to.equal('1.24.1');
    }
    const int8 = write('int8.onnx', fuseBytes(attentionModel(LAYER), { dtype: 'int8' }).model);
    const rms = write('rms.onnx', fuseBytes(attentionModel(LAYER_WITH_GAP)).model);
    const original = write('rms-original.onnx', attentionModel(LAYER_WITH_GAP));
    const report = runWith(installRuntime('1.22.0'), [
      job(int8, forLayer),
      job(int8, { ...forLayer, library: true }),
      job(original, forLayer),
      job(rms, forLayer),
    ]);
    const values = report.results.map((result) => outputs(result).y ?? []);
    const [without = [], withIt = [], wanted = [], body = []] = values;
    for (const list of values) expect(list).to.have.length(layerInput.size);
    expect(relativeDifference(without, withIt)).to.be.lessThan(TOLERANCE + roundingOf(DataType.int8));
    expect(relativeDifference(wanted, body)).to.be.lessThan(TOLERANCE);
    const newer = runWith(installRuntime('1.24.3'), [job(rms, { ...forLayer, library: true })]);
    expect(relativeDifference(wanted, outputs(newer.results[0]).y ?? [])).to.be.lessThan(TOLERANCE);
  });

  it('1.20.1: says that it is too old and which release is needed; the function body runs', () => {
    const original = attentionModel(LAYER);
    const fused = write('fused.onnx', fuseBytes(original).model);
    const report = runWith(installRuntime('1.20.1'), [
      job(write('bare.onnx', fusedModel()), { library: true }),
      job(write('original.onnx', original), forLayer),
      job(fused, forLayer),
    ]);
    const [refused] = report.results;
    if (!refused || refused.ok) throw new Error('1.20.1 was not refused');
    expect(refused.code).to.equal('RUNTIME_UNSUPPORTED');
    expect(refused.message).to.contain('1.20.1').and.to.contain('1.22.0 or newer');
    const wanted = outputs(report.results[1]).y ?? [];
    expect(wanted).to.have.length(layerInput.size);
    expect(relativeDifference(wanted, outputs(report.results[2]).y ?? [])).to.be.lessThan(TOLERANCE);
  });
});
