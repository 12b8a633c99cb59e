/** Another project's custom-op library beside ours: onnxruntime-extensions, in the build that its npm package ships. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { ModelBuilder } from '../models/builder.js';
import { addQkvGemm, randomOperands, type QkvGemmSpec } from '../models/qkv_gemm.js';
import { cpuReference } from './support/cpu_reference.js';
import { relativeDifference } from '../scripts/bench/difference.js';
import { DataType } from '../ts/onnx/tensor.js';
import { DOMAIN } from '../ts/rewrite/function_body.js';
import { libraryPath, withCustomOps, withQkvGemm } from '../ts/session/index.js';
import { npm, root } from './support/ort_versions.js';
import { quiet } from './support/run.js';
import { K, N, ROWS, TOLERANCE } from './support/session_models.js';

const PACKAGE = 'com.github.asus4.onnxruntime-extensions@0.4.9';
const INTEGRITY =
  'sha512-aAt/rcVooUfftROQXTrQg6cIxO0nI5PmOt0i1jO99xhIW4JoBZwzSKSl2nROnCKh5TkMNRD2WIC0WEzGVJUM6Q==';
const MEMBER = 'package/Plugins/Linux/x64/libortextensions.so';

/** The library, in the build folder; fetched when it is not there. */
function extensionsLibrary(): string {
  const file = path.join(root, 'build', 'ort-extensions', '0.4.9', 'libortextensions.so');
  if (fs.existsSync(file)) return file;
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-extensions-'));
  try {
    npm(['pack', PACKAGE, '--ignore-scripts', '--pack-destination', work], work);
    const archive = fs.readdirSync(work).find((name) => name.endsWith('.tgz'));
    if (!archive) throw new Error(`npm pack ${PACKAGE} left no archive`);
    const hash = createHash('sha512').update(fs.readFileSync(path.join(work, archive)));
    expect(`sha512-${hash.digest('base64')}`, 'integrity of the package').to.equal(INTEGRITY);
    const tar = spawnSync('tar', ['-xzf', archive, MEMBER], { cwd: work, encoding: 'utf8' });
    if (tar.status !== 0) throw new Error(`tar: ${tar.stderr}`);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.copyFileSync(path.join(work, MEMBER), `${file}.part`);
    fs.renameSync(`${file}.part`, file);
    return file;
  } finally {
    fs.rmSync(work, { recursive: true, force: true });
  }
}

const spec: QkvGemmSpec = { dims: [ROWS, K], n: N, norm: 'none' };
const operands = randomOperands(spec);

/** y = x W by our op, negative and positive parts of it by NegPos, words in capitals by StringUpper. */
function mixedModel(): Uint8Array {
  const model = new ModelBuilder({ [DOMAIN]: 1, 'ai.onnx.contrib': 1 });
  addQkvGemm(model, spec, operands);
  model.input('words', ['words'], DataType.string);
  model.node('NegPos', ['y'], ['negative', 'positive'], { domain: 'ai.onnx.contrib' });
  model.node('StringUpper', ['words'], ['capitals'], { domain: 'ai.onnx.contrib' });
  for (const name of ['negative', 'positive']) model.output(name, ['rows', N]);
  model.output('capitals', ['words'], DataType.string);
  return model.finish();
}

describe('a second custom-op library', function () {
  this.timeout(600_000);
  let library = '';
  before(function () {
    if (process.arch !== 'x64') {
      console.log(`  (onnxruntime-extensions' package has no library for ${process.arch})`);
      this.skip();
    }
    library = extensionsLibrary();
  });

  const wanted = cpuReference(spec, operands).y?.values ?? new Float64Array();
  const input = operands.input?.values ?? new Float32Array();

  async function check(options: ort.InferenceSession.SessionOptions): Promise<void> {
    const session = await ort.InferenceSession.create(mixedModel(), options);
    const results = await session.run({
      x: new ort.Tensor('float32', input, [ROWS, K]),
      words: new ort.Tensor('string', ['query', 'Key', 'VALUE'], [3]),
    });
    await session.release();
    const found = (name: string): Float32Array => results[name]?.data as Float32Array;
    const near = (name: string, values: Float64Array): void => {
      expect(relativeDifference(values, found(name)), name).to.be.lessThan(TOLERANCE);
    };
    near('y', wanted);
    near(
      'negative',
      wanted.map((value) => Math.min(value, 0)),
    );
    near(
      'positive',
      wanted.map((value) => Math.max(value, 0)),
    );
    expect(results.capitals?.data).to.deep.equal(['QUERY', 'KEY', 'VALUE']);
  }

  it('serves one model together with ours, in either order', async () => {
    await check(withCustomOps(quiet, [libraryPath(), library]));
    await check(withCustomOps(quiet, [library, libraryPath()]));
    await check(withQkvGemm(withCustomOps(quiet, [library])));
    await check(withCustomOps(withQkvGemm(quiet), [library]));
  });

  it('serves sessions that are created at once', async () => {
    await Promise.all(Array.from({ length: 8 }, () => check(withCustomOps(withQkvGemm(quiet), [library]))));
  });

  it('is not there where only ours is named, and the other way round', async () => {
    for (const options of [withQkvGemm(quiet), withCustomOps(quiet, [library]), quiet]) {
      let message = '';
      try {
        await ort.InferenceSession.create(mixedModel(), options);
      } catch (error) {
        message = error instanceof Error ? error.message : String(error);
      }
      expect(message).to.match(/QKVGemm|NegPos|StringUpper|ai\.onnx\.contrib|com\.deepspeed/);
    }
  });
});
