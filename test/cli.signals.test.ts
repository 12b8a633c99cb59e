import { expect } from 'chai';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { Model } from '../ts/onnx/model.js';
import { writeAttentionModel } from './support/attention.js';
import { filesIn, start, testFolder } from './support/command.js';

/** Resolves when something new is in the folder. */
async function appears(folder: string, known: readonly string[], ended: () => boolean): Promise<void> {
  while (!ended() && fs.readdirSync(folder).every((name) => known.includes(name)))
    await new Promise((resolve) => setImmediate(resolve));
}

describe('qkvgemm fuse, interrupted', () => {
  const folder = testFolder();

  for (const [signal, expected] of [
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const) {
    for (const external of [false, true]) {
      it(`${signal} during the write${external ? ' with external data' : ''} leaves the whole result or nothing`, async () => {
        const model = writeAttentionModel(folder(), external ? { location: 'weights.bin', external } : {});
        const out = path.join(folder(), 'out');
        fs.mkdirSync(out);
        const child = start(['fuse', model, path.join(out, 'm.onnx')], folder());
        const exit = once(child, 'exit') as Promise<[number | null, string | null]>;
        await appears(out, [], () => child.exitCode !== null);
        expect(fs.readdirSync(out), 'the temporary name').to.match(/\.m\.onnx\.[0-9a-f]{12}\.tmp/);
        child.kill(signal);
        const [code] = await exit;
        const left = filesIn(out);
        // The temporary file is seen while it is written or checked, in most runs long before the result has its name.
        if (code === 0) {
          expect(left).to.deep.equal(external ? ['m.onnx', 'm.onnx.data', 'weights.bin'] : ['m.onnx']);
          const bytes = new Uint8Array(fs.readFileSync(path.join(out, 'm.onnx')));
          expect(new Model(bytes).functions).to.deep.equal(['com.deepspeed:QKVGemm']);
        } else {
          expect(code).to.equal(expected);
          expect(fs.readdirSync(out)).to.deep.equal([]);
        }
      });
    }
  }

  it('a signal before anything is written leaves nothing', async () => {
    const model = writeAttentionModel(folder());
    const child = start(['fuse', model], folder());
    const exit = once(child, 'exit') as Promise<[number | null, string | null]>;
    child.kill('SIGTERM');
    expect(await exit).to.deep.equal([null, 'SIGTERM']);
    expect(filesIn(folder())).to.deep.equal(['model.onnx']);
  });
});

describe('qkvgemm bench, interrupted', () => {
  const folder = testFolder();

  it('removes the model that it made', async () => {
    const model = writeAttentionModel(folder());
    const scratch = path.join(folder(), 'scratch');
    fs.mkdirSync(scratch);
    const child = start(['bench', model, '--fused', '--seconds', '60'], folder(), { TMPDIR: scratch });
    const exit = once(child, 'exit') as Promise<[number | null, string | null]>;
    const made = (): boolean => filesIn(scratch).some((name) => name.endsWith('/model.fused.onnx'));
    while (!made() && child.exitCode === null) await new Promise((resolve) => setTimeout(resolve, 20));
    child.kill('SIGINT');
    expect(await exit).to.deep.equal([130, null]);
    expect(fs.readdirSync(scratch).filter((name) => name.startsWith('qkvgemm-'))).to.deep.equal([]);
  });
});
