/** Python, where it is: nothing in the package needs it, but examples in the documentation are for it. */
import { spawnSync } from 'node:child_process';

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
