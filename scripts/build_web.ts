/** Builds the page: npm run build:web -> build/web, files for any server. */
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, type Plugin } from 'vite';
import { HASHES } from '../ts/report/page.js';
import { STYLE } from '../ts/report/style.js';
import { SCRIPT } from '../ts/report/zoom.js';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');

export const webFolder = path.join(root, 'build', 'web');

/** What reports carry as text, as modules: the page's policy allows files only. */
const MODULES: Record<string, string> = {
  'virtual:zoom': `export function zoomGraphs() {${SCRIPT}}`,
  'virtual:report.css': STYLE,
  // Browsers hash in secure contexts only, and a server of files in a network is none.
  'virtual:report-hashes': `export default ${JSON.stringify(HASHES)}`,
};

const reportModules: Plugin = {
  name: 'report-modules',
  enforce: 'pre',
  resolveId: (id) => (Object.hasOwn(MODULES, id) ? `\0${id}` : undefined),
  load: (id) => MODULES[id.slice(1)],
};

export async function buildWeb(): Promise<void> {
  await build({
    configFile: false,
    root: path.join(root, 'ts', 'web'),
    base: './', // in whatever folder of a server it lies
    logLevel: 'warn',
    plugins: [reportModules],
    worker: { format: 'es', plugins: () => [reportModules] },
    resolve: { dedupe: ['protobufjs'] },
    build: {
      outDir: webFolder,
      emptyOutDir: true,
      target: 'es2022',
      modulePreload: false,
      assetsInlineLimit: 0,
      chunkSizeWarningLimit: 2000,
    },
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await buildWeb();
