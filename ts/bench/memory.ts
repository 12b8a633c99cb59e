/** The most memory that a model needs in a process of its own. */
import { fork } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { QkvGemmError } from '../errors.js';
import packageRoot from '../package_root.cjs';
import type { Feeds } from '../verify/feed_plan.js';
import type { RunnerOptions } from '../verify/runner.js';

/** Physical memory of a process, in bytes, from /proc (`VmHWM`). */
export interface PeakMemory {
  /** The most physical memory of the process, mapped files included, in bytes. */
  peak: number;
  /** The same before the model was loaded: Node and ONNX Runtime. */
  before: number;
}

/** What the child process is told. */
export interface MemoryTask {
  file: string;
  options: RunnerOptions;
  feeds: { name: string; type: string; data: unknown; dims: readonly number[] }[];
}

/** VmHWM of a /proc/PID/status, in bytes. Not what getrusage says: that begins with the parent's memory. */
export function peakOf(status: string): number {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024;
}

/** The peak of this process so far. */
export function ownPeak(): number {
  return peakOf(fs.readFileSync('/proc/self/status', 'utf8'));
}

/** From sources as well as from what is compiled. */
const child = path.join(packageRoot.folder, 'bench', `memory_child${packageRoot.extension}`);

/** Loads a model and runs it twice in a process of its own. */
export function peakMemory(file: string, options: RunnerOptions, feeds: Feeds): Promise<PeakMemory> {
  const task: MemoryTask = {
    file,
    options,
    feeds: Object.entries(feeds).map(([name, { type, data, dims }]) => ({ name, type, data, dims })),
  };
  return new Promise((resolve, reject) => {
    const process = fork(child, { serialization: 'advanced', stdio: ['ignore', 'ignore', 'pipe', 'ipc'] });
    let result: PeakMemory | undefined;
    let stderr = '';
    process.stderr?.on('data', (text: Buffer) => (stderr = (stderr + text.toString()).slice(-2000)));
    process.on('message', (message: PeakMemory) => (result = message));
    process.on('error', reject);
    process.on('close', (code, signal) => {
      if (result) resolve(result);
      else
        reject(
          new QkvGemmError(
            'RUNTIME_UNSUPPORTED',
            `The process that measures the memory of '${file}' ended with ${signal ?? code}: ${stderr.trim() || 'it said nothing'}. (--no-memory leaves this out.)`,
          ),
        );
    });
    process.send(task);
  });
}
