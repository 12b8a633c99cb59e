/** Releases of onnxruntime-node beside the installed one, in the build folder, each used by a process of its own. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');

/** Folder in which `require('onnxruntime-node')` gives that release; installed when it is not there. */
export function installRuntime(version: string): string {
  const folder = path.join(root, 'build', 'ort-versions', version);
  const manifest = path.join(folder, 'node_modules', 'onnxruntime-node', 'package.json');
  const complete = path.join(folder, '.complete');
  if (fs.existsSync(complete) && fs.existsSync(manifest)) return folder;
  fs.mkdirSync(folder, { recursive: true });
  const options = ['--ignore-scripts', '--no-audit', '--no-fund', '--no-save', '--prefix', folder];
  npm(['install', ...options, `onnxruntime-node@${version}`], folder);
  fs.writeFileSync(complete, '');
  return folder;
}

export function npm(args: readonly string[], cwd: string): string {
  const result = spawnSync('npm', args, {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, ONNXRUNTIME_NODE_INSTALL: 'skip' },
  });
  if (result.error) throw result.error;
  if (result.status !== 0) throw new Error(`npm ${args.join(' ')}: ${result.stderr || result.stdout}`);
  return result.stdout;
}

/** One session: created, run on `x` and released. */
export interface Job {
  model: string;
  /** Give the model's bytes instead of its path. */
  buffer?: boolean;
  library?: boolean;
  x: number[];
  dims: number[];
}

export type JobResult =
  { ok: true; outputs: Record<string, number[]> } | { ok: false; code: string | undefined; message: string };

export interface ChildReport {
  /** The release's own version. */
  version: string;
  results: JobResult[];
}

/** Runs the jobs in order in a process that loads onnxruntime-node from `folder`. */
export function runWith(folder: string, jobs: readonly Job[]): ChildReport {
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-runtime-'));
  try {
    const [jobFile, reportFile] = [path.join(work, 'jobs.json'), path.join(work, 'report.json')];
    fs.writeFileSync(jobFile, JSON.stringify(jobs));
    const script = path.join(root, 'test', 'support', 'ort_versions_child.ts');
    const result = spawnSync(process.execPath, ['--import', 'tsx', script, folder, jobFile, reportFile], {
      cwd: root,
      encoding: 'utf8',
    });
    if (result.status !== 0) {
      throw new Error(`the process ended with ${result.signal ?? result.status}:\n${result.stderr}`);
    }
    return JSON.parse(fs.readFileSync(reportFile, 'utf8')) as ChildReport;
  } finally {
    fs.rmSync(work, { recursive: true, force: true });
  }
}
