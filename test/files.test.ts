import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { attentionModel, externalBytes } from '../models/attention.js';
import { QkvGemmError } from '../ts/errors.js';
import { FolderSource } from '../ts/external_data.js';
import { externalTensors } from '../ts/onnx/external_tensors.js';
import { checkWritable } from '../ts/files.js';
import { encodeNode } from '../ts/onnx/node.js';
import { MessageWriter } from '../ts/onnx/wire.js';
import { writeModelWhole } from '../ts/staging.js';
import { filesIn, testFolder } from './support/command.js';
import { failure } from './support/failure.js';

const parts = [new Uint8Array([1, 2]), new Uint8Array(), new Uint8Array([3])];

describe('writeModelWhole', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);
  const source = (): { from: string; location: string }[] => {
    fs.mkdirSync(at('in'), { recursive: true });
    fs.mkdirSync(at('out'), { recursive: true });
    fs.writeFileSync(at('in', 'w.bin'), 'weights');
    return [{ from: at('in', 'w.bin'), location: 'sub/w.bin' }];
  };

  it('writes all parts; the check sees them under another name, external data beside them', async () => {
    await writeModelWhole(at('m.onnx'), parts);
    expect([...fs.readFileSync(at('m.onnx'))]).to.deep.equal([1, 2, 3]);
    let checked = '';
    await writeModelWhole(at('out', 'm.onnx'), parts, source(), {}, (temporary) => {
      checked = temporary;
      expect([...fs.readFileSync(temporary)]).to.deep.equal([1, 2, 3]);
      const beside = path.join(path.dirname(temporary), 'sub', 'w.bin');
      expect(fs.readFileSync(beside, 'utf8')).to.equal('weights');
      expect(fs.existsSync(at('out', 'm.onnx'))).to.equal(false);
      return Promise.resolve();
    });
    expect(checked).not.to.equal('');
    expect(filesIn(at('out'))).to.deep.equal(['m.onnx', 'sub/w.bin']);
    expect(fs.readdirSync(at('out'))).to.have.members(['m.onnx', 'sub']);
  });

  it('a failed check leaves nothing, external data included, and what was there before', async () => {
    const companions = source();
    const options = { overwrite: true };
    const fail = (): Promise<void> => Promise.reject(new QkvGemmError('CHECK_FAILED', 'no'));
    const write = (): Promise<void> => writeModelWhole(at('out', 'm.onnx'), parts, companions, options, fail);
    expect((await failure(write)).code).to.equal('CHECK_FAILED');
    expect(fs.readdirSync(at('out'))).to.deep.equal([]);
    fs.writeFileSync(at('out', 'm.onnx'), 'mine');
    expect((await failure(write)).code).to.equal('CHECK_FAILED');
    expect(fs.readdirSync(at('out'))).to.deep.equal(['m.onnx']);
    expect(fs.readFileSync(at('out', 'm.onnx'), 'utf8')).to.equal('mine');
  });

  it('a file that somebody puts there meanwhile is not replaced', async () => {
    for (const [name, companions] of [
      ['m.onnx', []],
      ['sub/w.bin', source()],
    ] as const) {
      fs.rmSync(at('out'), { recursive: true });
      fs.mkdirSync(at('out', 'sub'), { recursive: true });
      const error = await failure(() =>
        writeModelWhole(at('out', 'm.onnx'), parts, companions, {}, () => {
          fs.writeFileSync(at('out', name), 'theirs');
          return Promise.resolve();
        }),
      );
      expect(error.code).to.equal('FILE_EXISTS');
      expect(filesIn(at('out'))).to.deep.equal([name]);
      expect(fs.readFileSync(at('out', name), 'utf8')).to.equal('theirs');
    }
  });

  it('leaves no signal handlers behind', async () => {
    const before = process.listenerCount('SIGINT') + process.listenerCount('SIGTERM');
    await writeModelWhole(at('a.onnx'), parts);
    await failure(() => writeModelWhole(at('none', 'a.onnx'), parts));
    await failure(() =>
      writeModelWhole(at('b.onnx'), parts, [], {}, () =>
        Promise.reject(new QkvGemmError('CHECK_FAILED', '')),
      ),
    );
    expect(process.listenerCount('SIGINT') + process.listenerCount('SIGTERM')).to.equal(before);
  });

  it('external data that lies there already, by a linked folder, is not copied onto itself', async () => {
    fs.mkdirSync(at('in'));
    fs.writeFileSync(at('in', 'w.bin'), 'weights');
    fs.symlinkSync('in', at('out'));
    await writeModelWhole(at('out', 'm.onnx'), parts, [{ from: at('in', 'w.bin'), location: 'w.bin' }]);
    expect(filesIn(at('in'))).to.deep.equal(['m.onnx', 'w.bin']);
    expect(fs.readFileSync(at('in', 'w.bin'), 'utf8')).to.equal('weights');
  });

  it('a link to nowhere may become the output; one to a folder may not', async () => {
    fs.symlinkSync('nowhere', at('link.onnx'));
    await writeModelWhole(at('link.onnx'), parts);
    expect(fs.lstatSync(at('link.onnx')).isFile()).to.equal(true);
    fs.symlinkSync('.', at('folder.onnx'));
    expect((await failure(() => checkWritable(at('folder.onnx'), { overwrite: true }))).code).to.equal(
      'FILE_NOT_WRITABLE',
    );
  });
});

