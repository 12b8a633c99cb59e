/** What the session helper makes of its arguments, and what it says of wrong ones. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import * as ort from 'onnxruntime-node';
import { relativeDifference } from '../scripts/bench/difference.js';
import { QkvGemmError } from '../ts/errors.js';
import { isOlder } from '../ts/version_order.js';
import { libraryPath, platformName, withCustomOps, withQkvGemm } from '../ts/session/index.js';
import { cudaLibraryOrSkip } from './support/cuda.js';
import { quiet } from './support/run.js';
import { expected, fusedModel, K, ROWS, TOLERANCE, x } from './support/session_models.js';

const bytes = fusedModel();
const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
type Options = ort.InferenceSession.SessionOptions;

/** The error that a call throws; fails where it throws none of ours. */
function thrown(call: () => unknown): QkvGemmError {
  try {
    call();
  } catch (error) {
    if (error instanceof QkvGemmError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}

async function createFailure(options: Options): Promise<string> {
  try {
    await ort.InferenceSession.create(bytes, options);
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  return '';
}

async function runs(options: Options): Promise<void> {
  const session = await ort.InferenceSession.create(bytes, options);
  const { y } = await session.run({ x: new ort.Tensor('float32', x, [ROWS, K]) });
  await session.release();
  expect(relativeDifference(expected().y ?? [], y?.data as Float32Array)).to.be.lessThan(TOLERANCE);
}

function libraries(options: Options): unknown {
  return (options.extra as { custom_ops?: { libraries?: unknown } }).custom_ops?.libraries;
}

describe('session options', () => {
  let folder = '';
  before(() => (folder = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-options-'))));
  after(() => {
    fs.rmSync(folder, { recursive: true, force: true });
  });

  it('keeps what the caller gave and changes none of it', async () => {
    const options: Options = {
      ...quiet,
      graphOptimizationLevel: 'all',
      intraOpNumThreads: 1,
      extra: { session: { set_denormal_as_zero: '1' }, custom_ops: { note: 'kept' } },
    };
    const copy = structuredClone(options);
    const frozen = Object.freeze({ ...options, extra: Object.freeze(options.extra) });
    const result = withQkvGemm(frozen as Options);
    expect(options).to.deep.equal(copy);
    expect(result).to.deep.equal({
      ...copy,
      extra: {
        session: { set_denormal_as_zero: '1' },
        custom_ops: { note: 'kept', libraries: libraryPath() },
      },
    });
    await runs(result);
    await runs(
      options.extra ? withQkvGemm({ ...quiet, extra: { 'session.set_denormal_as_zero': '1' } }) : {},
    );
  });

  it('adds to the libraries that the options name already', () => {
    const other = path.join(folder, 'other.so');
    fs.writeFileSync(other, '');
    const first = withCustomOps(quiet, [other]);
    expect(libraries(withQkvGemm(first))).to.equal(`${other}\n${libraryPath()}`);
    expect(libraries(first)).to.equal(other);
  });

  it('does not need to be told anything', async () => {
    expect(libraries(withQkvGemm())).to.equal(libraryPath());
    expect(libraries(withCustomOps({}, []))).to.equal('');
    await runs(withQkvGemm());
  });

  it('names the nearest of its own options', () => {
    const options = { libary: libraryPath() } as object;
    const error = thrown(() => withQkvGemm({}, options));
    expect(error.code).to.equal('INVALID_ARGUMENT');
    expect(error.message).to.match(/libary.*Did you mean 'library'\?/);
    const unlike = thrown(() => withQkvGemm({}, { provider: 1 } as object));
    expect(unlike.message).to.contain("'provider'").and.to.contain('library');
    expect(unlike.message).not.to.contain('Did you mean');
  });

  it('refuses what is no list of paths', () => {
    for (const list of [libraryPath() as unknown, [''], ['a\nb'], [1], undefined]) {
      expect(thrown(() => withCustomOps({}, list as string[])).code).to.equal('INVALID_ARGUMENT');
    }
  });

  it('says which library is missing', () => {
    const missing = path.join(folder, 'missing.so');
    for (const call of [
      () => withCustomOps({}, [missing]),
      () => withQkvGemm({}, { library: missing }),
      () => withCustomOps({}, [folder]),
      () => withQkvGemm({}, { library: folder }),
    ]) {
      const error = thrown(call);
      expect(error.code).to.equal('LIBRARY_NOT_FOUND');
      expect(error.message).to.contain(folder);
    }
  });

  it('reports a file that is no library when the session is created, with its path', async () => {
    for (const [name, content] of [
      ['text.so', 'not a library'],
      ['empty.so', ''],
    ] as const) {
      const file = path.join(folder, name);
      fs.writeFileSync(file, content);
      const message = await createFailure(withCustomOps(quiet, [file]));
      expect(message).to.contain(file).and.to.contain('could not be registered');
    }
    await runs(withQkvGemm(quiet));
  });

  it('reports a library that is no custom-op library, alone or behind a good one', async () => {
    const file = path.join(root, 'build', 'Release', 'qkvgemm_session.node');
    for (const options of [withCustomOps(quiet, [file]), withCustomOps(withQkvGemm(quiet), [file])]) {
      const message = await createFailure(options);
      expect(message).to.contain(file).and.to.contain('RegisterCustomOps');
    }
    await runs(withQkvGemm(quiet));
  });

  it('reports a library that vanished after the options were made', async () => {
    const file = path.join(folder, 'copy.so');
    fs.copyFileSync(libraryPath(), file);
    const options = withQkvGemm(quiet, { library: file });
    fs.renameSync(file, path.join(folder, 'moved.so'));
    expect(await createFailure(options)).to.contain(file);
    fs.renameSync(path.join(folder, 'moved.so'), file);
    await runs(options);
    fs.rmSync(file);
    await runs(options); // loaded by now, and for good
  });
});

describe('finding the library', () => {
  const variable = process.env.QKVGEMM_LIBRARY;
  afterEach(() => {
    if (variable === undefined) delete process.env.QKVGEMM_LIBRARY;
    else process.env.QKVGEMM_LIBRARY = variable;
  });

  it('takes QKVGEMM_LIBRARY, and the caller before it', () => {
    const other = path.join(root, 'package.json');
    process.env.QKVGEMM_LIBRARY = path.relative('.', other);
    expect(libraryPath()).to.equal(other);
    expect(libraries(withQkvGemm())).to.equal(other);
    const mine = path.join(root, 'build', 'Release', 'libqkvgemm.so');
    expect(libraries(withQkvGemm({}, { library: mine }))).to.equal(mine);
    process.env.QKVGEMM_LIBRARY = '';
    expect(libraryPath()).to.equal(mine);
  });

  const onCuda: Options[] = [
    { executionProviders: ['cuda'] },
    { executionProviders: ['cuda', 'cpu'] },
    { executionProviders: [{ name: 'cuda', deviceId: 1 }, 'cpu'] },
  ];

  it("takes the CUDA library for the CUDA provider, by its name or with options, and the CPU's without", function () {
    const cuda = cudaLibraryOrSkip(this);
    expect(cuda).to.match(/libqkvgemm-cuda\.so$/);
    for (const options of onCuda) {
      const result = withQkvGemm(options);
      expect(libraries(result)).to.equal(cuda);
      expect(result.executionProviders).to.equal(options.executionProviders);
    }
    for (const executionProviders of [[], ['cpu'], [{ name: 'cpu' }]] as Options['executionProviders'][])
      expect(libraries(withQkvGemm({ executionProviders: executionProviders ?? [] }))).to.equal(
        libraryPath(),
      );
  });

  it('leaves what is no provider for ONNX Runtime to report', () => {
    for (const executionProviders of ['cuda', [null], [undefined], [{}], [7]] as unknown[])
      expect(libraries(withQkvGemm({ executionProviders } as Options))).to.equal(libraryPath());
  });

  it('the caller and QKVGEMM_LIBRARY come before that choice', () => {
    const mine = path.join(root, 'build', 'Release', 'libqkvgemm.so');
    for (const options of onCuda) expect(libraries(withQkvGemm(options, { library: mine }))).to.equal(mine);
    process.env.QKVGEMM_LIBRARY = mine;
    for (const options of onCuda) expect(libraries(withQkvGemm(options))).to.equal(mine);
  });

  it("options that were made for another provider: the other library goes, anybody else's stays", async function () {
    const cuda = cudaLibraryOrSkip(this);
    const other = path.join(root, 'package.json');
    const forCpu = withQkvGemm(withCustomOps(quiet, [other]));
    const forCuda = withQkvGemm({ ...forCpu, executionProviders: ['cuda'] });
    expect(libraries(forCpu)).to.equal(`${other}\n${libraryPath()}`);
    expect(libraries(forCuda)).to.equal(`${other}\n${cuda}`);
    expect(libraries(withQkvGemm({ ...forCuda, executionProviders: ['cpu'] }))).to.equal(libraries(forCpu));
    await runs(withQkvGemm({ ...withCustomOps(quiet, [cuda]), executionProviders: ['cpu'] }));
  });

  it('says that QKVGEMM_LIBRARY names nothing', () => {
    process.env.QKVGEMM_LIBRARY = '/nowhere/lib.so';
    const error = thrown(() => withQkvGemm());
    expect(error.code).to.equal('LIBRARY_NOT_FOUND');
    expect(error.message).to.contain('/nowhere/lib.so').and.to.contain('QKVGEMM_LIBRARY');
  });

  it('lists every place that it looked in where there is no library, and how to get one', () => {
    // The package's sources alone, in a folder of their own, as in a tree that has not been built.
    const copy = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-unbuilt-'));
    try {
      fs.cpSync(path.join(root, 'ts'), path.join(copy, 'ts'), { recursive: true });
      fs.writeFileSync(path.join(copy, 'package.json'), '{ "type": "module", "version": "1.2.3" }');
      const index = path.join(copy, 'ts', 'session', 'index.ts');
      const program = `import(${JSON.stringify(index)}).then(({ libraryPath, withCustomOps, withQkvGemm }) => {
        const failure = (call) => { try { call(); return null; } catch ({ code, message }) { return { code, message }; } };
        const file = ${JSON.stringify(path.join(copy, 'package.json'))};
        console.log(JSON.stringify([
          failure(() => libraryPath()),
          failure(() => libraryPath({ cuda: true })),
          failure(() => withCustomOps({}, [file])),
          failure(() => withQkvGemm({ executionProviders: ['cuda'] })),
        ]));
      });`;
      const env = { ...process.env };
      delete env.QKVGEMM_LIBRARY;
      const child = spawnSync(process.execPath, ['--import', 'tsx', '--eval', program], {
        cwd: root,
        encoding: 'utf8',
        env,
      });
      expect(child.stderr).to.equal('');
      const found = JSON.parse(child.stdout) as { code: string; message: string }[];
      const names = ['libqkvgemm.so', 'libqkvgemm-cuda.so', 'qkvgemm_session.node', 'libqkvgemm-cuda.so'];
      expect(found).to.have.length(names.length);
      names.forEach((name, i) => {
        expect(found[i]?.code).to.equal('LIBRARY_NOT_FOUND');
        expect(found[i]?.message)
          .to.contain(path.join(copy, 'build', 'Release', name))
          .and.to.contain(`onnx-qkv-gemm-${name.includes('cuda') ? 'cuda-' : ''}${platformName()}/${name}`)
          .and.to.contain(name === 'libqkvgemm-cuda.so' ? 'QKVGEMM_CUDA=1 npm run build' : 'npm run build');
      });
    } finally {
      fs.rmSync(copy, { recursive: true, force: true });
    }
  });

  it('names the platform', () => {
    expect(platformName()).to.match(/^linux-(x64|arm64)-(gnu|musl)$/);
  });

  it('compares releases number by number', () => {
    expect(isOlder('1.9.0', '1.22.0')).to.equal(true);
    expect(isOlder('1.21.9', '1.22.0')).to.equal(true);
    expect(isOlder('1.22.0', '1.22.0')).to.equal(false);
    expect(isOlder('1.22.1-dev', '1.22.0')).to.equal(false);
    expect(isOlder('2.0.0', '1.22.0')).to.equal(false);
    expect(isOlder('1.22', '1.22.0')).to.equal(false);
  });
});
