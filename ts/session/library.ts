import fs from 'node:fs';
import path from 'node:path';
import { QkvGemmError } from '../errors.js';
import packageRoot from '../package_root.cjs';

/** The op for the CPU. */
export const CPU_LIBRARY = 'libqkvgemm.so';
/** The op for CPU and CUDA. */
export const CUDA_LIBRARY = 'libqkvgemm-cuda.so';
/** The package's binaries; the last is the session addon. */
export type Binary = 'libqkvgemm.so' | 'libqkvgemm-cuda.so' | 'qkvgemm_session.node';

/** Platforms that there are packages of binaries for, and of the CUDA library. */
const PLATFORMS = ['linux-x64-gnu', 'linux-arm64-gnu'];
const CUDA_PLATFORMS = ['linux-x64-gnu'];

/** How a binary comes about that was not found. */
export function howToGet(name: Binary): string {
  const cuda = name === CUDA_LIBRARY;
  const [command, needs] = cuda
    ? ['QKVGEMM_CUDA=1 npm run build', ', which needs the CUDA toolkit (nvcc)']
    : ['npm run build', ''];
  const install = `Install its package: npm install ${packageOf(name)}@${packageRoot.manifest.version}`;
  const itself = cuda ? '' : ', which npm does by itself unless optional dependencies are left out';
  const build = (cuda ? CUDA_PLATFORMS : PLATFORMS).includes(platformName())
    ? `${install}${itself}. Or build it`
    : `There is no package of it for ${platformName()}: build it`;
  const set = name === 'qkvgemm_session.node' ? '.' : `, or set ${LIBRARY_VARIABLE} to its path.`;
  const without =
    " Without it the model's QKVGemm nodes would run on the CPU between nodes on the GPU; if that is wanted, name the CPU's " +
    'library: withQkvGemm(options, { library: libraryPath() }).';
  return `${build} in a source tree with \`${command}\`${needs}${set}${cuda ? without : ''}`;
}

/** Environment variable that names a library to use instead of the package's own. */
export const LIBRARY_VARIABLE = 'QKVGEMM_LIBRARY';

/** `linux-x64-gnu`: operating system, processor and, on Linux, C library. */
export function platformName(): string {
  const libc = process.platform === 'linux' ? (isMusl() ? '-musl' : '-gnu') : '';
  return `${process.platform}-${process.arch}${libc}`;
}

function isMusl(): boolean {
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  return report.header?.glibcVersionRuntime === undefined;
}

/** The package that brings a binary for a platform. CUDA's is one that users install by its name. */
export function packageOf(name: Binary, platform = platformName()): string {
  return `onnx-qkv-gemm-${name === CUDA_LIBRARY ? 'cuda-' : ''}${platform}`;
}

/** What a search found, and the places it looked at, in order. */
export interface Search {
  file?: string;
  tried: string[];
  /** Who named the only place that was looked at. */
  namedBy?: string;
}

/**
 * Looks for one of the package's binaries: the given path, the environment variable (for the library), the package of
 * this platform, the build folder of a source tree, in this order. Behind a given path that does not exist the search does not
 * go on.
 */
export function searchBinary(name: Binary, given?: string): Search {
  const variable = name === 'qkvgemm_session.node' ? undefined : process.env[LIBRARY_VARIABLE] || undefined;
  const explicit = given ?? variable;
  if (explicit !== undefined) {
    const file = path.resolve(explicit);
    const namedBy = given !== undefined ? 'the caller' : LIBRARY_VARIABLE;
    return { tried: [file], namedBy, ...(fs.existsSync(file) ? { file } : {}) };
  }
  const packaged = `${packageOf(name)}/${name}`;
  try {
    return { file: packageRoot.require.resolve(packaged), tried: [packaged] };
  } catch {
    const built = path.join(packageRoot.root, 'build', 'Release', name);
    return { tried: [packaged, built], ...(fs.existsSync(built) ? { file: built } : {}) };
  }
}

/** The same; a binary that is not found is an error. */
export function findBinary(name: Binary, given?: string): string {
  const { file, tried, namedBy } = searchBinary(name, given);
  if (file !== undefined) return file;
  if (namedBy !== undefined) {
    throw new QkvGemmError(
      'LIBRARY_NOT_FOUND',
      `The custom-op library '${tried[0] ?? ''}' does not exist. It was named by ${namedBy}; ` +
        'correct the path, or leave it out to use the one of this package.',
    );
  }
  throw new QkvGemmError(
    'LIBRARY_NOT_FOUND',
    `${name} was not found for ${platformName()} (Node ${process.version}). Tried:\n` +
      tried.map((place) => `  ${place}`).join('\n') +
      `\n${howToGet(name)}`,
  );
}

/**
 * Path of the custom-op library, for other languages and tools: for the CPU, or with `cuda` the one that serves CPU and CUDA.
 * The environment variable `QKVGEMM_LIBRARY` names another one.
 *
 * @param options `cuda`: the library with kernels for both (default false).
 * @returns an absolute path.
 * @throws QkvGemmError `LIBRARY_NOT_FOUND`, with every place that was looked at.
 */
export function libraryPath(options: { cuda?: boolean } = {}): string {
  return findBinary(options.cuda ? CUDA_LIBRARY : CPU_LIBRARY);
}
