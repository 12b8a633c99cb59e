/** What is built for 64-bit Arm, and its emulator. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { root, type Outcome } from './command.js';

/** Where `npm test` and `npm run pack` build for it (scripts/arm64.mjs). */
export const arm64Folder = path.join(root, 'build', 'linux-arm64');

/** Processors of the emulator, and the fastest instruction set of each. */
export const PROCESSORS = { 'cortex-a53': 'neon', 'cortex-a76': 'neon_dot', max: 'neon_bf16' } as const;
export type Processor = keyof typeof PROCESSORS;

const QEMU = 'qemu-aarch64-static';

/** Is it built here, for another machine? */
export const hasArm64 = (): boolean => fs.existsSync(path.join(arm64Folder, 'libqkvgemm.so'));

/** Skips, with the reason, where nothing is built for 64-bit Arm or where it cannot be run. */
export function arm64OrSkip(context: Mocha.Context): void {
  let why = '';
  if (!hasArm64()) why = 'nothing is built for 64-bit Arm here';
  else if (spawnSync(QEMU, ['--version']).error) why = `${QEMU} is not installed here`;
  if (why === '') return;
  console.log(`  (skipped: ${why})`);
  context.skip();
}

const LIBRARIES = '/usr/aarch64-linux-gnu';

/**
 * Makes a folder that programs see as their root, where it has what they ask for: the cross compiler's libraries, and a
 * /proc/cpuinfo of Arm's form, for which ONNX Runtime looks and which the emulator leaves to this machine.
 */
export function armRoot(folder: string): string {
  const [library, cpuinfo] = [path.join(folder, 'lib'), path.join(folder, 'proc', 'cpuinfo')];
  fs.mkdirSync(path.dirname(cpuinfo), { recursive: true });
  fs.symlinkSync(path.join(LIBRARIES, 'lib'), library);
  const fields = ['BogoMIPS\t: 100.00', 'Features\t: fp asimd', 'CPU implementer\t: 0x41', 'CPU architecture: 8', 'CPU variant\t: 0x1', 'CPU part\t: 0xd0b', 'CPU revision\t: 1']; // prettier-ignore
  const processors = os.cpus().map((_, i) => [`processor\t: ${i}`, ...fields, '', ''].join('\n'));
  fs.writeFileSync(cpuinfo, processors.join(''));
  return folder;
}

/** Runs a program for 64-bit Arm; `root` is what `armRoot` made, default the cross compiler's libraries alone. */
export function emulate(
  processor: Processor,
  command: readonly string[],
  options: { cwd?: string; env?: Record<string, string>; root?: string } = {},
): Outcome {
  const result = spawnSync(QEMU, ['-cpu', processor, '-L', options.root ?? LIBRARIES, ...command], {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    cwd: options.cwd ?? arm64Folder,
    env: { ...process.env, ...options.env },
  });
  if (result.error) throw result.error;
  return { code: result.status, stdout: result.stdout, stderr: result.stderr };
}