describe('external data', () => {
  const folder = testFolder();

  it('is found in initialisers, attributes, subgraphs and functions', () => {
    const tensor = (location: string): Uint8Array =>
      new MessageWriter()
        .integer(2, 1)
        .string(8, `of ${location}`)
        .bytes(13, new MessageWriter().string(1, 'location').string(2, location).finish())
        .integer(14, 1)
        .finish();
    const holding = (field: number, value: Uint8Array): Uint8Array =>
      encodeNode({
        opType: 'Any',
        inputs: [],
        outputs: ['a'],
        attributes: [new MessageWriter().string(1, 'value').bytes(field, value).finish()],
      });
    const graphOf = (node: Uint8Array): Uint8Array => new MessageWriter().bytes(1, node).finish();
    const inner = new MessageWriter().bytes(5, tensor('subgraph')).finish();
    const sparse = new MessageWriter().bytes(1, tensor('sparse')).finish();
    const graph = new MessageWriter()
      .bytes(5, tensor('initialiser'))
      .bytes(15, sparse)
      .bytes(1, holding(5, tensor('attribute')))
      .bytes(1, holding(10, tensor('attributes')))
      .bytes(1, holding(6, graphOf(holding(11, inner))))
      .finish();
    const body = new MessageWriter().bytes(7, holding(5, tensor('function'))).finish();
    const model = new MessageWriter().integer(1, 8).bytes(7, graph).bytes(25, body).finish();
    expect(externalTensors(model).map(({ external }) => external?.location)).to.have.members([
      'initialiser',
      'sparse',
      'attribute',
      'attributes',
      'subgraph',
      'function',
    ]);
    expect(externalTensors(attentionModel())).to.deep.equal([]);
    expect(externalTensors(attentionModel({ location: 'w' })).map(({ name }) => name)).to.deep.equal([
      'wq',
      'wk',
      'wv',
    ]);
  });

  it('is read from its offset on, exactly', async () => {
    const file = path.join(folder(), 'w.bin');
    const bytes = externalBytes();
    fs.writeFileSync(file, bytes);
    const source = new FolderSource(folder());
    const read = (offset: number, length: number, wanted = length): Uint8Array =>
      source.read({ location: 'w.bin', offset, length }, wanted, 't');
    expect(read(5, 100)).to.deep.equal(bytes.subarray(5, 105));
    expect(read(bytes.length, 0)).to.deep.equal(new Uint8Array());
    expect((await failure(() => read(bytes.length - 3, 4))).message).to.contain("Tensor 't' needs 4 bytes");
    expect((await failure(() => read(0, 8, 4))).message).to.contain('the model says 8');
    expect(source.locate({ location: 'w.bin', offset: bytes.length }, 't').file).to.equal(file);
    expect(
      (await failure(() => source.locate({ location: 'w.bin', offset: bytes.length + 1 }, 't'))).code,
    ).to.equal('EXTERNAL_DATA');
  });
});
