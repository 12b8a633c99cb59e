import { createRequire } from 'node:module';
import path from 'node:path';
import { QkvGemmError } from '../errors.js';
import packageRoot from '../package_root.cjs';
import { isOlder } from '../version_order.js';
import { findBinary } from './library.js';

/** One copy of ONNX Runtime in this process. */
export interface LoadedRuntime {
  /** Path of its shared library. */
  path: string;
  /** Its release, e.g. `1.29.0`. */
  version: string;
  /** Its sessions can register custom-op libraries. */
  hooked: boolean;
  /** Why not, where `hooked` is false. */
  problem: string;
}

interface Addon {
  install(): LoadedRuntime[];
  uninstall(): number;
  instructionSet(): string;
  cudaDevices(): string[];
  tuningFile(): string;
}

/** onnxruntime-node before this does not accept the op's dynamic types. */
export const OLDEST_RUNTIME = '1.22.0';

let addon: Addon | undefined;

function loadAddon(): Addon {
  if (addon) return addon;
  if (process.platform !== 'linux') {
    throw new QkvGemmError(
      'RUNTIME_UNSUPPORTED',
      `Loading custom-op libraries into onnxruntime-node works on Linux (x64, arm64); this is ${process.platform}-${process.arch}. ` +
        'A rewritten model runs here without the library, through its function body.',
    );
  }
  const file = findBinary('qkvgemm_session.node');
  try {
    addon = packageRoot.require(file) as Addon;
    return addon;
  } catch (error) {
    throw new QkvGemmError(
      'LIBRARY_LOAD_FAILED',
      `The addon '${file}' could not be loaded: ${error instanceof Error ? error.message : String(error)}. ` +
        'Reinstall the package, or rebuild it in a source tree with `npm run build`.',
      { cause: error },
    );
  }
}

/** Loads onnxruntime-node: the one this package sees, or the one of the current folder. */
function loadOnnxruntime(): void {
  const attempts: string[] = [];
  for (const from of [packageRoot.root, process.cwd()].map((folder) => path.join(folder, 'package.json'))) {
    try {
      createRequire(from)('onnxruntime-node');
      return;
    } catch (error) {
      attempts.push(
        `  from ${from}: ${error instanceof Error ? (error.message.split('\n')[0] ?? '') : String(error)}`,
      );
    }
  }
  throw new QkvGemmError(
    'RUNTIME_UNSUPPORTED',
    `onnxruntime-node is not loaded and could not be:\n${attempts.join('\n')}\n` +
      `Install it (npm install onnxruntime-node, ${OLDEST_RUNTIME} or newer) or import it before this call.`,
  );
}

/**
 * Makes every copy of ONNX Runtime that is loaded by now able to register custom-op libraries, loading onnxruntime-node
 * first if none is. Idempotent; cheap enough to call for each session.
 */
export function installSessionHook(): LoadedRuntime[] {
  const native = loadAddon();
  let runtimes = native.install();
  if (runtimes.length === 0) {
    loadOnnxruntime();
    runtimes = native.install();
  }
  if (runtimes.some((runtime) => runtime.hooked && !isOlder(runtime.version, OLDEST_RUNTIME)))
    return runtimes;
  const found = runtimes
    .map((r) => `  ${r.path}: ONNX Runtime ${r.version || '?'}${r.problem ? ` (${r.problem})` : ''}`)
    .join('\n');
  throw new QkvGemmError(
    'RUNTIME_UNSUPPORTED',
    `Custom ops need onnxruntime-node ${OLDEST_RUNTIME} or newer. ` +
      (found
        ? `Loaded:\n${found}\nUpgrade it: npm install onnxruntime-node@latest`
        : 'No ONNX Runtime is loaded.'),
  );
}

/** Undoes `installSessionHook`: ONNX Runtime's own functions are back. Returns how many copies that concerned. */
export function uninstallSessionHook(): number {
  return addon ? addon.uninstall() : 0;
}

/** Instruction set that the CPU kernels will use: the best of this processor, or what `QKVGEMM_ISA` forces. */
export function instructionSet(): string {
  const native = loadAddon();
  try {
    return native.instructionSet();
  } catch (error) {
    throw new QkvGemmError('INVALID_ARGUMENT', error instanceof Error ? error.message : String(error), {
      cause: error,
    });
  }
}

/** Where the library keeps the plans that it timed; empty where no folder is known. */
export function tuningFile(): string {
  return loadAddon().tuningFile();
}

/** The CUDA devices that the driver shows, as `NVIDIA H200, compute capability 9.0`; none without a driver. */
export function cudaDevices(): string[] {
  return loadAddon().cudaDevices();
}
