/** What the binaries show to the process that loads them: their entry points, and nothing of the C++ runtime in them. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import { findBinary } from '../ts/session/library.js';
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

/** Libraries of the system that any host has. */
const SYSTEM = /^(lib(c|m|dl|rt|pthread)\.so\.\d+|ld-linux-x86-64\.so\.2)$/;

describe('symbols of the binaries', () => {
  it('the library exports RegisterCustomOps alone', () => {
    expect(exported(findBinary('libqkvgemm.so'))).to.deep.equal(['RegisterCustomOps']);
  });

  it('the CUDA library exports it alone, too, and asks for no library of CUDA or of its driver', function () {
    const file = cudaLibraryOrSkip(this);
    expect(exported(file)).to.deep.equal(['RegisterCustomOps']);
    const libraries = needed(file);
    expect(libraries).to.include('libc.so.6');
    expect(libraries.filter((library) => !SYSTEM.test(library))).to.deep.equal([]);
  });

  it("the addon exports Node-API's entry points alone", () => {
    expect(exported(findBinary('qkvgemm_session.node'))).to.deep.equal([
      'napi_register_module_v1',
      'node_api_module_get_api_version_v1',
    ]);
  });

  it('neither asks for a C++ runtime or for ONNX Runtime', () => {
    for (const name of ['libqkvgemm.so', 'qkvgemm_session.node'] as const) {
      const libraries = needed(findBinary(name));
      expect(libraries, name).to.include('libc.so.6');
      expect(
        libraries.filter((library) => !SYSTEM.test(library)),
        name,
      ).to.deep.equal([]);
    }
  });
});
