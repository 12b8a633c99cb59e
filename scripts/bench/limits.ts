/** What the machine's processor and memory give at most, measured by the kernels' own benchmark program. */
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const program = path.resolve(
  path.dirname(fileURLToPath(import.meta.url)),
  ...['..', '..', 'build', 'Release', 'qkvgemm_bench'],
);

/** Of so many threads together. */
export interface Limits {
  isa: string;
  /** Read from memory, beyond all caches. */
  gbPerSecond: number;
  /** Products of registers; a type without a dot product of its own is multiplied as float. */
  gflops: { float: number; bfloat16?: number; int8?: number };
}

/** @throws Error where the program is not there or fails. */
export function measureLimits(threads: number): Limits {
  const { status, stdout, stderr, error } = spawnSync(program, ['--limits', String(threads)], {
    encoding: 'utf8',
  });
  if (status !== 0)
    throw new Error(
      `${program} --limits: ${error?.message ?? (stderr || stdout)}; npm run build makes it in a clone`,
    );
  return JSON.parse(stdout) as Limits;
}
