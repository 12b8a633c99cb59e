/** `qkvgemm tune` on the CPU. */
import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { qkvGemmModel, randomOperands } from '../models/qkv_gemm.js';
import { DataType } from '../ts/onnx/tensor.js';
import { qkvgemm, testFolder, type Outcome } from './support/command.js';
import { writeAttentionModel } from './support/attention.js';
import { field, tuned, tuningFile, type Tuned } from './support/tuning.js';

interface Result {
  file: string;
  runs: Record<string, number>[];
  tuned: (Tuned & { timedNow: boolean })[];
}

describe('qkvgemm tune', function () {
  this.timeout(60_000);
  const folder = testFolder();
  const cache = (): string => path.join(folder(), 'cache');
  const tune = (...args: string[]): Outcome =>
    qkvgemm(['tune', ...args], { cwd: folder(), env: { QKVGEMM_CACHE_DIR: cache() } });

  /** One node, 48 to 80 columns, with dimensions left open. */
  function model(inputDims: readonly (number | string)[], type?: number): string {
    const form = { dims: [2, 3, 48], n: 80, ...(type === undefined ? {} : { type }) };
    const file = path.join(folder(), 'one.onnx');
    fs.writeFileSync(file, qkvGemmModel(form, randomOperands(form), { inputDims }).bytes);
    return file;
  }

  it('times each run of a fused model once, and prints what it keeps', () => {
    writeAttentionModel(folder());
    expect(qkvgemm(['fuse', 'model.onnx'], { cwd: folder() }).code).to.equal(0);
    const first = tune('model.fused.onnx', '--dims', 'batch=2', '--rows', '3,20', '--threads', '1', '--json');
    expect(first.stderr).to.equal('');
    const result = JSON.parse(first.stdout) as Result;
    expect(result.file).to.equal(tuningFile(cache()));
    expect(result.runs).to.deep.equal([
      { batch: 2, sequence: 3 },
      { batch: 2, sequence: 20 },
    ]);
    expect(result.tuned.map((entry) => [field(entry, 'rows'), entry.timedNow])).to.deep.equal([
      ['6', true],
      ['64', true],
    ]);
    expect(tuned(cache())).to.have.length(2);
    const second = tune('model.fused.onnx', '--dims', 'batch=1,sequence=6');
    expect(second.code).to.equal(0);
    expect(second.stdout)
      .to.match(/rows.*estimated plan.*gain/)
      .and.to.contain(`Kept in ${tuningFile(cache())}`);
    expect(second.stdout).to.match(/layer_norm.*tasks 4 a thread.*\d+ %.*\d{4}-\d\d-\d\d/);
    expect(tuned(cache())).to.have.length(2);
  });

  it('makes inputs of the types that models have, for each size', () => {
    const file = model(['', 'n', 48], DataType.float16);
    const { code, stdout, stderr } = tune(file, '--dims', 'x:0=2,n=1', '--dims', 'n=5,x:0=3', '--json');
    expect(stderr).to.equal('');
    expect(code).to.equal(0);
    expect((JSON.parse(stdout) as Result).tuned.map((entry) => field(entry, 'rows'))).to.deep.equal([
      '2',
      '15',
    ]);
  });

  it('needs a fused model, and says how to make one', () => {
    writeAttentionModel(folder());
    const { code, stderr } = tune('model.onnx', '--rows', '1');
    expect(code).to.equal(1);
    expect(stderr).to.contain('has no com.deepspeed.QKVGemm node').and.to.contain('qkvgemm fuse model.onnx');
    expect(fs.existsSync(cache())).to.equal(false);
  });

  it('says which sizes are missing, unknown or no sizes', () => {
    const file = model(['a', 'b', 48]);
    for (const [args, code, message] of [
      [[], 1, 'have no size: a, b. Give them, e.g. --dims a=1,b=1'],
      [['--dims', 'a=1'], 1, 'have no size: b. Give them, e.g. --dims b=1 or --rows 1,16,128'],
      [
        ['--dims', 'c=1'],
        1,
        "--dims names 'c', which is no dimension that the model leaves open; those are: a, b",
      ],
      [['--rows', '1'], 1, '--rows is for the one dimension that --dims leaves open; here that is a, b'],
      [['--dims', 'a=1,b=1', '--rows', '1'], 1, 'here that is none'],
      [['--dims', 'a'], 2, "expected NAME=SIZE, found 'a'"],
      [['--dims', 'a=0'], 2, "expected a number from 1 to 999999999, found '0'"],
      [['--rows', '1,x'], 2, "expected a number from 1 to 999999999, found 'x'"],
      [['--dims', 'a=1,a=2'], 2, "'a' has two sizes; repeat the option for another run"],
      [
        ['--dims', 'a=1', '--rows', '999999999'],
        1,
        'would be 1 x 999999999 x 48; expected at most 2^30 elements',
      ],
      [['--threads', '1025'], 2, "expected a number from 1 to 1024, found '1025'"],
      [['--provider', 'gpu'], 2, 'Allowed choices are cpu, cuda'],
    ] as const) {
      const outcome = tune(file, ...args);
      expect(outcome.stderr, args.join(' ')).to.contain(message);
      expect(outcome.code, args.join(' ')).to.equal(code);
    }
  });

  it('adds up rows that are given apart, and allows spaces', () => {
    const file = model(['a', 'b', 48]);
    const { code, stdout, stderr } = tune(
      file,
      ...['--dims', 'a=1', '--rows', '1, 2', '--rows', '7', '--json'],
    );
    expect(stderr).to.equal('');
    expect(code).to.equal(0);
    expect((JSON.parse(stdout) as Result).runs).to.deep.equal([1, 2, 7].map((b) => ({ a: 1, b })));
    expect(tune(file, '--dims', 'b=2, a=1').code).to.equal(0);
  });

  it('takes a dimension by any name', () => {
    const file = model(['toString', 'b', 48]);
    expect(tune(file, '--rows', '1').stderr).to.contain(
      'here that is toString, b. Give all others a size there.',
    );
    expect(tune(file, '--dims', 'toString=2', '--rows', '1').code).to.equal(0);
  });

  it('fails before it times where nothing can be kept, whatever is there already', () => {
    const file = model([1, 'n', 48]);
    fs.writeFileSync(cache(), 'x');
    const expectFailure = (reason: string): void => {
      const { code, stdout, stderr } = tune(file, '--rows', '2', '--json');
      expect(stderr)
        .to.contain(`What is found cannot be kept in '${tuningFile(cache())}': ${reason}`)
        .and.to.contain('Set QKVGEMM_CACHE_DIR');
      expect(JSON.parse(stdout)).to.have.nested.property('error.code', 'FILE_NOT_WRITABLE');
      expect(code).to.equal(1);
    };
    expectFailure('EEXIST');
    fs.rmSync(cache());
    fs.mkdirSync(tuningFile(cache()), { recursive: true });
    expectFailure('it is a folder');
  });

  it('says so where a model has nothing to time', () => {
    const form = { dims: [2, 48], n: 80, fed: ['weight'] } as const;
    const file = path.join(folder(), 'fed.onnx');
    fs.writeFileSync(file, qkvGemmModel(form, randomOperands(form)).bytes);
    fs.mkdirSync(cache());
    fs.writeFileSync(tuningFile(cache()), '{"version": 1, "entries": [{}]}'); // which is no entry
    const { code, stdout, stderr } = tune(file);
    expect(stderr).to.equal('');
    expect(stdout).to.equal(
      'Nothing was timed: no node that ran has constant weights and plans to choose from.\n',
    );
    expect(code).to.equal(0);
  });

  it('tells the entries of other devices and versions apart', () => {
    const file = model([1, 'n', 48]);
    expect(tune(file, '--rows', '2').code).to.equal(0);
    const [entry] = tuned(cache());
    if (entry === undefined) throw new Error('nothing was kept');
    const other = {
      ...entry,
      key: entry.key.replace(/device=[^;]*; library=[^;]*/, 'device=D; library=0.0.0'),
    };
    fs.writeFileSync(tuningFile(cache()), JSON.stringify({ version: 1, entries: [entry, other] }));
    const { stdout } = tune(file, '--rows', '2');
    expect(stdout).to.match(/^D; version 0\.0\.0:$/m);
    expect(stdout).to.match(/threads; version \d+\.\d+\.\d+\S*:$/m);
  });
});
