/**
 * What a process's resident memory grows by when it loads a model with the library, in bytes, on stdout; a small model, given
 * first and twice, has loaded the libraries by then and taken memory that a load leaves behind free. Linux's memory of a
 * process: proc(5), /proc/pid/status.
 *
 *   node --expose-gc --import tsx session_memory.ts SMALL MODEL
 */
import * as ort from 'onnxruntime-node';
import fs from 'node:fs';
import { withQkvGemm } from '../../ts/session/index.js';

function resident(): number {
  const [, kilobytes] = /^VmRSS:\s+(\d+) kB$/m.exec(fs.readFileSync('/proc/self/status', 'utf8')) ?? [];
  return Number(kilobytes) * 1024;
}

const sessions: ort.InferenceSession[] = [];
async function load(model: string): Promise<number> {
  globalThis.gc?.(); // garbage that is collected while the model loads would count as memory saved
  const before = resident();
  sessions.push(await ort.InferenceSession.create(model, withQkvGemm()));
  return resident() - before;
}

const [small = '', model = ''] = process.argv.slice(2);
for (let i = 0; i < 2; ++i) await load(small);
console.log(await load(model));
