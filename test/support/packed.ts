/** The package as users have it: packed, and installed from the tarballs into an empty folder. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import type { Outcome } from './command.js';
import { root } from './command.js';

export interface Installed {
  folder: string;
  /** The main package, then that of this platform. */
  tarballs: readonly [string, string];
}

/** That which the tests run with. */
export function onnxruntime(): string {
  const { version } = createRequire(import.meta.url)('onnxruntime-node/package.json') as { version: string };
  return `onnxruntime-node@${version}`;
}

/** How npm says that it did not reach the registry, or may not. */
const UNREACHABLE =
  /E(NOTFOUND|CONNREFUSED|CONNRESET|TIMEDOUT|AI_AGAIN|HOSTUNREACH|NETUNREACH|NOTCACHED|401|403|407)\b/;

function run(command: string, args: readonly string[], cwd: string): Outcome {
  const env = { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip' };
  const result = spawnSync(command, args, { cwd, encoding: 'utf8', env });
  if (result.error) throw result.error;
  return { code: result.status, stdout: result.stdout, stderr: result.stderr };
}

/** What else is installed, and for which machine. */
export interface Installation {
  /** Packages that are left out where they are not for that machine. */
  optional?: Record<string, string>;
  /** Options of `npm install`, such as --cpu=arm64. */
  flags?: readonly string[];
}

/**
 * Packs, and installs the main package with `further` packages, onnxruntime-node or what brings it, without install scripts,
 * from npm's cache where that has them. Of the packages of binaries npm chooses that of the machine, as it does for users.
 * A test or suite whose packages cannot be fetched is skipped, with npm's reason.
 */
export function installPacked(
  context: Mocha.Context,
  further: readonly string[],
  { optional = {}, flags = [] }: Installation = {},
): Installed {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-package-'));
  const packed = run(process.execPath, [path.join(root, 'scripts', 'pack.mjs'), '--out', folder], root);
  if (packed.code !== 0) throw new Error(`scripts/pack.mjs: ${packed.stderr}`);
  const lines = packed.stdout.trim().split('\n');
  const platforms = lines.slice(0, -1).filter((line) => !line.includes('-cuda-'));
  const [main, platform] = [lines.at(-1), platforms[0]];
  if (main === undefined || platform === undefined)
    throw new Error(`scripts/pack.mjs printed ${packed.stdout}`);
  const nameOf = (tarball: string): string => path.basename(tarball).replace(/-\d.*$/, '');
  const binaries = Object.fromEntries(platforms.map((tarball) => [nameOf(tarball), `file:${tarball}`]));
  const manifest = { private: true, optionalDependencies: { ...binaries, ...optional } };
  fs.writeFileSync(path.join(folder, 'package.json'), JSON.stringify(manifest));
  const always = ['--ignore-scripts', '--no-audit', '--no-fund', '--prefer-offline'];
  const packages = [main, ...further];
  const { code, stdout, stderr } = run('npm', ['install', ...always, ...flags, ...packages], folder);
  if (code !== 0) {
    fs.rmSync(folder, { recursive: true, force: true });
    if (!UNREACHABLE.test(stderr)) throw new Error(`npm install ${packages.join(' ')}: ${stderr || stdout}`);
    console.log(`  (skipped: npm cannot fetch packages here: ${stderr.split('\n')[0]})`);
    context.skip();
  }
  return { folder, tarballs: [main, platform] };
}

/** Runs `node` in the folder, as a user's program. */
export function runNode(folder: string, args: readonly string[], env: Record<string, string> = {}): Outcome {
  const own = { ...process.env, QKVGEMM_CACHE_DIR: folder, ...env };
  const result = spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8', env: own });
  return { code: result.status, stdout: result.stdout, stderr: result.stderr };
}
