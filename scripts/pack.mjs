// Makes the packages that users install: tarballs in a folder (build/packages), of what is compiled and built.
//
//   node scripts/pack.mjs [--out DIR] [--binaries DIR] [--arm64-binaries DIR] [--platforms linux-x64-gnu,linux-arm64-gnu]
//
// onnx-qkv-gemm is the same everywhere. The binaries are in a package for each platform, which npm installs where os, cpu and
// libc are those of the machine: that of this machine is made here, and that of 64-bit Arm where binaries for it are built
// beside them; --platforms says which there will be, if not these. The CUDA
// library is in a package of its own, made where that is built; users install it by its name, because as an optional
// dependency npm would bring it to every machine of the platform.
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ARM64_FOLDER, ARM64_PLATFORM, ARM64_STRIP } from './arm64.mjs';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
const { values } = parseArgs({
  options: {
    out: { type: 'string', default: path.join(root, 'build', 'packages') },
    binaries: { type: 'string', default: path.join(root, 'build', 'Release') },
    'arm64-binaries': { type: 'string', default: path.join(root, ARM64_FOLDER) },
    platforms: { type: 'string' },
  },
});

function fail(message) {
  console.error(`pack: ${message}`);
  process.exit(1);
}

function run(command, args, cwd) {
  const result = spawnSync(command, args, { encoding: 'utf8', cwd });
  if (result.error) fail(`cannot run ${command}: ${result.error.message}`);
  if (result.status !== 0) fail(`${command} ${args.join(' ')} failed:\n${result.stderr || result.stdout}`);
  return result.stdout;
}

run(process.execPath, [path.join(root, 'scripts', 'compile.mjs')]);
const library = createRequire(import.meta.url)(path.join(root, 'dist', 'session', 'library.js'));
const { CPU_LIBRARY, CUDA_LIBRARY, packageOf, platformName } = library;
const ADDON = 'qkvgemm_session.node';

const manifest = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'));
const { name, version, license, engines } = manifest;
const out = path.resolve(values.out);
fs.mkdirSync(out, { recursive: true });

/** Packs what `fill` puts into a folder; prints and returns the tarball's path. */
function pack(content, fill) {
  const folder = fs.mkdtempSync(path.join(out, '.package-'));
  try {
    fill(folder);
    fs.writeFileSync(path.join(folder, 'package.json'), `${JSON.stringify(content, undefined, 2)}\n`);
    fs.copyFileSync(path.join(root, 'LICENSE'), path.join(folder, 'LICENSE'));
    const printed = run('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', out], folder);
    const packed = Object.values(JSON.parse(printed))[0];
    console.log(path.join(out, packed.filename));
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

/** `linux-x64-gnu` as the fields by which npm chooses packages. */
function fieldsOf(platform) {
  const parts = /^(\w+)-(\w+)(?:-(gnu|musl))?$/.exec(platform);
  if (!parts) fail(`'${platform}' is no platform; one is linux-x64-gnu`);
  const [, os, cpu, libc] = parts;
  return { os: [os], cpu: [cpu], ...(libc && { libc: [libc === 'gnu' ? 'glibc' : libc] }) };
}

const common = { version, license, engines, ...(manifest.repository && { repository: manifest.repository }) };

const here = { platform: platformName(), folder: path.resolve(values.binaries), strip: 'strip' };
const arm64 = {
  platform: ARM64_PLATFORM,
  folder: path.resolve(values['arm64-binaries']),
  strip: ARM64_STRIP,
};

/** A package of binaries alone: those of a platform, from a folder, by a strip that knows its processor. */
function packBinaries({ platform, folder: from, strip }, packageName, what, files, further = {}) {
  const type = 'commonjs'; // nothing but binaries; said, so that no tool has to guess
  const content = {
    name: packageName,
    ...common,
    type,
    description: what,
    ...fieldsOf(platform),
    ...further,
  };
  pack(
    { ...content, files, exports: Object.fromEntries(files.map((f) => [`./${f}`, `./${f}`])) },
    (folder) => {
      for (const file of files) {
        fs.copyFileSync(path.join(from, file), path.join(folder, file));
        run(strip, ['--strip-unneeded', path.join(folder, file)]);
      }
      fs.writeFileSync(path.join(folder, 'README.md'), `# ${packageName}\n\n${what}\n`);
    },
  );
}

/** Those of a platform that its package holds and that are not there. */
const missingOf = ({ folder }) =>
  [CPU_LIBRARY, ADDON].filter((file) => !fs.existsSync(path.join(folder, file)));
const missing = missingOf(here);
if (missing.length > 0) fail(`${missing.join(', ')} not in '${here.folder}'; build them: npm run build`);

const built = [here];
if (here.platform !== arm64.platform && missingOf(arm64).length === 0) built.push(arm64);
for (const target of built)
  packBinaries(
    target,
    packageOf(CPU_LIBRARY, target.platform),
    `The binaries of ${name} for ${target.platform}, which it brings by itself.`,
    [CPU_LIBRARY, ADDON],
  );
if (!built.includes(arm64) && here.platform !== arm64.platform)
  console.error(`pack: no package for ${arm64.platform}, whose binaries are not in '${arm64.folder}'`);
if (fs.existsSync(path.join(here.folder, CUDA_LIBRARY)))
  packBinaries(
    here,
    packageOf(CUDA_LIBRARY),
    `The library of ${name} for CPU and CUDA on ${platformName()}; install it beside that package.`,
    [CUDA_LIBRARY],
    { peerDependencies: { [name]: version } },
  );
else console.error(`pack: no package with ${CUDA_LIBRARY}, which is not in '${here.folder}'`);

const platforms = values.platforms?.split(',') ?? built.map(({ platform }) => platform);
platforms.forEach(fieldsOf);
const { files, ...published } = manifest;
for (const field of ['private', 'scripts', 'devDependencies', 'binary']) delete published[field];
const kept = files.filter((entry) => !entry.startsWith('build/'));
const optionalDependencies = Object.fromEntries(platforms.map((p) => [packageOf(CPU_LIBRARY, p), version]));
pack({ ...published, files: kept, optionalDependencies }, (folder) => {
  for (const entry of ['README.md', ...kept.filter((pattern) => !pattern.startsWith('!'))])
    fs.cpSync(path.join(root, entry), path.join(folder, entry), { recursive: true });
});
