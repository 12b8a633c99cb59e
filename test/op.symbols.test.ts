/**
 * What the binaries show to the process that loads them, their entry points and nothing of the C++ runtime in them, and what
 * they ask it for: nothing that ONNX Runtime does not ask for as well.
 */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { findBinary } from '../ts/session/library.js';
import { isOlder } from '../ts/version_order.js';
import { arm64Folder, hasArm64 } from './support/arm64.js';
import { cudaLibraryOrSkip } from './support/cuda.js';

/** Output of one of binutils' programs, which come with g++. */
function binutils(program: string, args: readonly string[]): string {
  const result = spawnSync(program, args, { encoding: 'utf8' });
  if (result.error) throw result.error;
  if (result.status !== 0) throw new Error(`${program} ${args.join(' ')}: ${result.stderr}`);
  return result.stdout;
}

/** Names in the dynamic symbol table that the file defines; a line is `address kind name`. */
function exported(file: string): string[] {
  const lines = binutils('nm', ['-D', '--defined-only', file]).trim().split('\n');
  return lines.map((line) => line.split(/\s+/)[2] ?? line).sort();
}

/** Shared libraries that the file asks the loader for. */
function needed(file: string): string[] {
  return [...binutils('readelf', ['-d', file]).matchAll(/\(NEEDED\).*\[(.*)\]/g)].map(
    (match) => match[1] ?? '',
  );
}

/** Libraries that any host has: those of the system, and libgcc, which ONNX Runtime needs. */
const SYSTEM = /^(lib(c|m|dl|rt|pthread)\.so\.\d+|ld-linux-(x86-64|aarch64)\.so\.\d|libgcc_s\.so\.1)$/;

/** Symbols from elsewhere with the version that the file asks for: `pthread_once`, `GLIBC`, `2.2.5`. */
function imported(file: string): { symbol: string; family: string; version: string }[] {
  const lines = binutils('readelf', ['--dyn-syms', '--wide', file]).matchAll(
    /\bUND (\w+)@{1,2}([A-Z]+)_([\d.]+)/g,
  );
  return [...lines].map(([, symbol = '', family = '', version = '']) => ({ symbol, family, version }));
}

/** The newest version of each family of symbols (GLIBC, GCC, GLIBCXX) that the file asks for. */
function newest(file: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const { family, version } of imported(file))
    if (isOlder(found.get(family) ?? '0', version)) found.set(family, version);
  return found;
}

/** The ONNX Runtime that onnxruntime-node brings for a processor. */
function runtimeLibrary(arch: string): string {
  const bin = path.join(
    path.dirname(createRequire(import.meta.url).resolve('onnxruntime-node/package.json')),
    'bin',
  );
  const files = fs.readdirSync(bin, { recursive: true, encoding: 'utf8' });
  const file = files.find((name) => name.includes(`linux/${arch}/libonnxruntime.so`));
  if (file === undefined) throw new Error(`no libonnxruntime.so for linux/${arch} in ${bin}`);
  return path.join(bin, file);
}

describe('symbols of the binaries', () => {
  before(function () {
    if (!spawnSync('readelf', ['--version']).error) return;
    console.log('  (skipped: binutils are not installed here)');
    this.skip();
  });

  /** Checks that a file of a processor asks for nothing that ONNX Runtime for that does not ask for. */
  const asksForNothingNewer = (arch: string, file: string, glibc?: string): void => {
    const host = newest(runtimeLibrary(arch));
    if (glibc !== undefined) host.set('GLIBC', glibc);
    expect([...host.keys()]).to.include.members(['GLIBC', 'GLIBCXX', 'GCC']);
    const symbols = imported(file);
    expect(symbols.length).to.be.above(20);
    const newer = symbols.filter(({ family, version }) => isOlder(host.get(family) ?? '0', version));
    expect(newer.map(({ symbol, family, version }) => `${symbol}@${family}_${version}`)).to.deep.equal([]);
  };

  const LIBRARY = 'libqkvgemm.so';
  const ADDON = 'qkvgemm_session.node';
  const crossBuilt = (name: string): string => path.join(arm64Folder, name);
  for (const [arch, fileOf] of [
    [process.arch, findBinary],
    ...(process.arch === 'arm64' ? [] : [['arm64', crossBuilt] as const]),
  ] as const)
    describe(arch, () => {
      before(function () {
        if (fileOf !== crossBuilt || hasArm64()) return;
        console.log('  (skipped: nothing is built for 64-bit Arm here)');
        this.skip();
      });

      it('the binaries are for it', () => {
        const machine = { x64: 'X86-64', arm64: 'AArch64' }[arch as string];
        for (const name of [LIBRARY, ADDON] as const)
          expect(binutils('readelf', ['-h', fileOf(name)]), name).to.match(
            new RegExp(`Machine: .*${machine}`),
          );
      });

      it('the library exports RegisterCustomOps alone', () => {
        expect(exported(fileOf(LIBRARY))).to.deep.equal(['RegisterCustomOps']);
      });

      it("the addon exports Node-API's entry points alone", () => {
        expect(exported(fileOf(ADDON))).to.deep.equal([
          'napi_register_module_v1',
          'node_api_module_get_api_version_v1',
        ]);
      });

      it('neither asks for a C++ runtime or for ONNX Runtime', () => {
        for (const name of [LIBRARY, ADDON] as const) {
          const libraries = needed(fileOf(name));
          expect(libraries, name).to.include('libc.so.6');
          expect(
            libraries.filter((library) => !SYSTEM.test(library)),
            name,
          ).to.deep.equal([]);
        }
      });

      for (const name of [LIBRARY, ADDON] as const)
        it(`${name} needs no newer C or C++ library than ONNX Runtime (ops/portable/glibc.cmake)`, () => {
          asksForNothingNewer(arch, fileOf(name));
        });
    });

  it('the CUDA library exports RegisterCustomOps alone, too, and asks for no library of CUDA or of its driver', function () {
    const file = cudaLibraryOrSkip(this);
    expect(exported(file)).to.deep.equal(['RegisterCustomOps']);
    const libraries = needed(file);
    expect(libraries).to.include('libc.so.6');
    expect(libraries.filter((library) => !SYSTEM.test(library))).to.deep.equal([]);
  });

  // CUDA's runtime, which is linked in as NVIDIA built it, calls more of libpthread, libdl and librt than there are
  // stand-ins for; since 2.34 these are in libc.
  it('the CUDA library needs none newer than that, but for glibc 2.34', function () {
    asksForNothingNewer(process.arch, cudaLibraryOrSkip(this), '2.34');
  });
});
