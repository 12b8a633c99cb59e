import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { Tensor } from 'onnxruntime-node';
import { attentionModel, K } from '../models/attention.js';
import { ModelBuilder, uniform } from '../models/builder.js';
import { DataType, encodeTensor } from '../ts/onnx/tensor.js';
import { concat } from '../ts/onnx/wire.js';
import { fuseFile } from '../ts/fuse_file.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { verifyModels, type VerifyReport } from '../ts/verify/verify.js';
import { attentionInput, writeAttentionModel } from './support/attention.js';
import { qkvgemm, testFolder } from './support/command.js';
import { failure } from './support/failure.js';

/** What numpy.save writes of a float32 array. */
function npy(tensor: Tensor): Uint8Array {
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${tensor.dims.join(', ')},), }`;
  const padded = `${header.padEnd(117)}\n`;
  const data = tensor.data as Float32Array;
  return concat([
    new Uint8Array([0x93, ...new TextEncoder().encode('NUMPY'), 1, 0, padded.length, 0]),
    new TextEncoder().encode(padded),
    new Uint8Array(data.buffer, data.byteOffset, data.byteLength),
  ]);
}

describe('verify', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  /** The model and what the rewriter makes of it. */
  function writePair(options: Parameters<typeof writeAttentionModel>[1] = {}): [string, string] {
    const model = writeAttentionModel(folder(), options);
    fs.writeFileSync(at('fused.onnx'), fuseBytes(new Uint8Array(fs.readFileSync(model))).model);
    return [model, at('fused.onnx')];
  }

  /** The model with another bias, so that the query, the scores and what follows are others. */
  function writeOther(): string {
    fs.writeFileSync(at('other.onnx'), attentionModel({ biases: ['q', 'v'] }));
    return at('other.onnx');
  }

  it('a fused model is equal to its original, inside as well', async () => {
    const [model, fused] = writePair();
    const report = await verifyModels(model, fused, { dims: { batch: 2, sequence: 5 }, intermediates: true });
    expect(report.equal).to.equal(true);
    expect(report.outputs.map(({ name }) => name)).to.deep.equal(['y']);
    expect(report.outputs[0]?.maxError).to.be.within(1e-9, 1e-5); // other kernels round otherwise
    expect(report.inputs).to.deep.equal([{ name: 'x', type: 'float32', dims: [2, 5, K], generated: true }]);
    expect(report.intermediates?.values.map(({ name }) => name)).to.have.members([
      ...['q', 'k', 'v', 'kt', 'scores', 'p', 'context'],
    ]);
    expect(report.intermediates?.firstBeyond).to.equal(undefined);
    expect(report.intermediates?.leftOut).to.deep.equal([]);
  });

  it('names the first value that differs', async () => {
    const [model] = writePair();
    const report = await verifyModels(model, writeOther(), { intermediates: true });
    expect(report.equal).to.equal(false);
    expect(report.intermediates?.firstBeyond).to.equal('v');
    const same = report.intermediates?.values.filter(({ within }) => within).map(({ name }) => name);
    expect(same).to.include.members(['h', 'q', 'k', 'scores', 'p']);
  });

  it('other seeds give other inputs, the same seed the same', async () => {
    const [model, fused] = writePair();
    const of = async (seed?: number): Promise<number | undefined> =>
      (await verifyModels(model, fused, seed === undefined ? {} : { seed })).outputs[0]?.rms;
    expect(await of()).to.equal(await of(1));
    expect(await of(2)).not.to.equal(await of(1));
  });

  it('models with external data, inside as well', async () => {
    const model = writeAttentionModel(folder(), { location: 'w.bin' });
    await fuseFile(model, at('fused.onnx'), { saveAsExternalData: true });
    const report = await verifyModels(model, at('fused.onnx'), { intermediates: true });
    expect(report.equal).to.equal(true);
    expect(report.intermediates?.values.length).to.be.at.least(6);
    expect(report.intermediates?.firstBeyond).to.equal(undefined);
  });

  it('bfloat16 at the boundary and inside', async () => {
    const build = (factor: number): Uint8Array => {
      const model = new ModelBuilder();
      model.input('x', ['n', 4], DataType.bfloat16);
      const wide = model.node('Cast', ['x'], ['wide'], { attributes: { to: { integer: DataType.float } } });
      const product = model.node('Mul', [wide, model.floats('factor', [1], [factor])], ['product']);
      const attributes = { to: { integer: DataType.bfloat16 } };
      model.node('Identity', [model.node('Cast', [product], ['narrow'], { attributes })], ['y']);
      model.output('y', ['n', 4], DataType.bfloat16);
      return model.finish();
    };
    fs.writeFileSync(at('a.onnx'), build(1));
    fs.writeFileSync(at('b.onnx'), build(1.25));
    const same = await verifyModels(at('a.onnx'), at('a.onnx'), { intermediates: true, maxError: 0 });
    expect(same.equal).to.equal(true);
    expect(same.intermediates?.values.map(({ name }) => name)).to.deep.equal(['wide', 'product', 'narrow']);
    const other = await verifyModels(at('a.onnx'), at('b.onnx'), { intermediates: true });
    expect(other.outputs[0]?.maxError).to.be.closeTo(0.25, 0.01);
    expect(other.intermediates?.firstBeyond).to.equal('product');
  });

  it('generated token ids index their tables', async () => {
    const model = new ModelBuilder();
    model.input('ids', ['batch', 'sequence'], DataType.int64);
    const table = model.floats('table', [7, 4], uniform(28, 1, 3));
    model.node('Gather', [table, model.node('Identity', ['ids'], ['same'])], ['rows']);
    model.node('Cast', ['ids'], ['y'], { attributes: { to: { integer: DataType.int64 } } });
    model.output('rows', ['batch', 'sequence', 4]);
    model.output('y', ['batch', 'sequence'], DataType.int64);
    fs.writeFileSync(at('ids.onnx'), model.finish());
    const dims = { batch: 2, sequence: 32 };
    const { outputs, equal } = await verifyModels(at('ids.onnx'), at('ids.onnx'), { dims });
    expect(equal).to.equal(true);
    const [, ids] = outputs;
    expect(ids?.rms).to.equal(0);
    const { Runner } = await import('../ts/verify/runner.js');
    const { OpenModel } = await import('../ts/verify/boundary.js');
    const { planFeeds } = await import('../ts/verify/feeds.js');
    const open = new OpenModel(at('ids.onnx'));
    const runner = await Runner.create(open.boundary());
    const [first, second] = [...planFeeds(runner.inputs, open.index.model, { dims }, Tensor).sets];
    await runner.release();
    expect(new Set(first?.ids?.data as BigInt64Array)).to.have.keys([0n, 1n, 2n, 3n, 4n, 5n, 6n]);
    expect(new Set(second?.ids?.data as BigInt64Array)).to.have.keys([0n]);
  });

  it('what does not fit is said: sizes, outputs, inputs', async () => {
    const [model, fused] = writePair();
    const sizes = await failure(() => verifyModels(model, fused, { dims: { bach: 2 } }));
    expect(sizes.code).to.equal('INVALID_ARGUMENT');
    expect(sizes.message).to.contain("'bach'").and.to.contain('batch, sequence');
    const renamed = new ModelBuilder();
    renamed.input('z', ['batch', 'sequence', K]);
    renamed.node('Identity', ['z'], ['w']);
    renamed.output('w', ['batch', 'sequence', K]);
    fs.writeFileSync(at('renamed.onnx'), renamed.finish());
    const input = await failure(() => verifyModels(model, at('renamed.onnx')));
    expect(input.code).to.equal('INVALID_ARGUMENT');
    expect(input.message).to.contain("has an input 'z'");
    const bound = await failure(() => verifyModels(model, fused, { maxError: -1 }));
    expect(bound.code).to.equal('INVALID_ARGUMENT');
    const option = await failure(() => verifyModels(model, fused, { maxErorr: 1 } as object));
    expect(option.message).to.contain("Did you mean 'maxError'");
  });

  it('an output that B has not is a difference, one that only B has is named', async () => {
    const build = (...outputs: string[]): Uint8Array => {
      const model = new ModelBuilder();
      model.input('x', [2]);
      for (const name of outputs) model.node('Identity', ['x'], [model.output(name, [2])]);
      return model.finish();
    };
    fs.writeFileSync(at('a.onnx'), build('y', 'z'));
    fs.writeFileSync(at('b.onnx'), build('y', 'w'));
    const report = await verifyModels(at('a.onnx'), at('b.onnx'));
    expect(report.equal).to.equal(false);
    expect(report.outputs[1]).to.include({ name: 'z', problem: 'there is no such value in B' });
    expect(report.onlyInB).to.deep.equal(['w']);
  });

  it('a model that runs only with the library is CHECK_FAILED without it', async () => {
    const model = writeAttentionModel(folder());
    const { model: bytes } = fuseBytes(attentionModel(), { fallback: false });
    fs.writeFileSync(at('bare.onnx'), bytes);
    expect((await verifyModels(model, at('bare.onnx'))).equal).to.equal(true);
    const error = await failure(() => verifyModels(model, at('bare.onnx'), { library: 'a' }));
    expect(error.code).to.equal('CHECK_FAILED');
    expect(error.message).to.contain('QKVGemm');
  });

  describe('inputs from files', () => {
    it('.pb, .npy, .json and a folder of them give the same', async () => {
      const [model, fused] = writePair();
      const x = attentionInput();
      const data = x.data as Float32Array;
      const proto = encodeTensor('x', DataType.float, x.dims, new Uint8Array(data.buffer));
      fs.mkdirSync(at('set'));
      fs.writeFileSync(at('set', 'input_0.pb'), concat(proto));
      fs.writeFileSync(at('x.npy'), npy(x));
      fs.writeFileSync(at('flat.json'), JSON.stringify({ x: { dims: x.dims, data: [...data] } }));
      const rows = (from: number, count: number): number[][] =>
        Array.from({ length: count }, (_, i) => [...data.subarray((from + i) * K, (from + i + 1) * K)]);
      fs.writeFileSync(at('nested.json'), JSON.stringify([rows(0, 5), rows(5, 5)]));
      const reports: VerifyReport[] = [];
      for (const inputFiles of [
        [{ file: at('set') }],
        [{ file: at('x.npy') }],
        [{ file: at('flat.json') }],
        [{ name: 'x', file: at('nested.json') }],
      ])
        reports.push(await verifyModels(model, fused, { inputFiles }));
      reports.push(await verifyModels(model, fused, { feeds: { x } }));
      for (const { equal, outputs, inputs } of reports) {
        expect(equal).to.equal(true);
        expect(outputs).to.deep.equal(reports[0]?.outputs);
        expect(inputs).to.deep.equal([{ name: 'x', type: 'float32', dims: [2, 5, K], generated: false }]);
      }
    });

    for (const [what, name, content, message] of [
      [
        'another type',
        'x.json',
        '{"x": {"type": "int32", "dims": [1, 1, 16], "data": [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}}',
        /holds int32 .*'x' is float32/,
      ],
      [
        'another shape',
        'x.json',
        '{"x": [[1, 2]]}',
        /holds float32 \[1, 2\]; 'x' is float32 \[batch, sequence, 16\]/,
      ],
      ['another name', 'x.json', '{"z": [1]}', /is for 'z', but the model's inputs are: x/],
      ['rows of other lengths', 'x.json', '{"x": [[1], [1, 2]]}', /rows are not all of one length/],
      ['words', 'x.json', '{"x": [["a"]]}', /holds "a" where float32 is expected/],
      ['no JSON', 'x.json', '{', /is no JSON/],
      ['no array', 'x.npy', 'something', /is no .npy file/],
      ['no tensor', 'x.pb', 'something', /is no TensorProto/],
      ['another kind of file', 'x.txt', '1', /ends in '.txt'; expected .pb/],
    ] as const)
      // prettier-ignore
      it(`refuses ${what}`, async () => {
        const [model, fused] = writePair();
        fs.writeFileSync(at(name), content);
        const error = await failure(() => verifyModels(model, fused, { inputFiles: [{ file: at(name) }] }));
        expect(error.code).to.equal('INVALID_ARGUMENT');
        expect(error.message).to.match(message).and.to.contain(at(name));
      });

    it('a file that is not there, and one that is cut off', async () => {
      const [model, fused] = writePair();
      const missing = await failure(() =>
        verifyModels(model, fused, { inputFiles: [{ file: at('no.npy') }] }),
      );
      expect(missing.code).to.equal('FILE_NOT_FOUND');
      fs.writeFileSync(at('x.npy'), npy(attentionInput()).subarray(0, -4));
      const cut = await failure(() => verifyModels(model, fused, { inputFiles: [{ file: at('x.npy') }] }));
      expect(cut.message).to.contain('is [2, 5, 16], 640 bytes, but holds 636');
    });
  });

  describe('on the command line', () => {
    it('exit code 0 and a table for equal models, 4 and the first bad element for others', () => {
      const [model, fused] = writePair();
      const equal = qkvgemm(['verify', model, fused, '--dims', 'batch=2,sequence=5', '--intermediates']);
      expect([equal.code, equal.stderr]).to.deep.equal([0, '']);
      expect(equal.stdout).to.contain('input x: float32 [2, 5, 16], generated with seed 1');
      expect(equal.stdout).to.match(/│ y .*dB │ 1\.0+ +│ 0 of 80/);
      expect(equal.stdout).to.match(/value inside/);
      expect(equal.stdout).to.contain('Equal: no output differs by more than 0.005 of the largest element.');
      const different = qkvgemm(['verify', model, writeOther(), '--atol', '1e-3', '--rtol', '1e-3']);
      expect(different.code).to.equal(4);
      expect(different.stdout).to.match(
        /Different: 'y' by .*first at \[0, 0, \d\]: .*Allowed are 0.001 \+ 0.001 \|a\|/,
      );
    });

    it('--json', () => {
      const [model, fused] = writePair();
      const { code, stdout } = qkvgemm([
        'verify',
        model,
        fused,
        '--json',
        '--seed',
        '7',
        '--library',
        'none',
      ]);
      expect(code).to.equal(0);
      const report = JSON.parse(stdout) as VerifyReport;
      expect(report).to.include({ a: model, b: fused, equal: true, seed: 7 });
      const other = qkvgemm(['verify', model, writeOther(), '--json']);
      expect(other.code).to.equal(4);
      expect((JSON.parse(other.stdout) as VerifyReport).equal).to.equal(false);
    });

    it('exit code 1 for what is not as needed, 2 for a wrong command line', () => {
      const [model] = writePair();
      expect(qkvgemm(['verify', model, at('none.onnx')]).code).to.equal(1);
      for (const [flag, value] of [
        ['--atol', '-1'],
        ['--seed', 'x'],
        ['--library', 'c'],
        ['--threads', '0'],
      ] as const) {
        const { code, stderr } = qkvgemm(['verify', model, model, flag, value]);
        expect(code, flag).to.equal(2);
        expect(stderr).to.contain(flag);
      }
    });
  });
});
