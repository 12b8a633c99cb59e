/** Running the command in a process of its own, and the most memory that it held. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { peakOf } from '../../ts/bench/memory.js';

const main = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..', 'ts', 'cli', 'main.ts');

export interface Peak {
  code: number | null;
  stdout: string;
  stderr: string;
  seconds: number;
  /** VmHWM: the most physical memory, mapped files included, in bytes. */
  bytes: number;
}

/** Runs `qkvgemm` from its sources. The peak is read by the process itself as it ends, into `scratch`. */
export function runMeasured(args: readonly string[], scratch: string): Peak {
  const status = path.join(scratch, 'peak.txt');
  const atExit =
    "import fs from 'node:fs';" +
    `process.on('exit', () => fs.writeFileSync(${JSON.stringify(status)}, fs.readFileSync('/proc/self/status')));`;
  const hook = `data:text/javascript,${encodeURIComponent(atExit)}`;
  const started = performance.now();
  const command = ['--import', import.meta.resolve('tsx'), '--import', hook, main, ...args];
  const { status: code, stdout, stderr } = spawnSync(process.execPath, command, { encoding: 'utf8' });
  const seconds = (performance.now() - started) / 1000;
  const bytes = peakOf(fs.readFileSync(status, 'utf8'));
  fs.rmSync(status);
  return { code, stdout, stderr, seconds, bytes };
}
