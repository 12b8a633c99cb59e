/**
 * Where this package lies. CommonJS in the sources as well: `__dirname` then says it in what is compiled, which is CommonJS,
 * and in the sources under a loader of TypeScript, which are ES modules; `import.meta` would be for the latter alone.
 */
import fs = require('node:fs');
import modules = require('node:module');
import path = require('node:path');

/** This file is one level below the package's root, in `ts` and in `dist`. */
const root = path.resolve(__dirname, '..');

interface Manifest {
  version: string;
  engines: { node: string };
}

const packageRoot = {
  root,
  /** Folder of the modules that run, and their extension. */
  folder: __dirname,
  extension: path.extname(__filename).replace('c', ''),
  manifest: JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as Manifest,
  /** Finds packages as this package does; Node's own, which a loader has not wrapped. */
  require: modules.createRequire(__filename),
};

export = packageRoot;
