/** What users install: made, installed into an empty folder, and used there in all the ways that Node has. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { platformName } from '../ts/session/library.js';
import type { Diagnosis } from '../ts/doctor/doctor.js';
import { hasArm64 } from './support/arm64.js';
import { writeAttentionModel } from './support/attention.js';
import { filesIn, root } from './support/command.js';
import { installPacked, onnxruntime, runNode, type Installed } from './support/packed.js';
import { blocks } from './support/readme.js';

const bin = (name: string): string => path.join(root, 'node_modules', '.bin', name);
const OUTPUT = '1 fused, 0 refused\n[ 1, 5, 8 ]\n';
const PLATFORM = `onnx-qkv-gemm-${platformName()}`;

/** The README's example, for `import`; and its parts. */
const [example = ''] = blocks('README.md', 'ts');
const imports = example.match(/^import .*\n/gm) ?? [];
const body = example.replace(/^import .*\n/gm, '').trim();
const inFunction = `async function main() {\n${body}\n}\nvoid main();\n`;

describe('the packages', () => {
  let installed: Installed;
  let folder = '';
  const at = (...names: string[]): string => path.join(folder, ...names);
  const moduleOf = (name: string, ...names: string[]): string => at('node_modules', name, ...names);
  const manifestOf = (name: string): Record<string, unknown> =>
    JSON.parse(fs.readFileSync(moduleOf(name, 'package.json'), 'utf8')) as Record<string, unknown>;

  before(function () {
    installed = installPacked(this, [onnxruntime()]);
    ({ folder } = installed);
    writeAttentionModel(folder);
    const required = imports.map((line) =>
      line.replace(/^import (.*) from (.*);/, 'const $1 = require($2);'),
    );
    fs.writeFileSync(at('example.mjs'), example);
    fs.writeFileSync(at('example.cjs'), required.join('') + inFunction);
    fs.writeFileSync(at('example.mts'), example);
    fs.writeFileSync(at('example.cts'), imports.join('') + inFunction);
  });

  after(() => {
    if (folder !== '') fs.rmSync(folder, { recursive: true, force: true });
  });

  /** The packages with one of their parts away. */
  function without<T>(part: string, action: () => T): T {
    const away = at('away');
    fs.renameSync(part, away);
    try {
      return action();
    } finally {
      fs.renameSync(away, part);
    }
  }

  it('have no scripts, no sources and all that is documented', () => {
    const main = manifestOf('onnx-qkv-gemm');
    const platform = manifestOf(PLATFORM);
    for (const manifest of [main, platform])
      for (const field of ['scripts', 'devDependencies', 'private', 'gypfile'])
        expect(manifest, field).not.to.have.property(field);
    const platforms = [PLATFORM, ...(hasArm64() ? ['onnx-qkv-gemm-linux-arm64-gnu'] : [])];
    expect(main.optionalDependencies).to.deep.equal(Object.fromEntries(platforms.map((name) => [name, main.version]))); // prettier-ignore
    // npm leaves out those for other machines.
    const installedHere = fs.readdirSync(at('node_modules')).filter((name) => name.startsWith('onnx-qkv-gemm')); // prettier-ignore
    expect(installedHere.sort()).to.deep.equal(['onnx-qkv-gemm', PLATFORM]);
    expect(platform).to.deep.include({
      version: main.version,
      os: ['linux'],
      cpu: [process.arch],
      libc: ['glibc'],
    });
    expect(fs.readdirSync(moduleOf(PLATFORM)).sort()).to.deep.equal([
      'LICENSE',
      'README.md',
      'libqkvgemm.so',
      'package.json',
      'qkvgemm_session.node',
    ]);
    const files = fs.readdirSync(moduleOf('onnx-qkv-gemm'), { recursive: true, encoding: 'utf8' });
    expect(files).to.include.members([
      'LICENSE',
      'README.md',
      'OPERATOR.md',
      'CHANGELOG.md',
      'dist/index.mjs',
    ]);
    expect(
      files.filter((file) => /^(ts|test|ops|build)\b|\.map$|(?<!\.d)\.[cm]?ts$|tsbuildinfo/.test(file)),
    ).to.deep.equal([]);
  });

  it('links in the documentation lead to what is in the package, or to the internet', () => {
    const folderOf = moduleOf('onnx-qkv-gemm');
    const pages = filesIn(folderOf).filter((name) => name.endsWith('.md'));
    expect(pages).to.include.members(['README.md', 'RECIPES.md']);
    for (const page of pages) {
      const text = fs.readFileSync(path.join(folderOf, page), 'utf8');
      for (const [, link = ''] of text.matchAll(/\]\(([^)#]+)(?:#[^)]*)?\)/g)) {
        if (/^https?:/.test(link)) continue;
        const target = path.join(folderOf, path.dirname(page), link);
        expect(fs.existsSync(target), `${page}: ${link}`).to.equal(true);
      }
    }
  });

  it('publint finds nothing', () => {
    for (const tarball of installed.tarballs) {
      const { status, stdout, stderr } = spawnSync(bin('publint'), ['run', tarball, '--strict'], {
        encoding: 'utf8',
      });
      expect(status, stdout + stderr).to.equal(0);
      expect(stdout).to.contain('All good!');
    }
  });

  it('attw finds types for import and for require, in every resolution', () => {
    const args = [installed.tarballs[0], '--format', 'ascii', '--no-color', '--no-emoji'];
    const { status, stdout, stderr } = spawnSync(bin('attw'), args, { encoding: 'utf8' });
    expect(status, stdout + stderr).to.equal(0);
    expect(stdout).to.contain('No problems found');
  });

  for (const file of ['example.mjs', 'example.cjs'])
    it(`the README's example runs as ${path.extname(file)}, also in a worker thread`, () => {
      expect(runNode(folder, [file])).to.deep.equal({ code: 0, stdout: OUTPUT, stderr: '' });
      const worker = `new (require('node:worker_threads').Worker)('./${file}')`;
      expect(runNode(folder, ['--eval', worker])).to.deep.equal({ code: 0, stdout: OUTPUT, stderr: '' });
    });

  for (const [module, moduleResolution, ...extensions] of [
    ['NodeNext', 'NodeNext', 'mts', 'cts'],
    ['Node16', 'Node16', 'mts', 'cts'],
    ['ESNext', 'Bundler', 'mts'],
  ] as const)
    it(`the README's example has types, as ${extensions.join(' and ')} with resolution ${moduleResolution}`, () => {
      // Beside it a program with a mistake: types that are not found would all be `any`.
      for (const extension of extensions)
        fs.writeFileSync(
          at(`wrong.${extension}`),
          `${imports.join('')}withQkvGemm({}, { tune: 'never' });\n`,
        );
      const flags = `--noEmit --strict --target ES2022 --lib ES2022,DOM --types --module ${module} --moduleResolution ${moduleResolution}`;
      const sources = extensions.flatMap((extension) => [`example.${extension}`, `wrong.${extension}`]);
      const { stdout, error } = spawnSync(bin('tsc'), [...flags.split(' '), ...sources], {
        cwd: folder,
        encoding: 'utf8',
      });
      if (error) throw error;
      const errors = stdout
        .split('\n')
        .filter((line) => /^\S/.test(line))
        .sort()
        .reverse();
      expect(errors, stdout).to.have.length(extensions.length);
      extensions.forEach((extension, i) =>
        expect(errors[i])
          .to.contain(`wrong.${extension}(3,`)
          .and.to.match(/TS2322: .*"never"/),
      );
    });

  it('import and require give one copy: one error class, one addon, one hook', () => {
    const program = `
      const ort = require('onnxruntime-node');
      const required = require('onnx-qkv-gemm');
      void import('onnx-qkv-gemm').then(async (imported) => {
        const same = Object.keys(required).sort().join() === Object.keys(imported).sort().join();
        const { model } = await imported.fuse('model.onnx', { fallback: false });
        const options = required.withQkvGemm(imported.withQkvGemm({ logSeverityLevel: 4 }));
        const load = () => ort.InferenceSession.create(model, options).then(() => 'loads', () => 'does not load');
        const addons = Object.keys(require.cache).filter((name) => name.endsWith('qkvgemm_session.node'));
        const before = await load();
        const undone = require(addons[0]).uninstall();
        console.log(JSON.stringify([
          same, imported.QkvGemmError === required.QkvGemmError, addons.length,
          options.extra.custom_ops.libraries.split('\\n').length, before, undone, await load(),
        ]));
      });`;
    const { stdout, stderr } = runNode(folder, ['--eval', program]);
    expect(stderr).to.equal('');
    expect(JSON.parse(stdout)).to.deep.equal([true, true, 1, 1, 'loads', 1, 'does not load']);
  });

  it('the command: doctor finds the platform package, fuse, verify and bench run', () => {
    const npx = (args: string): string => {
      const result = spawnSync('npx', ['--no-install', 'qkvgemm', ...args.split(' ')], {
        cwd: folder,
        encoding: 'utf8',
        env: { ...process.env, QKVGEMM_CACHE_DIR: folder },
      });
      expect(result.status, `${args}: ${result.stdout}${result.stderr}`).to.equal(0);
      return result.stdout;
    };
    const diagnosis = JSON.parse(npx('doctor --json')) as Diagnosis;
    expect(diagnosis.ok).to.equal(true);
    expect(diagnosis.library).to.equal(fs.realpathSync(moduleOf(PLATFORM, 'libqkvgemm.so')));
    expect(diagnosis.tried['qkvgemm_session.node']).to.deep.equal([`${PLATFORM}/qkvgemm_session.node`]);
    const report = JSON.parse(npx('fuse model.onnx fused.onnx --check --report fuse.html --json')) as object;
    expect(report).to.have.property('fused').with.length(1);
    expect(fs.readFileSync(at('fuse.html'), 'utf8')).to.contain('QKVGemm');
    npx('bench model.onnx --against fused.onnx --seconds 0.1 --report bench.html');
    expect(fs.readFileSync(at('bench.html'), 'utf8')).to.contain('P50');
  });

  it('QKVGEMM_LIBRARY comes before the platform package', () => {
    const copy = at('copy.so');
    fs.copyFileSync(moduleOf(PLATFORM, 'libqkvgemm.so'), copy);
    const print = "console.log(require('onnx-qkv-gemm').libraryPath())";
    expect(runNode(folder, ['--eval', print], { QKVGEMM_LIBRARY: copy }).stdout).to.equal(`${copy}\n`);
  });

  it('the CUDA package is made where its library is, and that library is found in it', () => {
    // What it does is tested elsewhere; here any library will do.
    const [binaries, out] = [at('binaries'), at('packed')];
    fs.cpSync(moduleOf(PLATFORM), binaries, { recursive: true });
    fs.copyFileSync(path.join(binaries, 'libqkvgemm.so'), path.join(binaries, 'libqkvgemm-cuda.so'));
    const pack = path.join(root, 'scripts', 'pack.mjs');
    const packed = runNode(folder, [pack, '--binaries', binaries, '--out', out, '--platforms', 'linux-x64-gnu,linux-arm64-gnu']); // prettier-ignore
    expect(packed.code, packed.stderr).to.equal(0);
    const cuda = `onnx-qkv-gemm-cuda-${platformName()}`;
    const unpack = (name: string, target: string): void => {
      const tarball = packed.stdout.split('\n').find((line) => path.basename(line).startsWith(`${name}-0`));
      fs.mkdirSync(target, { recursive: true });
      const args = ['-xzf', tarball ?? `${name}: none`, '-C', target, '--strip-components=1'];
      expect(spawnSync('tar', args, { encoding: 'utf8' }).stderr).to.equal('');
    };
    unpack('onnx-qkv-gemm', at('main'));
    const { optionalDependencies } = JSON.parse(fs.readFileSync(at('main', 'package.json'), 'utf8')) as {
      optionalDependencies: object;
    };
    expect(optionalDependencies).to.have.keys('onnx-qkv-gemm-linux-x64-gnu', 'onnx-qkv-gemm-linux-arm64-gnu');

    const print = "console.log(require('onnx-qkv-gemm').libraryPath({ cuda: true }))";
    const before = runNode(folder, ['--eval', print]);
    expect(before.stderr).to.contain(`npm install ${cuda}@`).and.to.contain('LIBRARY_NOT_FOUND');
    unpack(cuda, moduleOf(cuda));
    expect(manifestOf(cuda)).to.deep.include({ libc: ['glibc'], files: ['libqkvgemm-cuda.so'] });
    const file = moduleOf(cuda, 'libqkvgemm-cuda.so');
    expect(runNode(folder, ['--eval', print])).to.deep.equal({ code: 0, stdout: `${file}\n`, stderr: '' });
  });

  it('are not made where binaries are missing', () => {
    fs.mkdirSync(at('empty'));
    const args = [path.join(root, 'scripts', 'pack.mjs'), '--binaries', at('empty'), '--out', at('nothing')];
    const { code, stdout, stderr } = runNode(folder, args);
    expect(code).to.equal(1);
    expect(stdout).to.equal('');
    expect(stderr).to.contain(at('empty')).and.to.contain('libqkvgemm.so').and.to.contain('npm run build');
  });

  it('without the platform package: places and what to do are told, and a fused model still runs', () => {
    without(moduleOf(PLATFORM), () => {
      const { code, stderr } = runNode(folder, ['example.mjs']);
      expect(code).not.to.equal(0);
      expect(stderr)
        .to.contain('LIBRARY_NOT_FOUND')
        .and.to.contain(`${PLATFORM}/libqkvgemm.so`)
        .and.to.contain(moduleOf('onnx-qkv-gemm', 'build', 'Release', 'libqkvgemm.so'))
        .and.to.contain(`npm install ${PLATFORM}@`);
      fs.writeFileSync(at('plain.mjs'), example.replace('withQkvGemm())', '{})'));
      expect(runNode(folder, ['plain.mjs'])).to.deep.equal({ code: 0, stdout: OUTPUT, stderr: '' });
      const cli = moduleOf('onnx-qkv-gemm', 'dist', 'cli', 'main.js');
      const doctor = runNode(folder, [cli, 'doctor']);
      expect(doctor.code).to.equal(1);
      expect(doctor.stdout).to.match(/^problem {2}library .*\n +-> Install its package: npm install/m);
    });
  });
});
