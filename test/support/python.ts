/** Python, where it is: nothing in the package needs it, but examples in the documentation are for it. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import { libraryPath } from '../../ts/index.js';

/** Python with these packages: that of the environment variable PYTHON, or the first on the PATH. */
function pythonWith(packages: readonly string[]): string | undefined {
  const python = process.env.PYTHON || 'python3';
  return spawnSync(python, ['-c', `import ${packages.join(', ')}`]).status === 0 ? python : undefined;
}

/** The same for a test, which is skipped, and says so, where there is none. */
export function needPython(test: Mocha.Context, packages: readonly string[]): string {
  const python = pythonWith(packages);
  if (python !== undefined) return python;
  console.log(`      (skipped: no Python with ${packages.join(', ')}; PYTHON names one)`);
  return test.skip();
}

/** Runs Python; what it printed. An example finds the library by the installed package, which here is the source tree. */
export function runPython(python: string, args: readonly string[], cwd: string): string {
  const found = "'" + JSON.stringify(libraryPath()).slice(1, -1) + "'";
  const given = args.map((arg) => arg.replace("require('onnx-qkv-gemm').libraryPath()", found));
  const { status, stdout, stderr } = spawnSync(python, given, {
    cwd,
    encoding: 'utf8',
    env: { ...process.env, HF_HUB_OFFLINE: '1', OLIVE_DISABLE_TELEMETRY: '1', CI: '1' },
  });
  expect(status, `${args.join(' ')}\n${stdout}\n${stderr}`).to.equal(0);
  return stdout;
}
