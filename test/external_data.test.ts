import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { attentionModel, externalBytes, K, N } from '../models/attention.js';
import { ModelBuilder } from '../models/builder.js';
import { DataFile } from '../ts/data_file.js';
import { FolderSource } from '../ts/external_data.js';
import { externalTensors } from '../ts/onnx/external_tensors.js';
import { fuseFile } from '../ts/fuse_file.js';
import { Model } from '../ts/onnx/model.js';
import { DataType, encodeExternalTensor, Tensor } from '../ts/onnx/tensor.js';
import { concat, MessageWriter, readFields } from '../ts/onnx/wire.js';
import { writeModelWhole } from '../ts/staging.js';
import { moveTensors } from '../ts/weight_store.js';
import { filesIn, testFolder } from './support/command.js';
import { failure } from './support/failure.js';

describe('tensors moved into one data file', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  /** Moves a model's tensors into `all.data`; returns the model and the file's bytes. */
  function move(bytes: Uint8Array, everything: boolean): { model: Model; data: Uint8Array; moved: number } {
    const data = new DataFile(
      () => at('all.data'),
      'all.data',
      (error) => error as Error,
    );
    const source = new FolderSource(folder());
    const steps = moveTensors(bytes, { data, source, moved: new Set(), everything });
    let moved = 0;
    for (;;) {
      const step = steps.next();
      if (!step.done) {
        moved += step.value;
        continue;
      }
      data.finish();
      const file = data.used ? new Uint8Array(fs.readFileSync(at('all.data'))) : new Uint8Array();
      return { model: new Model(concat(step.value)), data: file, moved };
    }
  }

  const floats = (count: number, factor: number): Float32Array<ArrayBuffer> =>
    Float32Array.from({ length: count }, (_, i) => i * factor);

  it('keep their names, shapes, types and elements; small ones and everything else stay byte for byte', () => {
    const builder = new ModelBuilder();
    builder.input('x', [1]);
    builder.output(builder.node('Relu', ['x'], ['y']));
    builder.floats('large', [16, 16], floats(256, 1));
    builder.floats('half', [512], floats(512, 0.5), DataType.float16);
    builder.floats('small', [255], floats(255, 1));
    const original = builder.finish();
    const before = new Model(original).graph;
    const { model, moved } = move(original, false);
    const after = model.graph.initializers;
    expect(moved).to.equal(2048);
    const source = new FolderSource(folder());
    for (const [name, tensor] of before.initializers) {
      const other = after.get(name);
      expect(other?.external === undefined, name).to.equal(name === 'small');
      expect([other?.dims, other?.type]).to.deep.equal([tensor.dims, tensor.type]);
      expect(other?.bytes(source)).to.deep.equal(tensor.bytes());
      expect((other?.external?.offset ?? 0) % 4096).to.equal(0);
    }
    // Nodes, inputs, outputs, the opset: all but the graph's initialisers.
    const rest = (bytes: Uint8Array): string[] =>
      readFields(bytes, 'the model').flatMap((field) =>
        (field.number === 7 ? readFields(field.value, 'the graph') : [field])
          .filter(({ number }) => field.number !== 7 || number !== 5)
          .map(({ span }) => Buffer.from(span).toString('base64')),
      );
    expect(rest(model.bytes)).to.deep.equal(rest(original));
  });

  it('fields that are not known here stay, as do elements stored as numbers', () => {
    const typed = new MessageWriter()
      .integer(1, 256)
      .integer(2, DataType.float)
      .bytes(4, new Uint8Array(floats(256, 3).buffer))
      .string(8, 'typed')
      .string(12, 'a doc string')
      .string(99, 'of a later version')
      .finish();
    const graph = new MessageWriter().bytes(5, typed).finish();
    const { model } = move(new MessageWriter().integer(1, 8).bytes(7, graph).finish(), false);
    const tensor = model.graph.initializers.get('typed');
    expect(tensor?.bytes(new FolderSource(folder()))).to.deep.equal(new Uint8Array(floats(256, 3).buffer));
    expect(Buffer.from(concat(model.encode())).toString('latin1'))
      .to.contain('a doc string')
      .and.to.contain('of a later version');
  });

  it('that share their bytes go on sharing them; those in subgraphs come along', () => {
    fs.writeFileSync(at('w.bin'), externalBytes());
    const inner = new ModelBuilder();
    inner.external('inside', [K, N], { location: 'w.bin', offset: 512 });
    const branch = new MessageWriter().string(1, 'then_branch').bytes(6, inner.graph()).finish();
    const node = new MessageWriter().string(4, 'If').bytes(5, branch).finish();
    const builder = new ModelBuilder();
    builder.external('a', [K, N], { location: 'w.bin', offset: 0 });
    builder.external('b', [K, N], { location: 'w.bin', offset: 0 });
    builder.rawNode(node);
    const { model, moved, data } = move(builder.finish(), true);
    expect(moved).to.equal(1024);
    const offsets = new Map(
      externalTensors(model.bytes).map(({ name, external }) => [name, external?.offset]),
    );
    expect([...offsets.keys()]).to.have.members(['a', 'b', 'inside']);
    expect(offsets.get('b')).to.equal(offsets.get('a'));
    expect(offsets.get('inside')).not.to.equal(offsets.get('a'));
    for (const [name, from] of [
      ['a', 0],
      ['inside', 512],
    ] as const)
      // prettier-ignore
      expect(data.subarray(offsets.get(name), (offsets.get(name) ?? 0) + 512), name).to.deep.equal(
        externalBytes().subarray(from, from + 512),
      );
    expect(data.length).to.equal(4096 + 512);
  });

  it('a length that the model does not state follows from the shape', () => {
    fs.writeFileSync(at('w.bin'), externalBytes());
    const tensor = encodeExternalTensor('w', DataType.float, [K, N], { location: 'w.bin', offset: 512 });
    const graph = new MessageWriter().bytes(5, tensor).finish();
    const { model, data } = move(new MessageWriter().integer(1, 8).bytes(7, graph).finish(), true);
    expect(data).to.deep.equal(externalBytes().subarray(512, 1024));
    expect(model.graph.initializers.get('w')?.external?.length).to.equal(512);
  });

  it('refuse ranges that overlap until they are longer than their file, and lengths that are not the shape’s', () => {
    fs.writeFileSync(at('w.bin'), externalBytes());
    const overlapping = new ModelBuilder();
    for (let i = 0; i < 100; i++) overlapping.external(`w${i}`, [K, N], { location: 'w.bin', offset: 4 * i });
    expect(() => move(overlapping.finish(), true))
      .to.throw(/tensors in '.*w\.bin' overlap: up to 'w3' they need 2048 bytes of its 1536/)
      .with.property('code', 'EXTERNAL_DATA');
    const wrong = encodeExternalTensor('w', DataType.float, [K, N], {
      location: 'w.bin',
      offset: 0,
      length: 8,
    });
    const graph = new MessageWriter().bytes(5, wrong).finish();
    expect(() => move(new MessageWriter().integer(1, 8).bytes(7, graph).finish(), true))
      .to.throw(/needs 512 bytes.*the model says 8/)
      .with.property('code', 'EXTERNAL_DATA');
  });
});

