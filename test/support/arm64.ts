/** What is built for 64-bit Arm, and its emulator. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { root, type Outcome } from './command.js';

/** Where `npm test` and `npm run pack` build for it (scripts/arm64.mjs). */
export const arm64Folder = path.join(root, 'build', 'linux-arm64');

/** Processors of the emulator, and the fastest instruction set of each. */
export const PROCESSORS = { 'cortex-a53': 'neon', 'cortex-a76': 'neon_dot', max: 'neon_bf16' } as const;
export type Processor = keyof typeof PROCESSORS;

const QEMU = 'qemu-aarch64-static';

/** Skips, with the reason, where nothing is built for 64-bit Arm or where it cannot be run. */
export function arm64OrSkip(context: Mocha.Context): void {
  let why = '';
  if (!fs.existsSync(path.join(arm64Folder, 'qkvgemm_cpu_test')))
    why = 'nothing is built for 64-bit Arm here';
  else if (spawnSync(QEMU, ['--version']).error) why = `${QEMU} is not installed here`;
  if (why === '') return;
  console.log(`  (skipped: ${why})`);
  context.skip();
}

/** Runs a program for 64-bit Arm with the libraries of the cross compiler. */
export function emulate(
  processor: Processor,
  command: readonly string[],
  options: { cwd?: string; env?: Record<string, string> } = {},
): Outcome {
  const result = spawnSync(QEMU, ['-cpu', processor, '-L', '/usr/aarch64-linux-gnu', ...command], {
    encoding: 'utf8',
    cwd: options.cwd ?? arm64Folder,
    env: { ...process.env, ...options.env },
  });
  if (result.error) throw result.error;
  return { code: result.status, stdout: result.stdout, stderr: result.stderr };
}
