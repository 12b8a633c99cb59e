/** Plans found by timing, on the CPU: when sessions time, keep and take them, and that no file can do harm. */
import { expect } from 'chai';
import { spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { relativeDifference } from '../scripts/bench/difference.js';
import { QkvGemmError } from '../ts/errors.js';
import { withQkvGemm, type TuneMode } from '../ts/session/index.js';
import { testFolder } from './support/command.js';
import { quiet } from './support/run.js';
import { expected, fusedModel, K, ROWS, TOLERANCE, x } from './support/session_models.js';
import { field, tuned, tuningFile, type Tuned } from './support/tuning.js';

const root = path.resolve(import.meta.dirname, '..');
const VARIABLES = ['QKVGEMM_CACHE_DIR', 'QKVGEMM_TUNE'] as const;

/** Runs the small model with its rows repeated; checks what it gives. */
async function runRows(options: ort.InferenceSession.SessionOptions, ...repeats: number[]): Promise<void> {
  const session = await ort.InferenceSession.create(fusedModel(), options);
  for (const repeat of repeats) {
    const rows = Float32Array.from({ length: repeat * x.length }, (_, i) => x[i % x.length] ?? 0);
    const wanted = expected().y ?? new Float64Array();
    const all = Float64Array.from(
      { length: repeat * wanted.length },
      (_, i) => wanted[i % wanted.length] ?? 0,
    );
    const { y } = await session.run({ x: new ort.Tensor('float32', rows, [repeat * ROWS, K]) });
    expect(relativeDifference(all, y?.data as Float32Array)).to.be.lessThan(TOLERANCE);
  }
  await session.release();
}

const run = (tune?: TuneMode): Promise<void> =>
  runRows(withQkvGemm(quiet, tune === undefined ? {} : { tune }), 1);

/** The entry of a folder's file, which has one. */
function only(folder: string): Tuned {
  const [entry, ...more] = tuned(folder);
  expect(more).to.deep.equal([]);
  if (entry === undefined) throw new Error('nothing was kept');
  return entry;
}

describe('tuning', function () {
  this.timeout(60_000);
  const folder = testFolder();
  let cache = '';
  const before = VARIABLES.map((name) => [name, process.env[name]] as const);
  beforeEach(() => {
    cache = path.join(folder(), 'cache');
    process.env.QKVGEMM_CACHE_DIR = cache;
    delete process.env.QKVGEMM_TUNE;
  });
  afterEach(() => {
    for (const [name, value] of before)
      if (value === undefined) Reflect.deleteProperty(process.env, name);
      else process.env[name] = value;
  });

  it('sets the session config entry, and leaves it alone unasked', () => {
    expect(withQkvGemm({ extra: { qkvgemm: { other: '1' } } }, { tune: 'on' }).extra).to.deep.include({
      qkvgemm: { other: '1', tune: 'on' },
    });
    expect(withQkvGemm().extra).not.to.have.property('qkvgemm');
    const wrong = { tune: true } as unknown as { tune: TuneMode };
    expect(() => withQkvGemm({}, wrong)).to.throw(
      QkvGemmError,
      "off, cached, on as option 'tune', found true",
    );
  });

  it('times nothing unless it is asked for', async () => {
    await run();
    await run('cached');
    await run('off');
    expect(fs.existsSync(cache)).to.equal(false);
  });

  it('times each bucket of rows once, by the entry or by the variable', async () => {
    await runRows(withQkvGemm(quiet, { tune: 'on' }), 1, 6, 7, 10, 1);
    const entries = tuned(cache);
    expect(entries.map((entry) => field(entry, 'rows')).sort()).to.deep.equal(['3', '32']);
    for (const entry of entries) {
      expect(field(entry, 'K')).to.equal(String(K));
      expect(field(entry, 'norm')).to.equal('layer_norm');
      expect(entry.heuristic.plan).to.equal('tasks 4 a thread, row blocks x1, norm by size');
    }
    const text = fs.readFileSync(tuningFile(cache), 'utf8');
    await run('on');
    expect(fs.readFileSync(tuningFile(cache), 'utf8')).to.equal(text);
    process.env.QKVGEMM_CACHE_DIR = path.join(folder(), 'other');
    process.env.QKVGEMM_TUNE = 'on';
    await run('off');
    expect(tuned(path.join(folder(), 'other'))).to.deep.equal([]);
    await run();
    expect(tuned(path.join(folder(), 'other'))).to.have.length(1);
  });

  it('refuses a mode that is none, wherever it stands', async () => {
    const failure = (options: ort.InferenceSession.SessionOptions): Promise<string> =>
      ort.InferenceSession.create(fusedModel(), options).then(() => '', String);
    const entry = withQkvGemm({ ...quiet, extra: { qkvgemm: { tune: 'yes' } } });
    expect(await failure(entry)).to.contain(
      "session config entry 'qkvgemm.tune': expected off, cached or on, found 'yes'",
    );
    process.env.QKVGEMM_TUNE = '1';
    expect(await failure(withQkvGemm(quiet))).to.contain(
      "environment variable 'QKVGEMM_TUNE': expected off, cached or on, found '1'",
    );
    await run('cached'); // the entry comes first
  });

  for (const [what, damage] of [
    ['nothing', ''],
    ['half a file', '{"version": 1, "entries": [{"key": "'],
    ['another version', '{"version": 2, "entries": []}'],
    ['wrong types', '{"version": 1, "entries": [1]}'],
    ['bytes', '\u0000\u0001'],
  ] as const)
    it(`ignores a file that holds ${what}, and replaces it when it tunes`, async () => {
      fs.mkdirSync(cache);
      fs.writeFileSync(tuningFile(cache), damage);
      await run();
      expect(fs.readFileSync(tuningFile(cache), 'utf8')).to.equal(damage);
      await run('on');
      only(cache);
    });

  it('takes a plan from the file, and one that is none for nothing', async () => {
    await run('on');
    const entry = only(cache);
    for (const plan of [
      'tasks 8 a thread, row blocks x1, norm serial',
      'tasks 2 a thread, row blocks x1, norm by size',
      'stream 48x8',
    ]) {
      const other = path.join(folder(), plan.slice(0, 7));
      fs.mkdirSync(other);
      fs.writeFileSync(tuningFile(other), JSON.stringify({ version: 1, entries: [{ ...entry, plan }] }));
      process.env.QKVGEMM_CACHE_DIR = other;
      await run(); // gives the right values
      await run('on');
      expect(only(other).plan === plan).to.equal(plan.startsWith('tasks 2'));
    }
  });

  it('runs where nothing can be kept', async () => {
    const file = path.join(folder(), 'file');
    fs.writeFileSync(file, 'x');
    process.env.QKVGEMM_CACHE_DIR = path.join(file, 'cache');
    await run('on');
    expect(fs.readFileSync(file, 'utf8')).to.equal('x');
    fs.mkdirSync(tuningFile(cache), { recursive: true });
    process.env.QKVGEMM_CACHE_DIR = cache;
    await run('on');
    expect(fs.readdirSync(cache, { recursive: true })).to.deep.equal(['tuning.json']);
  });

  it('lets processes tune at once', async () => {
    const child = path.join(root, 'test', 'support', 'tuning_child.ts');
    const one = (): Promise<string> =>
      new Promise((resolve, reject) => {
        const started = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), child], {
          env: { ...process.env, QKVGEMM_TUNE: 'on' },
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        let text = '';
        started.stdout.on('data', (data: Buffer) => (text += data.toString()));
        started.on('error', reject);
        started.on('close', (code) => {
          if (code === 0) resolve(text);
          else reject(new Error(`exit code ${code}`));
        });
      });
    for (const difference of await Promise.all([one(), one()]))
      expect(Number.parseFloat(difference)).to.be.lessThan(TOLERANCE);
    only(cache);
    expect(fs.readdirSync(cache)).to.deep.equal(['tuning.json']);
  });
});