describe('hostile external data', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  it('a tensor larger than can be rewritten, in a file that is as large: refused before it is read', async () => {
    const columns = 2 ** 27;
    fs.writeFileSync(at('w.bin'), '');
    fs.truncateSync(at('w.bin'), 4 * K * columns); // sparse: takes no room
    const tensor = new Tensor(
      encodeExternalTensor('w', DataType.float, [K, columns], { location: 'w.bin', offset: 0 }),
      't',
    );
    const error = await failure(() => tensor.bytes(new FolderSource(folder())));
    expect(error.code).to.equal('UNSUPPORTED_MODEL');
    expect(error.message).to.contain('8589934592 bytes');
  });

  for (const location of ['.', 'sub', '', 'a\0b', '../in/../w.bin', '/dev/zero', '//etc/hostname', 'fifo']) {
    it(`a place that is no file in the folder: '${location.replace('\0', '\\0')}'`, async () => {
      fs.mkdirSync(at('in', 'sub'), { recursive: true });
      fs.mkdirSync(at('out'));
      fs.writeFileSync(at('w.bin'), externalBytes());
      fs.symlinkSync('/dev/zero', at('in', 'fifo'));
      fs.writeFileSync(at('in', 'model.onnx'), attentionModel({ location }));
      for (const options of [{}, { externalDataFile: 'all' }]) {
        const error = await failure(() => fuseFile(at('in', 'model.onnx'), at('out', 'm.onnx'), options));
        expect(error.code).to.equal(location === '' ? 'INVALID_MODEL' : 'EXTERNAL_DATA');
        expect(error.message).to.contain('model.onnx');
      }
      expect(filesIn(at('out'))).to.deep.equal([]);
    });
  }

  it('a folder that is a link out of the model’s', async () => {
    fs.mkdirSync(at('elsewhere'));
    fs.mkdirSync(at('in'));
    fs.writeFileSync(at('elsewhere', 'w.bin'), externalBytes());
    fs.symlinkSync('../elsewhere', at('in', 'sub'));
    fs.writeFileSync(at('in', 'model.onnx'), attentionModel({ location: 'sub/w.bin' }));
    const error = await failure(() => fuseFile(at('in', 'model.onnx'), at('in', 'm.onnx')));
    expect(error.code).to.equal('EXTERNAL_DATA');
    expect(error.message).to.contain("outside the model's folder");
  });

  it('a file under two spellings is copied once', async () => {
    fs.mkdirSync(at('out'));
    fs.writeFileSync(at('w.bin'), externalBytes());
    const companions = ['w.bin', './w.bin', 'sub//../w.bin'].map((location) => ({
      from: at('w.bin'),
      location,
    }));
    await writeModelWhole(at('out', 'm.onnx'), [new Uint8Array(3)], companions, {}, () => Promise.resolve());
    expect(filesIn(at('out'))).to.deep.equal(['m.onnx', 'w.bin']);
    expect(fs.readFileSync(at('out', 'w.bin'))).to.deep.equal(Buffer.from(externalBytes()));
  });
});
