/** Sessions with and without the library, side by side, in one process. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import * as ort from 'onnxruntime-node';
import { relativeDifference } from '../scripts/bench/difference.js';
import {
  installSessionHook,
  libraryPath,
  uninstallSessionHook,
  withCustomOps,
  withQkvGemm,
} from '../ts/session/index.js';
import { quiet } from './support/run.js';
import { expected, fusedModel, K, ROWS, TOLERANCE, x } from './support/session_models.js';

const bytes = fusedModel();
const numbersOf = expected();
const script = new URL('./support/session_worker.ts', import.meta.url).href;

async function failure(promise: Promise<unknown>): Promise<string> {
  try {
    await promise;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  return '';
}

async function check(session: ort.InferenceSession): Promise<void> {
  const { y } = await session.run({ x: new ort.Tensor('float32', x, [ROWS, K]) });
  expect(relativeDifference(numbersOf.y ?? [], y?.data as Float32Array)).to.be.lessThan(TOLERANCE);
}

async function createAndCheck(model: Uint8Array | string, options = withQkvGemm(quiet)): Promise<void> {
  const session =
    typeof model === 'string'
      ? await ort.InferenceSession.create(model, options)
      : await ort.InferenceSession.create(model, options);
  await check(session);
  await session.release();
}

function runWorker(rounds: number): Promise<Float32Array> {
  return new Promise((resolve, reject) => {
    let result: Float32Array | undefined;
    // A worker does not inherit the loader of TypeScript modules on every release of Node.
    const worker = new Worker(
      "const { script } = require('worker_threads').workerData; import('tsx/esm/api').then((tsx) => { tsx.register(); return import(script); });",
      {
        eval: true,
        execArgv: [],
        workerData: { script, model: bytes, input: x, dims: [ROWS, K], rounds },
      },
    );
    worker.on('message', (value: Float32Array) => (result = value));
    worker.on('error', reject);
    worker.on('exit', (code) => {
      if (result) resolve(result);
      else reject(new Error(`the worker ended with ${code} and gave no result`));
    });
  });
}

describe('sessions with the library', () => {
  let folder = '';
  before(() => {
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-session-'));
    fs.writeFileSync(path.join(folder, 'model.onnx'), bytes);
  });
  after(() => {
    fs.rmSync(folder, { recursive: true, force: true });
  });

  it('loads a model from its bytes and from its path', async () => {
    await createAndCheck(bytes);
    await createAndCheck(path.join(folder, 'model.onnx'));
  });

  it('changes nothing for sessions without the option, before, beside and after', async () => {
    const withIt = await ort.InferenceSession.create(bytes, withQkvGemm(quiet));
    for (const model of [bytes, path.join(folder, 'model.onnx')]) {
      const create =
        typeof model === 'string'
          ? ort.InferenceSession.create(model, quiet)
          : ort.InferenceSession.create(model, quiet);
      expect(await failure(create)).to.match(/QKVGemm/);
    }
    await check(withIt);
    await withIt.release();
    expect(await failure(ort.InferenceSession.create(bytes, quiet))).to.match(/QKVGemm/);
    expect(await failure(ort.InferenceSession.create(bytes))).to.match(/QKVGemm/);
  });

  it('creates sessions again and again', async () => {
    for (let i = 0; i < 30; i++) await createAndCheck(bytes);
  });

  it('creates 20 sessions at once, and as many that fail beside them', async () => {
    const sessions = Promise.all(
      Array.from({ length: 20 }, () => ort.InferenceSession.create(bytes, withQkvGemm(quiet))),
    );
    const failures = Promise.all(
      Array.from({ length: 20 }, () => failure(ort.InferenceSession.create(bytes, quiet))),
    );
    const created = await sessions;
    await Promise.all(created.map(check));
    await Promise.all(created.map((session) => session.release()));
    for (const message of await failures) expect(message).to.match(/QKVGemm/);
  });

  it('is the same options again for many sessions', async () => {
    const options = withQkvGemm(quiet);
    await createAndCheck(bytes, options);
    await createAndCheck(bytes, options);
  });

  it('registers a library that is named twice, or under two paths, once', async () => {
    const library = libraryPath();
    await createAndCheck(bytes, withQkvGemm(withQkvGemm(quiet)));
    await createAndCheck(bytes, withCustomOps(quiet, [library, library]));
    await createAndCheck(bytes, withCustomOps(withQkvGemm(quiet), [path.relative('.', library)]));
    const link = path.join(folder, 'link.so');
    fs.symlinkSync(library, link);
    await createAndCheck(bytes, withCustomOps(quiet, [library, link]));
  });

  it('serves worker threads, and the main thread after they have ended', async () => {
    for (let round = 0; round < 2; round++) {
      const results = await Promise.all(Array.from({ length: 4 }, () => runWorker(3)));
      for (const result of results)
        expect(relativeDifference(numbersOf.y ?? [], result)).to.be.lessThan(TOLERANCE);
      await createAndCheck(bytes);
    }
    expect(await failure(ort.InferenceSession.create(bytes, quiet))).to.match(/QKVGemm/);
  });

  it('serves workers that load ONNX Runtime first and at once, and the main thread after them', () => {
    const program = fileURLToPath(new URL('./support/session_workers_first.ts', import.meta.url));
    const child = spawnSync(process.execPath, ['--import', 'tsx', program, path.join(folder, 'model.onnx')], {
      encoding: 'utf8',
    });
    expect(child.status, `${child.signal ?? ''} ${child.stderr}`).to.equal(0);
    const outputs = JSON.parse(child.stdout) as number[][];
    expect(outputs).to.have.length(14);
    for (const output of outputs)
      expect(relativeDifference(numbersOf.y ?? [], output)).to.be.lessThan(TOLERANCE);
  });
});

describe('the session hook', () => {
  it('says which runtime it found, every time the same', () => {
    const first = installSessionHook();
    expect(installSessionHook()).to.deep.equal(first);
    expect(first.length).to.be.greaterThan(0);
    for (const runtime of first) {
      expect(runtime.hooked, runtime.problem).to.equal(true);
      expect(runtime.version).to.match(/^1\.\d+\.\d+/);
      expect(fs.existsSync(runtime.path)).to.equal(true);
    }
  });

  it('can be undone, twice, and installed again', async () => {
    const options = withQkvGemm(quiet);
    const hooked = installSessionHook().length;
    expect(uninstallSessionHook()).to.equal(hooked);
    expect(uninstallSessionHook()).to.equal(0);
    expect(await failure(ort.InferenceSession.create(bytes, options))).to.match(/QKVGemm/);
    installSessionHook();
    await createAndCheck(bytes, options);
    uninstallSessionHook();
    await createAndCheck(bytes);
  });

  it('leaves sessions that are there alone when it is undone', async () => {
    const session = await ort.InferenceSession.create(bytes, withQkvGemm(quiet));
    uninstallSessionHook();
    await check(session);
    await session.release();
    installSessionHook();
  });
});
