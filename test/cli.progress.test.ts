import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { PassThrough } from 'node:stream';
import { LLAMA_SMALL, writeLlamaStack } from '../models/llama_stack.js';
import { ProgressBar } from '../ts/cli/progress.js';
import { fuseFile, type Progress } from '../ts/fuse_file.js';
import { commandLine, qkvgemm, testFolder } from './support/command.js';

/** Something that says whether it is a terminal, and keeps what is written. */
function fakeStream(isTTY: boolean): { stream: NodeJS.WriteStream; text: () => string } {
  const stream = Object.assign(new PassThrough(), { isTTY, columns: 100 });
  let written = '';
  stream.on('data', (chunk: Buffer) => (written += chunk.toString()));
  return { stream: stream as unknown as NodeJS.WriteStream, text: () => written };
}

/** Terminals' escape sequence that clears the line from the cursor on. */
const ERASE_LINE = '\u001b[0K';

const later = (milliseconds: number): Promise<void> =>
  new Promise((resolve) => setTimeout(resolve, milliseconds));

describe('the progress bar', () => {
  const folder = testFolder();

  it('shows what is done, the rate and the time left, and is taken off at the end', async () => {
    const { stream, text } = fakeStream(true);
    const bar = new ProgressBar(stream);
    bar.seen({ phase: 'copy', done: 0, total: 4e9 });
    await later(600);
    bar.seen({ phase: 'copy', done: 1e9, total: 4e9 });
    await later(200);
    bar.seen({ phase: 'copy', done: 2e9, total: 4e9 });
    await later(200);
    expect(text()).to.match(/copying weights \[=+-+\] 25% \| 1\.\d GB\/s \| 2 s left/);
    expect(text()).to.match(/copying weights \[=+-+\] 50% \| 2\.\d GB\/s \| 1 s left/);
    bar.seen({ phase: 'check', done: 0, total: 4e9 });
    expect(text()).to.match(/loading the result \[-+\] 0% \| .* \| - left/);
    bar.stop();
    expect(text().slice(-40)).to.contain(ERASE_LINE);
  });

  it('is not shown for work that is done at once', () => {
    const { stream, text } = fakeStream(true);
    const bar = new ProgressBar(stream);
    for (let done = 0; done <= 10; done++) bar.seen({ phase: 'pack', done, total: 10 });
    bar.stop();
    expect(text()).to.equal('');
  });

  it('is not shown where there is no terminal', async () => {
    const { stream, text } = fakeStream(false);
    const bar = new ProgressBar(stream);
    bar.seen({ phase: 'pack', done: 0, total: 10 });
    await later(600);
    bar.seen({ phase: 'pack', done: 5, total: 10 });
    await later(200);
    bar.stop();
    expect(text()).to.equal('');
    const model = writeLlamaStack(folder(), { ...LLAMA_SMALL, layers: 20 });
    const { code, stderr } = qkvgemm(['fuse', model, '--external-data-file', 'all']);
    expect([code, stderr]).to.deep.equal([0, '']);
  });

  it('is shown on a terminal, and not with --json', function () {
    const shape = { ...LLAMA_SMALL, hidden: 2048, heads: 32, kvHeads: 8, mlp: 3584, layers: 3 };
    const model = writeLlamaStack(folder(), shape);
    const run = (...flags: string[]): string => {
      const out = path.join(folder(), `${flags.length}.onnx`);
      const args = [process.execPath, ...commandLine, 'fuse', model, '-o', out, '--dtype', 'int8', ...flags];
      const command = args.map((arg) => `'${arg}'`).join(' ');
      const { status, stdout, error } = spawnSync('script', ['-qec', command, '/dev/null'], {
        encoding: 'utf8',
      });
      if (error) {
        console.log('  (no command `script` here, which makes a terminal: the bar is not tested on one)');
        this.skip();
      }
      expect(status, stdout).to.equal(0);
      return stdout;
    };
    expect(run()).to.match(/packing weights \[[=-]+\] \d+% \| [\d.]+ [kMG]?B\/s \| (\d+ s|-) left/);
    expect(run('--json')).not.to.contain('packing');
  });

  it('fuseFile reports sums that grow to their total, phase by phase', async () => {
    const model = writeLlamaStack(folder(), LLAMA_SMALL);
    for (const [options, phases] of [
      [{}, ['pack', 'check']],
      [{ verify: false, externalDataFile: 'all' }, ['pack', 'move']],
    ] as const) {
      const seen: Progress[] = [];
      const onProgress = (progress: Progress): void => void seen.push(progress);
      await fuseFile(model, path.join(folder(), 'm.onnx'), { ...options, overwrite: true, onProgress });
      expect([...new Set(seen.map(({ phase }) => phase))]).to.deep.equal(phases);
      for (const phase of phases) {
        const steps = seen.filter((progress) => progress.phase === phase);
        for (const [i, { done, total }] of steps.entries()) {
          expect(done)
            .to.be.at.least(steps[i - 1]?.done ?? 0)
            .and.at.most(total);
          expect(total).to.equal(steps[0]?.total);
        }
      }
      const packed = seen.findLast(({ phase }) => phase === 'pack');
      expect(packed?.done).to.equal(packed?.total);
    }
  });
});
