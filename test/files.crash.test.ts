import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { LLAMA_SMALL, WEIGHTS, writeLlamaStack } from '../models/llama_stack.js';
import { FolderSource } from '../ts/external_data.js';
import { externalTensors } from '../ts/onnx/external_tensors.js';
import { fuseFile } from '../ts/fuse_file.js';
import { Model } from '../ts/onnx/model.js';
import { commandLine, filesIn, qkvgemm, start, testFolder } from './support/command.js';
import { failure } from './support/failure.js';

describe('a rewrite that does not come to its end', () => {
  // Before the folder's own hook, which removes it.
  afterEach(() => {
    expect(filesIn(at('in'))).to.deep.equal([...before.keys()]);
    for (const [name, bytes] of before) expect(fs.readFileSync(at('in', name)).equals(bytes)).to.equal(true);
  });
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);
  const shape = { ...LLAMA_SMALL, layers: 2 };
  let before: Map<string, Buffer>;

  beforeEach(() => {
    fs.mkdirSync(at('in'));
    fs.mkdirSync(at('out'));
    writeLlamaStack(at('in'), shape);
    before = new Map(filesIn(at('in')).map((name) => [name, fs.readFileSync(at('in', name))]));
  });

  /** Names in the output folder, temporary ones aside. */
  const results = (): string[] =>
    filesIn(at('out')).filter((name) => !/^\.m\.onnx\.[0-9a-f]{12}\.tmp/.test(name));

  /** The model under the final name has all its data: every tensor's range is there, the new file's to its end. */
  function expectWhole(file: string): void {
    const { bytes, functions } = new Model(new Uint8Array(fs.readFileSync(file)));
    expect(functions).to.deep.equal(['com.deepspeed:QKVGemm']);
    const source = new FolderSource(path.dirname(file));
    const tensors = externalTensors(bytes);
    expect(tensors.length).to.be.above(0);
    for (const tensor of tensors) tensor.checkedLength(source);
  }

  const FLAGS = [[], ['--external-data-file', 'all.data']] as const;

  for (const flags of FLAGS) {
    it(`kill -9${flags.length > 0 ? ` with ${flags.join(' ')}` : ''} leaves nothing under a final name, and the next run works`, async () => {
      const args = ['fuse', at('in', 'model.onnx'), at('out', 'm.onnx'), ...flags];
      const child = start(args, folder());
      const exit = once(child, 'exit');
      while (fs.readdirSync(at('out')).length === 0 && child.exitCode === null)
        await new Promise((resolve) => setImmediate(resolve));
      child.kill('SIGKILL');
      await exit;
      expect(fs.readdirSync(at('out'))).to.have.length(1);
      expect(results()).to.deep.equal([]);
      const { code, stderr } = qkvgemm(args, { cwd: folder() });
      expect(code, stderr).to.equal(0);
      expectWhole(at('out', 'm.onnx'));
    });

    it(`SIGINT${flags.length > 0 ? ` with ${flags.join(' ')}` : ''} while weights are written leaves nothing at all`, async () => {
      const args = ['fuse', at('in', 'model.onnx'), at('out', 'm.onnx'), ...flags];
      const child = start(args, folder());
      const exit = once(child, 'exit');
      while (filesIn(at('out')).length === 0 && child.exitCode === null)
        await new Promise((resolve) => setImmediate(resolve));
      child.kill('SIGINT');
      expect(await exit).to.deep.equal([130, null]);
      expect(fs.readdirSync(at('out'))).to.deep.equal([]);
    });
  }

  /** Runs the command in a process whose n-th rename is its last deed, or fails. */
  function withRename(n: number, deed: string, args: readonly string[]): number | null {
    const hook = `import fs from 'node:fs'; const rename = fs.renameSync; let n = 0;
      fs.renameSync = (...args) => { if (++n === ${n}) { ${deed} } return rename(...args); };`;
    const imported = `data:text/javascript,${encodeURIComponent(hook)}`;
    return spawnSync(process.execPath, ['--import', imported, ...commandLine, ...args], { cwd: folder() })
      .status;
  }

  it('kill -9 between the names: a model is there with all its data, or not at all', () => {
    const args = ['fuse', at('in', 'model.onnx'), at('out', 'm.onnx'), '--no-verify'];
    const died: string[][] = [];
    for (let n = 1; ; n++) {
      const code = withRename(n, 'process.kill(process.pid, "SIGKILL")', args);
      if (fs.existsSync(at('out', 'm.onnx'))) expectWhole(at('out', 'm.onnx'));
      if (code === 0) break;
      died.push(results());
      for (const name of fs.readdirSync(at('out'))) fs.rmSync(at('out', name), { recursive: true });
    }
    // The new data file, the copied one, the model.
    expect(died.map((names) => names.length)).to.deep.equal([0, 1, 2]);
    expect(died.flat()).not.to.include('m.onnx');
  });

  it('kill -9 between the names of a replacement: never the former model with new data', () => {
    const args = ['fuse', at('in', 'model.onnx'), at('out', 'm.onnx'), '--no-verify', '--overwrite'];
    const former = new Map([['m.onnx', 'former model'], ['m.onnx.data', 'former data'], [WEIGHTS, 'former weights']]); // prettier-ignore
    let deaths = 0;
    for (let n = 1; ; n++) {
      for (const name of fs.readdirSync(at('out'))) fs.rmSync(at('out', name), { recursive: true });
      for (const [name, text] of former) fs.writeFileSync(at('out', name), text);
      if (withRename(n, 'process.kill(process.pid, "SIGKILL")', args) === 0) break;
      deaths++;
      if (!fs.existsSync(at('out', 'm.onnx'))) continue;
      expect(n, 'only before the first').to.equal(1);
      for (const [name, text] of former) expect(fs.readFileSync(at('out', name), 'utf8')).to.equal(text);
    }
    expect(deaths).to.equal(6);
    expectWhole(at('out', 'm.onnx'));
    expect(results()).to.deep.equal(['m.onnx', 'm.onnx.data', WEIGHTS]);
  });

  it('a rename that fails leaves what was there before', () => {
    const args = ['fuse', at('in', 'model.onnx'), at('out', 'm.onnx'), '--no-verify', '--overwrite'];
    for (let n = 1; n <= 6; n++) {
      for (const name of ['m.onnx', 'm.onnx.data', WEIGHTS])
        fs.writeFileSync(at('out', name), `former ${name}`);
      expect(withRename(n, 'throw new Error("no more names")', args)).to.equal(1);
      expect(fs.readdirSync(at('out')).sort()).to.deep.equal(['m.onnx', 'm.onnx.data', WEIGHTS]);
      for (const name of ['m.onnx', 'm.onnx.data', WEIGHTS])
        expect(fs.readFileSync(at('out', name), 'utf8')).to.equal(`former ${name}`);
    }
  });

  for (const flags of FLAGS) {
    it(`a file that cannot grow further${flags.length > 0 ? ` with ${flags.join(' ')}` : ''}: an error, and nothing is left`, () => {
      // 2 MB: less than the weights that are copied. Bash counts kilobytes.
      const args = ['fuse', at('in', 'model.onnx'), at('out', 'm.onnx'), ...flags];
      const limited = ['-c', 'ulimit -f 2048; exec "$0" "$@"', process.execPath, ...commandLine, ...args];
      const { status, stderr } = spawnSync('bash', limited, { encoding: 'utf8', cwd: folder() });
      expect(stderr).to.match(/^qkvgemm: The output '.*m\.onnx' cannot be written: EFBIG/);
      expect(status).to.equal(1);
      expect(fs.readdirSync(at('out'))).to.deep.equal([]);
    });
  }

  it('a full disk: an error, and nothing is left', async function () {
    const mount = ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', at('out')];
    if (spawnSync('mount', mount).status !== 0) {
      console.log('  (no right to mount a small file system: the full disk is not tested)');
      this.skip();
    }
    try {
      for (const options of [{}, { externalDataFile: 'all.data' }]) {
        const error = await failure(() => fuseFile(at('in', 'model.onnx'), at('out', 'm.onnx'), options));
        expect(error.code).to.equal('FILE_NOT_WRITABLE');
        expect(error.message).to.match(/m\.onnx' cannot be written: ENOSPC/);
        expect(fs.readdirSync(at('out'))).to.deep.equal([]);
      }
    } finally {
      spawnSync('umount', [at('out')]);
    }
  });
});
