import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { QkvGemmError } from '../errors.js';

/** The op for the CPU. */
export const CPU_LIBRARY = 'libqkvgemm.so';
/** The op for CPU and CUDA. */
export const CUDA_LIBRARY = 'libqkvgemm-cuda.so';
/** The package's binaries; the last is the session addon. */
export type Binary = typeof CPU_LIBRARY | typeof CUDA_LIBRARY | 'qkvgemm_session.node';

/** How a binary comes about that was not found. */
const HOW_TO_GET: Record<Binary, string> = {
  [CPU_LIBRARY]: 'Build it in a source tree with `npm run build`, or set QKVGEMM_LIBRARY to its path.',
  [CUDA_LIBRARY]:
    'Build it in a source tree with `QKVGEMM_CUDA=1 npm run build`, which needs the CUDA toolkit (nvcc), or set ' +
    "QKVGEMM_LIBRARY to its path. Without it the model's QKVGemm nodes would run on the CPU between nodes on the GPU; if " +
    "that is wanted, name the CPU's library: withQkvGemm(options, { library: libraryPath() }).",
  'qkvgemm_session.node': 'Build it in a source tree with `npm run build`.',
};

/** Environment variable that names a library to use instead of the package's own. */
export const LIBRARY_VARIABLE = 'QKVGEMM_LIBRARY';

const require = createRequire(import.meta.url);
/** The package's root, from `ts/session` and from `dist/session` alike. */
const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..', '..');

/** `linux-x64-gnu`: operating system, processor and, on Linux, C library. */
export function platformName(): string {
  const libc = process.platform === 'linux' ? (isMusl() ? '-musl' : '-gnu') : '';
  return `${process.platform}-${process.arch}${libc}`;
}

function isMusl(): boolean {
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  return report.header?.glibcVersionRuntime === undefined;
}

/**
 * Finds one of the package's binaries: the given path, the environment variable (for the library), the build folder of
 * a source tree, the package of this platform, in this order. A given path that does not exist is an error; the search
 * does not go on behind the caller's back.
 */
export function findBinary(name: Binary, given?: string): string {
  const tried: string[] = [];
  const explicit =
    given ?? (name === 'qkvgemm_session.node' ? undefined : process.env[LIBRARY_VARIABLE] || undefined);
  if (explicit !== undefined) {
    const resolved = path.resolve(explicit);
    if (fs.existsSync(resolved)) return resolved;
    throw new QkvGemmError(
      'LIBRARY_NOT_FOUND',
      `The custom-op library '${resolved}' does not exist. It was named by ${given !== undefined ? 'the caller' : LIBRARY_VARIABLE}; ` +
        'correct the path, or leave it out to use the one of this package.',
    );
  }
  const built = path.join(root, 'build', 'Release', name);
  tried.push(built);
  if (fs.existsSync(built)) return built;
  const packaged = `@onnx-qkv-gemm/${platformName()}/${name}`;
  try {
    return require.resolve(packaged);
  } catch {
    tried.push(packaged);
  }
  throw new QkvGemmError(
    'LIBRARY_NOT_FOUND',
    `${name} was not found for ${platformName()} (Node ${process.version}). Tried:\n` +
      tried.map((place) => `  ${place}`).join('\n') +
      `\n${HOW_TO_GET[name]}`,
  );
}

/** Path of the custom-op library: for the CPU, or with `cuda` the one that serves CPU and CUDA. */
export function libraryPath(options: { cuda?: boolean } = {}): string {
  return findBinary(options.cuda ? CUDA_LIBRARY : CPU_LIBRARY);
}
