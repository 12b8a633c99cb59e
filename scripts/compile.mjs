// Compiles ts/ into dist/: CommonJS, with a thin entry for `import`. One copy of the code serves both module systems, so that
// its classes and its state are the same in a program that uses both.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const dist = path.join(root, 'dist');
const stamp = path.join(dist, 'package.json');

const { error, status } = spawnSync(
  process.execPath,
  [path.join(root, 'node_modules/typescript/bin/tsc'), '-p', path.join(root, 'tsconfig.build.json')],
  { stdio: 'inherit' },
);
if (error) throw error;
if (status !== 0) process.exit(status ?? 1);

// Modules whose sources are gone would go into packages.
const source = (file) => path.join(root, 'ts', file.replace(/(\.d)?\.(c?)[jt]s(\.map)?$/, '.$2ts'));
for (const file of fs.readdirSync(dist, { recursive: true })) {
  const stale = /\.c?[jt]s(\.map)?$/.test(file) && !file.startsWith('index.') && !fs.existsSync(source(file));
  if (stale) fs.rmSync(path.join(dist, file));
}
fs.writeFileSync(stamp, '{ "type": "commonjs" }\n');
// Named one by one: `export *` would also export the mark of compiled modules, `__esModule`.
const names = Object.keys(createRequire(import.meta.url)(path.join(dist, 'index.js')));
fs.writeFileSync(path.join(dist, 'index.mjs'), `export { ${names.join(', ')} } from './index.js';\n`);
fs.writeFileSync(path.join(dist, 'index.d.mts'), "export * from './index.js';\n");
