import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { attentionModel, externalBytes } from '../models/attention.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { fuse, fuseFile, QkvGemmError, withQkvGemm, type FuseOptions } from '../ts/index.js';
import { attentionInput, writeAttentionModel } from './support/attention.js';
import { filesIn, testFolder } from './support/command.js';
import { quiet, runModel } from './support/run.js';

async function failure(promise: Promise<unknown>): Promise<QkvGemmError> {
  const error = await promise.then(
    () => undefined,
    (e: unknown) => e,
  );
  expect(error).to.be.instanceOf(QkvGemmError);
  return error as QkvGemmError;
}

describe('fuse', () => {
  const folder = testFolder();

  it('takes bytes or a path, with the same result', async () => {
    const bytes = attentionModel();
    const fromBytes = await fuse(bytes);
    const fromPath = await fuse(writeAttentionModel(folder()));
    expect(fromPath).to.deep.equal(fromBytes);
    expect(fromBytes.report.fused).to.have.length(1);
    expect(bytes).to.deep.equal(attentionModel());
    const reference = await runModel(bytes, [attentionInput()]);
    const fused = await runModel(fromBytes.model, [attentionInput()], withQkvGemm(quiet));
    expect(worstDifference(reference, fused)).to.be.below(1e-5);
  });

  it('takes a view into a larger buffer', async () => {
    const bytes = attentionModel();
    const larger = new Uint8Array(bytes.length + 14).fill(255);
    larger.set(bytes, 7);
    expect(await fuse(larger.subarray(7, 7 + bytes.length))).to.deep.equal(await fuse(bytes));
  });

  it('gives the input back where nothing can be fused, and the reason', async () => {
    const bytes = attentionModel({ attention: false });
    const { model, report } = await fuse(bytes);
    expect(model).to.equal(bytes);
    expect(report.fused).to.deep.equal([]);
    expect(report.refused.map(({ node }) => node)).to.deep.equal(['h_node']);
    expect(report.opsAfter).to.deep.equal(report.opsBefore);
  });

  it('external data: from a path it is found, from bytes it is asked for', async () => {
    const options = { location: 'weights.bin' };
    const { report, model } = await fuse(writeAttentionModel(folder(), options));
    expect(report.fused).to.have.length(1);
    expect(model).to.deep.equal((await fuse(attentionModel())).model);
    const error = await failure(fuse(attentionModel(options)));
    expect(error.code).to.equal('EXTERNAL_DATA');
    expect(error.message).to.contain('weights.bin').and.to.contain('path');
  });

  it('a model that was rewritten before is named as such, or has nothing left to fuse', async () => {
    const { model } = await fuse(attentionModel());
    const again = await fuse(model);
    expect(again.report.fused).to.deep.equal([]);
    expect(again.model).to.equal(model);
  });

  for (const [what, options, message] of [
    ['an unknown option', { dtyp: 'int8' }, /unknown option 'dtyp'.*Did you mean 'dtype'/],
    [
      'an option of the command',
      { noFallback: true },
      /unknown option 'noFallback'; known: dtype, int8Block, activationQuant, fallback/,
    ],
    [
      'blocks of no rows',
      { dtype: 'int8', int8Block: 0 },
      /int8Block is 0, expected a whole number of rows, 8 or more/,
    ],
    [
      'blocks that are no number',
      { dtype: 'int8', int8Block: '64' },
      /int8Block is 64, expected a whole number/,
    ],
    [
      'blocks without int8',
      { dtype: 'bf16', int8Block: 64 },
      /int8Block is for weights that become int8; dtype is 'bf16'/,
    ],
    ['a wrong dtype', { dtype: 'fp8' }, /dtype is 'fp8', expected one of keep, fp16, bf16, int8/],
    ['null for options', null, /expected an object of options, found null/],
    ['a string for options', 'int8', /expected an object of options, found string/],
  ] as const) {
    it(`refuses ${what}`, async () => {
      const error = await failure(fuse(attentionModel(), options as unknown as FuseOptions));
      expect(error.code).to.equal('INVALID_ARGUMENT');
      expect(error.message).to.match(message);
    });
  }

  for (const [what, model] of Object.entries({
    undefined: undefined,
    Number: 5,
    ArrayBuffer: new ArrayBuffer(8),
    Object: { model: '' },
  })) {
    it(`refuses a model that is ${what}`, async () => {
      const error = await failure(fuse(model as unknown as string));
      expect(error.code).to.equal('INVALID_ARGUMENT');
      expect(error.message).to.contain(what === 'undefined' ? 'Undefined' : what);
    });
  }

  it('cut anywhere, a model gives an error of ours or is still a model; nothing else', async () => {
    const bytes = attentionModel();
    let refused = 0;
    for (let length = 0; length < bytes.length; length += 3) {
      const error = await fuse(bytes.subarray(0, length)).then(
        () => undefined,
        (e: unknown) => e,
      );
      if (error === undefined) continue;
      expect(error, `cut to ${length} bytes`).to.be.instanceOf(QkvGemmError);
      expect((error as QkvGemmError).code).to.equal('INVALID_MODEL');
      refused++;
    }
    expect(refused).to.be.above(bytes.length / 3 - 20);
  });

  it('a changed byte gives a model or an error of ours; nothing else', async () => {
    const bytes = attentionModel();
    let refused = 0;
    for (let at = 0; at < bytes.length; at++) {
      for (const flip of [0x01, 0x80, 0xff]) {
        const changed = bytes.slice();
        changed[at] = (changed[at] ?? 0) ^ flip;
        const error = await fuse(changed, { dtype: 'int8' }).then(
          () => undefined,
          (e: unknown) => e,
        );
        if (error === undefined) continue;
        expect(error, `byte ${at} ^ ${flip}`).to.be.instanceOf(QkvGemmError);
        refused++;
      }
    }
    expect(refused).to.be.above(100);
  });
});

