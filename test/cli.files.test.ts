import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { attentionModel, externalBytes, type AttentionOptions } from '../models/attention.js';
import { encodeNode } from '../ts/onnx/node.js';
import { fileDifference, writeAttentionModel } from './support/attention.js';
import { filesIn, qkvgemm, testFolder } from './support/command.js';

describe('qkvgemm fuse: files that are not as needed', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  /** Runs the command, which must fail with a message of this kind, name the file and leave the folder as it was. */
  function fails(args: readonly string[], file: string, message: RegExp): void {
    const before = new Map(filesIn(folder()).map((name) => [name, read(at(name))]));
    const { code, stdout, stderr } = qkvgemm(['fuse', ...args], { cwd: folder() });
    expect(stdout).to.equal('');
    expect(stderr)
      .to.match(/^qkvgemm: /)
      .and.to.match(message)
      .and.to.contain(file);
    expect(stderr, 'a stack trace').not.to.match(/\n\s+at /);
    expect(stderr).not.to.contain('unexpected error');
    expect(code).to.equal(1);
    const after = new Map(filesIn(folder()).map((name) => [name, read(at(name))]));
    expect(after).to.deep.equal(before);
  }
  const read = (file: string): string => (fs.existsSync(file) ? fs.readFileSync(file, 'base64') : 'dangling');

  describe('inputs', () => {
    const contents: [string, () => Uint8Array, RegExp][] = [
      ['a truncated model', () => attentionModel().subarray(0, 700), /says \d+ bytes.*left|truncated/],
      ['a text file', () => Buffer.from('# not a model\n'.repeat(20)), /[Nn]ot a valid ONNX model/],
      ['an empty file', () => new Uint8Array(), /[Nn]ot a valid ONNX model/],
    ];
    for (const [what, bytes, message] of contents) {
      it(what, () => {
        fs.writeFileSync(at('broken.onnx'), bytes());
        fails(['broken.onnx'], 'broken.onnx', message);
        fails(['broken.onnx', '--dry-run'], 'broken.onnx', message);
      });
    }

    it('a folder', () => {
      fs.mkdirSync(at('some.onnx'));
      fails(['some.onnx'], 'some.onnx', /is not a file/);
    });

    it('a missing file, also below a regular file', () => {
      fs.writeFileSync(at('file'), '');
      fails(['nowhere.onnx'], 'nowhere.onnx', /does not exist/);
      fails(['file/model.onnx'], 'file/model.onnx', /does not exist/);
    });

    it('a name that no file can have', () => {
      fails(['x'.repeat(5000)], 'xxxx', /ENAMETOOLONG/);
    });

    it('a link to itself', () => {
      fs.symlinkSync('loop.onnx', at('loop.onnx'));
      const { code, stderr } = qkvgemm(['fuse', 'loop.onnx'], { cwd: folder() });
      expect(stderr).to.match(/^qkvgemm: .*loop\.onnx.*ELOOP/);
      expect(code).to.equal(1);
    });

    it('--json: the error as an object too', () => {
      const { code, stdout } = qkvgemm(['fuse', 'nowhere.onnx', '--json'], { cwd: folder() });
      expect(code).to.equal(1);
      const { error } = JSON.parse(stdout) as { error: { code: string; message: string } };
      expect(error.code).to.equal('FILE_NOT_FOUND');
      expect(error.message).to.contain('nowhere.onnx');
    });

    for (const [what, options, message] of [
      [
        'an operator that does not exist',
        {
          extraNodes: [encodeNode({ opType: 'Nonsense', name: 'odd', inputs: ['x'], outputs: ['x2'] })],
          normInput: 'x2',
        },
        /does not load 'model.onnx' itself.*Nonsense/,
      ],
      [
        'types that do not fit',
        {
          extraNodes: [encodeNode({ opType: 'Not', name: 'odd', inputs: ['x'], outputs: ['flag'] })],
        },
        /does not load 'model.onnx' itself.*float/,
      ],
    ] as [string, AttentionOptions, RegExp][]) {
      it(`a model that ONNX Runtime rejects: ${what}; --no-verify rewrites it all the same`, () => {
        writeAttentionModel(folder(), options);
        fails(['model.onnx'], 'model.onnx', message);
        expect(qkvgemm(['fuse', 'model.onnx', '--no-verify'], { cwd: folder() }).code).to.equal(0);
        expect(filesIn(folder())).to.deep.equal(['model.fused.onnx', 'model.onnx']);
      });
    }
  });

  describe('outputs', () => {
    beforeEach(() => writeAttentionModel(folder()));

    it('that cannot be written', () => {
      fs.writeFileSync(at('file'), '');
      fs.mkdirSync(at('sub'));
      fails(['model.onnx', 'file/out.onnx'], 'file/out.onnx', /is no folder/);
      fails(['model.onnx', 'none/out.onnx'], 'none/out.onnx', /is no folder/);
      fails(['model.onnx', '/proc/out.onnx'], '/proc/out.onnx', /cannot be written/);
      fails(['model.onnx', 'sub'], 'sub', /is a folder/);
      fails(['model.onnx', ''], '', /no name/);
      fails(['model.onnx', `${'y'.repeat(300)}.onnx`], 'yyyy', /ENAMETOOLONG/);
    });

    it('that are no regular files: those are not replaced, whatever the flags', () => {
      fails(['model.onnx', '/dev/null', '--overwrite'], '/dev/null', /no regular file/);
      expect(fs.statSync('/dev/null').isCharacterDevice()).to.equal(true);
    });

    it('that are the input, by whichever path', () => {
      fs.mkdirSync(at('sub'));
      fs.symlinkSync('model.onnx', at('symbolic.onnx'));
      fs.linkSync(at('model.onnx'), at('hard.onnx'));
      for (const out of ['model.onnx', './sub/../model.onnx', at('model.onnx'), 'symbolic.onnx', 'hard.onnx'])
        fails(['model.onnx', out, '--overwrite'], out, /is the input/);
      fails(['symbolic.onnx', 'model.onnx', '--overwrite'], 'model.onnx', /is the input/);
    });

    it('that exist', () => {
      fs.writeFileSync(at('out.onnx'), 'mine');
      fs.writeFileSync(at('model.fused.onnx'), 'mine');
      fails(['model.onnx', 'out.onnx'], 'out.onnx', /--overwrite/);
      fails(['model.onnx'], 'model.fused.onnx', /--overwrite/);
    });
  });

  describe('external data', () => {
    it('stays where it is for an output in the same folder; the result runs', async () => {
      const model = writeAttentionModel(folder(), { location: 'weights.bin' });
      expect(qkvgemm(['fuse', model]).code).to.equal(0);
      expect(filesIn(folder())).to.deep.equal([
        'model.fused.onnx',
        'model.fused.onnx.data',
        'model.onnx',
        'weights.bin',
      ]);
      expect(fs.readFileSync(at('weights.bin'))).to.deep.equal(Buffer.from(externalBytes()));
      expect(await fileDifference(at('model.fused.onnx'), model)).to.be.below(1e-5);
    });

    it('is copied beside an output in another folder where it is still needed, and the result runs', async () => {
      // What is not fused stays external: here everything but the second layer's weights would; an Add reads `extra`.
      const model = writeAttentionModel(folder(), { location: 'data/weights.bin', external: true });
      fs.mkdirSync(at('out'));
      const { code, stderr } = qkvgemm(['fuse', model, at('out', 'm.onnx')]);
      expect(stderr).to.equal('');
      expect(code).to.equal(0);
      expect(filesIn(at('out'))).to.deep.equal(['data/weights.bin', 'm.onnx', 'm.onnx.data']);
      expect(fs.readFileSync(at('out', 'data', 'weights.bin'))).to.deep.equal(Buffer.from(externalBytes()));
      expect(await fileDifference(at('out', 'm.onnx'), model)).to.be.below(1e-5);
    });

    it('of another model in the output folder is not replaced without --overwrite', () => {
      const model = writeAttentionModel(folder(), { location: 'weights.bin', external: true });
      fs.mkdirSync(at('out'));
      fs.writeFileSync(at('out', 'weights.bin'), 'mine');
      fails([model, 'out/m.onnx'], path.join('out', 'weights.bin'), /exists/);
      expect(qkvgemm(['fuse', model, at('out', 'm.onnx'), '--overwrite']).code).to.equal(0);
      expect(fs.readFileSync(at('out', 'weights.bin'))).to.deep.equal(Buffer.from(externalBytes()));
    });

    it('is never overwritten by the output, nor does the output take its name', () => {
      const model = writeAttentionModel(folder(), { location: 'weights.bin', external: true });
      fs.mkdirSync(at('out'));
      fails([model, 'weights.bin', '--overwrite'], 'weights.bin', /is the input/);
      fails([model, 'out/weights.bin'], 'weights.bin', /has the name of the external data/);
    });

    it('that is missing', () => {
      const model = writeAttentionModel(folder(), { location: 'weights.bin' });
      fs.rmSync(at('weights.bin'));
      fails([model], 'weights.bin', /does not exist/);
    });

    it('that is missing, of a tensor that is not fused, with --no-verify', () => {
      const model = writeAttentionModel(folder(), { location: 'weights.bin', external: true });
      fs.rmSync(at('weights.bin'));
      fails([model, '--no-verify'], 'weights.bin', /does not exist/);
    });

    for (const location of ['../weights.bin', '/etc/hostname', 'sub/../../weights.bin']) {
      it(`outside the model's folder: ${location}`, () => {
        fs.mkdirSync(at('inner', 'sub'), { recursive: true });
        fs.writeFileSync(at('weights.bin'), externalBytes());
        fs.writeFileSync(at('inner', 'model.onnx'), attentionModel({ location }));
        fails(['inner/model.onnx'], location, /outside the model's folder/);
        fails(['inner/model.onnx', '--dry-run'], 'inner/model.onnx', /outside the model's folder/);
      });
    }

    it("outside the model's folder, by a symbolic link", () => {
      fs.mkdirSync(at('inner'));
      fs.writeFileSync(at('secret'), externalBytes());
      fs.symlinkSync('../secret', at('inner', 'weights.bin'));
      fs.writeFileSync(at('inner', 'model.onnx'), attentionModel({ location: 'weights.bin' }));
      fails(['inner/model.onnx'], 'weights.bin', /outside the model's folder/);
    });

    it('beyond the end of its file', () => {
      const model = writeAttentionModel(folder(), { location: 'weights.bin', offset: 4096 });
      fails([model], 'weights.bin', /byte \d+.*which has 1536/);
      writeAttentionModel(folder(), { location: 'weights.bin', offset: 4 });
      fails([model], 'weights.bin', /byte 1540.*which has 1536/);
    });

    it('that is a folder', () => {
      const model = writeAttentionModel(folder(), { location: 'weights.bin' });
      fs.rmSync(at('weights.bin'));
      fs.mkdirSync(at('weights.bin'));
      fails([model], 'weights.bin', /not a file|is a folder/);
    });
  });
});
