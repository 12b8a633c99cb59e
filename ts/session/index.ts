import fs from 'node:fs';
import path from 'node:path';
import type { InferenceSession } from 'onnxruntime-node';
import { QkvGemmError } from '../errors.js';
import { checkOptions } from '../options.js';
import { installSessionHook } from './addon.js';
import { CPU_LIBRARY, CUDA_LIBRARY, findBinary } from './library.js';

export { installSessionHook, uninstallSessionHook, type LoadedRuntime } from './addon.js';
export { libraryPath, platformName } from './library.js';

type SessionOptions = InferenceSession.SessionOptions;

/** Options of `withQkvGemm` itself, beside those of the session. */
export interface QkvGemmLibraryOptions {
  /** Path of the library; default: `QKVGEMM_LIBRARY`, else the one of this package. */
  library?: string;
  /**
   * Whether plans may come from timings: `off`, estimates alone; `cached`, what was found by timing before on this
   * machine; `on`, what is missing is timed in the first run that needs it, and kept. Default: the environment variable
   * `QKVGEMM_TUNE`, else `cached`.
   */
  tune?: TuneMode;
}

/** Values of the session config entry `qkvgemm.tune`. */
export type TuneMode = 'off' | 'cached' | 'on';
const TUNE_MODES: readonly TuneMode[] = ['off', 'cached', 'on'];

/** The session config entry `custom_ops.libraries` holds paths separated by line feeds. */
const SEPARATOR = '\n';

/**
 * Session options with which `InferenceSession.create` registers these custom-op libraries, ours or anybody's.
 *
 * @param options session options of onnxruntime-node; not changed.
 * @param libraries paths of shared libraries that export `RegisterCustomOps`, registered in this order.
 * @throws QkvGemmError `LIBRARY_NOT_FOUND` for a path that does not exist, `RUNTIME_UNSUPPORTED` for an
 *   onnxruntime-node older than 1.22 or another platform. A library that is not a custom-op library is reported by
 *   `InferenceSession.create`, with its path.
 */
export function withCustomOps(options: SessionOptions, libraries: readonly string[]): SessionOptions {
  if (!Array.isArray(libraries)) {
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `withCustomOps: expected an array of library paths, found ${typeof libraries}.`,
    );
  }
  const paths = libraries.map((library) => {
    if (typeof library !== 'string' || library === '' || library.includes(SEPARATOR)) {
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `withCustomOps: expected a path without line breaks, found ${JSON.stringify(library)}.`,
      );
    }
    const resolved = path.resolve(library);
    if (!fs.statSync(resolved, { throwIfNoEntry: false })?.isFile()) {
      throw new QkvGemmError(
        'LIBRARY_NOT_FOUND',
        `The custom-op library '${resolved}' does not exist or is no file. Check the path.`,
      );
    }
    return resolved;
  });
  installSessionHook();
  // Registering one library twice in a session would be an error: its domain is there already.
  const all = new Map<string, string>();
  for (const library of [...librariesOf(options), ...paths]) {
    const file = identity(library);
    if (library !== '' && !all.has(file)) all.set(file, library);
  }
  return withLibraries(options, [...all.values()]);
}

function customOpsOf({ extra }: SessionOptions): Record<string, unknown> {
  return (extra?.custom_ops ?? {}) as Record<string, unknown>;
}

function librariesOf(options: SessionOptions): string[] {
  const { libraries } = customOpsOf(options);
  return typeof libraries === 'string' ? libraries.split(SEPARATOR) : [];
}

function withLibraries(options: SessionOptions, libraries: readonly string[]): SessionOptions {
  const customOps = { ...customOpsOf(options), libraries: libraries.join(SEPARATOR) };
  return { ...options, extra: { ...options.extra, custom_ops: customOps } };
}

function withTuning(options: SessionOptions, tune: TuneMode): SessionOptions {
  const ours = { ...((options.extra?.qkvgemm ?? {}) as Record<string, unknown>), tune };
  return { ...options, extra: { ...options.extra, qkvgemm: ours } };
}

/** The same for all paths of one file, links included. */
function identity(library: string): string {
  try {
    return fs.realpathSync(library);
  } catch {
    return library;
  }
}

/** Do these session options ask for the CUDA execution provider? */
function asksForCuda({ executionProviders }: SessionOptions): boolean {
  if (!Array.isArray(executionProviders)) return false; // left out, or an error that ONNX Runtime reports
  return executionProviders.some(
    (provider: InferenceSession.ExecutionProviderConfig | null | undefined) =>
      (typeof provider === 'string' ? provider : provider?.name) === 'cuda',
  );
}

/**
 * Session options with which models run `com.deepspeed.QKVGemm` by this package's library:
 * `InferenceSession.create(model, withQkvGemm())`. On a GPU:
 * `withQkvGemm({ executionProviders: ['cuda'] })`, which takes the library with kernels for both.
 *
 * @param options session options of onnxruntime-node; not changed. With the `cuda` execution provider among them, by its
 *   name or as `{ name: 'cuda', deviceId: 0 }`, the CUDA library is chosen.
 * @param own `library`, or else the environment variable `QKVGEMM_LIBRARY`, is taken in place of either; `tune` says
 *   whether plans may come from timings.
 * @throws QkvGemmError as `withCustomOps`, and `INVALID_ARGUMENT` for an unknown option of ours. `LIBRARY_NOT_FOUND`
 *   also where CUDA is asked for and the CUDA library was not built: the CPU's would do, but at the speed of copies.
 */
export function withQkvGemm(options: SessionOptions = {}, own: QkvGemmLibraryOptions = {}): SessionOptions {
  checkOptions('withQkvGemm', own, ['library', 'tune']);
  const { tune } = own;
  if (tune !== undefined && !TUNE_MODES.includes(tune))
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `withQkvGemm: expected ${TUNE_MODES.join(', ')} as option 'tune', found ${JSON.stringify(tune)}.`,
    );
  const library = findBinary(asksForCuda(options) ? CUDA_LIBRARY : CPU_LIBRARY, own.library);
  // Options that were made for another provider name the package's other library, and both have the same domain.
  const before = librariesOf(options);
  const kept = before.filter((name) => ![CPU_LIBRARY, CUDA_LIBRARY].includes(path.basename(name)));
  const result = withCustomOps(kept.length < before.length ? withLibraries(options, kept) : options, [
    library,
  ]);
  return tune === undefined ? result : withTuning(result, tune);
}