describe('fuseFile', () => {
  const folder = testFolder();
  const at = (name: string): string => path.join(folder(), name);

  it('writes what fuse gives, and reports the same', async () => {
    const model = writeAttentionModel(folder());
    const { report } = await fuseFile(model, at('out.onnx'), { dtype: 'bf16', fallback: false });
    const expected = await fuse(model, { dtype: 'bf16', fallback: false });
    expect(report).to.deep.equal(expected.report);
    expect(new Uint8Array(fs.readFileSync(at('out.onnx')))).to.deep.equal(expected.model);
  });

  it('names the nearest of its own options', async () => {
    const model = writeAttentionModel(folder());
    const error = await failure(fuseFile(model, at('out.onnx'), { verfy: false } as object));
    expect(error.code).to.equal('INVALID_ARGUMENT');
    expect(error.message).to.match(/unknown option 'verfy'.*Did you mean 'verify'/);
    expect(filesIn(folder())).to.deep.equal(['model.onnx']);
  });

  it('codes: FILE_NOT_FOUND, FILE_EXISTS, FILE_NOT_WRITABLE, INVALID_ARGUMENT, INVALID_MODEL, EXTERNAL_DATA', async () => {
    const model = writeAttentionModel(folder());
    fs.writeFileSync(at('text'), 'text');
    fs.writeFileSync(at('external.onnx'), attentionModel({ location: 'missing.bin' }));
    for (const [from, to, code] of [
      ['none.onnx', 'out.onnx', 'FILE_NOT_FOUND'],
      ['model.onnx', 'text', 'FILE_EXISTS'],
      ['model.onnx', 'text/out.onnx', 'FILE_NOT_WRITABLE'],
      ['model.onnx', 'model.onnx', 'INVALID_ARGUMENT'],
      ['text', 'out.onnx', 'INVALID_MODEL'],
      ['external.onnx', 'out.onnx', 'EXTERNAL_DATA'],
    ] as const) {
      const error = await failure(fuseFile(at(from), at(to)));
      expect(error.code, `${from} -> ${to}`).to.equal(code);
    }
    expect(fs.existsSync(model)).to.equal(true);
    expect(filesIn(folder())).to.deep.equal(['external.onnx', 'model.onnx', 'text']);
  });

  it('side by side into one folder', async () => {
    const model = writeAttentionModel(folder(), { location: 'weights.bin' });
    expect(fs.readFileSync(at('weights.bin'))).to.deep.equal(Buffer.from(externalBytes()));
    const types = ['keep', 'fp16', 'bf16', 'int8'] as const;
    await Promise.all(types.map((dtype) => fuseFile(model, at(`${dtype}.onnx`), { dtype })));
    expect(filesIn(folder())).to.have.members([
      'model.onnx',
      'weights.bin',
      ...types.map((dtype) => `${dtype}.onnx`),
      'keep.onnx.data', // the others' weights have fewer than 1024 bytes
    ]);
  });
});
