import fs from 'node:fs';
import path from 'node:path';
import type { InferenceSession } from 'onnxruntime-node';
import { QkvGemmError } from '../errors.js';
import { checkOptions } from '../options.js';
import { installSessionHook } from './addon.js';
import { findBinary } from './library.js';

export { installSessionHook, uninstallSessionHook, type LoadedRuntime } from './addon.js';
export { libraryPath, platformName } from './library.js';

type SessionOptions = InferenceSession.SessionOptions;

/** Options of `withQkvGemm` itself, beside those of the session. */
export interface QkvGemmLibraryOptions {
  /** Path of the library; default: `QKVGEMM_LIBRARY`, else the one of this package. */
  library?: string;
}

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
  const extra = options.extra ?? {};
  const customOps = (extra.custom_ops ?? {}) as Record<string, unknown>;
  const before = typeof customOps.libraries === 'string' ? customOps.libraries.split(SEPARATOR) : [];
  // Registering one library twice in a session would be an error: its domain is there already.
  const all = new Map<string, string>();
  for (const library of [...before, ...paths]) {
    const file = identity(library);
    if (library !== '' && !all.has(file)) all.set(file, library);
  }
  const entry = [...all.values()].join(SEPARATOR);
  return { ...options, extra: { ...extra, custom_ops: { ...customOps, libraries: entry } } };
}

/** The same for all paths of one file, links included. */
function identity(library: string): string {
  try {
    return fs.realpathSync(library);
  } catch {
    return library;
  }
}

/**
 * Session options with which models run `com.deepspeed.QKVGemm` by this package's library:
 * `InferenceSession.create(model, withQkvGemm())`.
 *
 * @param options session options of onnxruntime-node; not changed. With the `cuda` execution provider among them the
 *   CUDA library is chosen.
 * @throws QkvGemmError as `withCustomOps`, and `INVALID_ARGUMENT` for an unknown option of ours.
 */
export function withQkvGemm(options: SessionOptions = {}, own: QkvGemmLibraryOptions = {}): SessionOptions {
  checkOptions('withQkvGemm', own, ['library']);
  const providers = options.executionProviders ?? [];
  const cuda = providers.some(
    (provider) => (typeof provider === 'string' ? provider : provider.name) === 'cuda',
  );
  const library = findBinary(cuda ? 'libqkvgemm-cuda.so' : 'libqkvgemm.so', own.library);
  return withCustomOps(options, [library]);
}
