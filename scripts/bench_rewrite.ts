/**
 * The rewrite of a large model: Llama 8B's decoder layers in float16 with external weights, against `cp` on the same disk.
 *
 *   npm run bench:rewrite [-- --gb 8 | --layers N] [--folder DIR] [--dtype keep]
 *
 * Writes a model of that size, rewrites it three ways (beside the input, into another folder, into one data file), and
 * prints time, MB/s and peak memory of each beside those of `cp`, which is flushed to the disk as the rewrite is, and
 * measured just before it: disks are not steady. What was written is removed. Exit code 1: a rewrite failed, or the disk is too small.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { layerBytes, LLAMA_8B, WEIGHTS, writeLlamaStack } from '../models/llama_stack.js';
import { machineLine } from '../ts/bench/machine.js';
import { runMeasured } from './bench/peak.js';

const { values } = parseArgs({
  options: {
    gb: { type: 'string', default: '8' },
    layers: { type: 'string' },
    folder: { type: 'string', default: os.tmpdir() },
    dtype: { type: 'string', default: 'keep' },
  },
});
const layers = values.layers
  ? Number(values.layers)
  : Math.max(1, Math.round((Number(values.gb) * 1e9) / layerBytes(LLAMA_8B)));

const MB = (bytes: number): string => (bytes / 1e6).toFixed(0);

function row(what: string, written: number, seconds: number, peak?: number, ratio?: number): void {
  const cells = [what, MB(written), seconds.toFixed(1), MB(written / seconds)];
  console.log(`| ${[...cells, ratio?.toFixed(2) ?? '', peak === undefined ? '' : MB(peak)].join(' | ')} |`);
}

/** Bytes of all files in a folder, each inode once. */
function bytesIn(folder: string): number {
  const names = fs.readdirSync(folder, { recursive: true, encoding: 'utf8' });
  return names.reduce((sum, name) => sum + fs.statSync(path.join(folder, name)).size, 0);
}

/** Copies the weights and flushes the copy, then removes it; returns the seconds. */
function copy(input: string, scratch: string): number {
  const to = path.join(scratch, 'copy');
  const from = path.join(input, WEIGHTS);
  const { size } = fs.statSync(from);
  const started = performance.now();
  for (const [command, ...args] of [
    ['cp', from, to],
    ['sync', to],
  ] as const) {
    const { status, stderr } = spawnSync(command, args, { encoding: 'utf8' });
    if (status !== 0) throw new Error(`${command} failed: ${stderr}`);
  }
  const seconds = (performance.now() - started) / 1000;
  fs.rmSync(to);
  row('cp and sync', size, seconds);
  return seconds;
}

function bench(scratch: string): void {
  const input = path.join(scratch, 'in');
  fs.mkdirSync(input);
  const model = writeLlamaStack(input, { ...LLAMA_8B, layers });
  spawnSync('sync', [path.join(input, WEIGHTS)]);
  console.log(
    `${layers} layers, ${(bytesIn(input) / 1e9).toFixed(2)} GB, dtype ${values.dtype}; ${machineLine()}\n`,
  );
  console.log('| | MB written | seconds | MB/s | times as fast as cp | peak MB |');
  console.log('|---|---:|---:|---:|---:|---:|');
  const ways: [string, string, string[]][] = [
    ['beside the input', 'in', []],
    ['into another folder', 'out', []],
    ['into one data file', 'out', ['--external-data-file', 'all.data']],
  ];
  let copied = copy(input, scratch);
  for (const [what, folder, flags] of ways) {
    const out = path.join(scratch, folder);
    fs.mkdirSync(out, { recursive: true });
    const before = bytesIn(out);
    const args = ['fuse', model, path.join(out, 'fused.onnx'), '--dtype', values.dtype, ...flags];
    const { code, stderr, seconds, bytes } = runMeasured(args, scratch);
    if (code !== 0) throw new Error(`qkvgemm fuse ended with ${code}: ${stderr}`);
    const written = bytesIn(out) - before;
    for (const name of fs.readdirSync(out)) {
      if (folder === 'out' || name.startsWith('fused')) fs.rmSync(path.join(out, name));
    }
    // Of the whole model: against the copies before and behind, since the disk's speed changes by the minute.
    const again = copy(input, scratch);
    row(`fuse ${what}`, written, seconds, bytes, (copied + again) / 2 / seconds);
    copied = again;
  }
}

if (!Number.isInteger(layers) || layers < 1) {
  console.error('bench:rewrite: expected --gb > 0, or --layers >= 1.');
  process.exitCode = 2;
} else {
  const needed = 2.3 * layers * layerBytes(LLAMA_8B);
  const { bavail, bsize } = fs.statfsSync(values.folder);
  const scratch = fs.mkdtempSync(path.join(values.folder, 'qkvgemm-bench-'));
  const remove = (): void => fs.rmSync(scratch, { recursive: true, force: true });
  process.once('SIGINT', () => {
    remove();
    process.exit(130);
  });
  try {
    if (bavail * bsize < needed)
      throw new Error(`'${values.folder}' has ${MB(bavail * bsize)} MB left, and ${MB(needed)} are needed`);
    bench(scratch);
  } catch (error) {
    console.error(`bench:rewrite failed: ${(error as Error).message}`);
    process.exitCode = 1;
  } finally {
    remove();
  }
}
