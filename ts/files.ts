/**
 * Model files: reading with errors that name the file, external data inside the model's folder only, and writing that
 * leaves either the whole file or none under the final name.
 */
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { QkvGemmError } from './errors.js';
import type { DataSource, ExternalData } from './onnx/tensor.js';

/** A protobuf message cannot be longer. */
const MAX_PROTOBUF = 2 ** 31 - 1;

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** @throws QkvGemmError `FILE_NOT_FOUND`, `FILE_NOT_READABLE`, `UNSUPPORTED_MODEL` for a file above 2 GB. */
export function readModelFile(file: string): Uint8Array {
  const stat = fs.statSync(file, { throwIfNoEntry: false });
  if (!stat) throw new QkvGemmError('FILE_NOT_FOUND', `'${file}' does not exist. Check the path.`);
  if (!stat.isFile())
    throw new QkvGemmError('FILE_NOT_READABLE', `'${file}' is not a file. Give the path of a .onnx file.`);
  if (stat.size > MAX_PROTOBUF) {
    throw new QkvGemmError(
      'UNSUPPORTED_MODEL',
      `'${file}' has ${stat.size} bytes; one protobuf message, and so a model file, holds at most 2 GB. Save its weights as external data.`,
    );
  }
  try {
    const buffer = fs.readFileSync(file);
    return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  } catch (error) {
    throw new QkvGemmError('FILE_NOT_READABLE', `'${file}' cannot be read: ${reason(error)}.`, {
      cause: error,
    });
  }
}

/** Path of an external file. It must lie in the model's folder, symbolic links followed. */
function externalPath(folder: string, location: string, tensor: string): string {
  const outside = (): QkvGemmError =>
    new QkvGemmError(
      'EXTERNAL_DATA',
      `Tensor '${tensor}' is stored in '${location}', outside the model's folder '${folder}'. Such paths are not followed; move the file beside the model.`,
    );
  const file = path.resolve(folder, location);
  const inside = (base: string, target: string): boolean =>
    target.startsWith(base.endsWith(path.sep) ? base : base + path.sep);
  if (path.isAbsolute(location) || location.includes('\0') || !inside(path.resolve(folder), file))
    throw outside();
  if (!fs.existsSync(file)) {
    throw new QkvGemmError(
      'EXTERNAL_DATA',
      `Tensor '${tensor}' is stored in '${file}', which does not exist. Put the external-data file beside the model.`,
    );
  }
  if (!inside(fs.realpathSync(folder), fs.realpathSync(file))) throw outside();
  return file;
}

/** Reads external data from the folder of a model file. */
export class FolderSource implements DataSource {
  constructor(private readonly folder: string) {}

  read(external: ExternalData, bytes: number, tensor: string): Uint8Array {
    const file = externalPath(this.folder, external.location, tensor);
    const size = fs.statSync(file).size;
    const { offset } = external;
    if ((external.length !== undefined && external.length !== bytes) || offset + bytes > size) {
      throw new QkvGemmError(
        'EXTERNAL_DATA',
        `Tensor '${tensor}' needs ${bytes} bytes at ${offset} of '${file}'; ` +
          (offset + bytes > size ? `the file has ${size}.` : `the model says ${external.length}.`),
      );
    }
    const result = new Uint8Array(bytes);
    const handle = fs.openSync(file, 'r');
    try {
      for (let at = 0; at < bytes;) {
        const count = fs.readSync(handle, result, at, Math.min(bytes - at, 2 ** 30), offset + at);
        if (count === 0)
          throw new QkvGemmError('EXTERNAL_DATA', `'${file}' ended while tensor '${tensor}' was read.`);
        at += count;
      }
    } finally {
      fs.closeSync(handle);
    }
    return result;
  }

  /** Checks that an external file is there; returns its path. */
  locate(external: ExternalData, tensor: string): string {
    return externalPath(this.folder, external.location, tensor);
  }
}

/** Do both paths name the same file? Links and relative paths are followed. */
function sameFile(a: string, b: string): boolean {
  if (path.resolve(a) === path.resolve(b)) return true;
  const [x, y] = [a, b].map((file) => fs.statSync(file, { throwIfNoEntry: false }));
  return x !== undefined && y !== undefined && x.dev === y.dev && x.ino === y.ino;
}

export interface WriteOptions {
  /** Replace an existing file (default false). */
  overwrite?: boolean;
  /** Files that must not be written to: the input. */
  inputs?: readonly string[];
}

/** Checks that `file` may be written; nothing is written. */
export function checkWritable(file: string, options: WriteOptions = {}): void {
  const input = options.inputs?.find((other) => sameFile(file, other));
  if (input !== undefined) {
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `The output '${file}' is the input '${input}'. Choose another name; inputs are never overwritten.`,
    );
  }
  const existing = fs.statSync(file, { throwIfNoEntry: false });
  if (existing?.isDirectory())
    throw new QkvGemmError('FILE_NOT_WRITABLE', `The output '${file}' is a folder. Give a file name.`);
  if (existing && !options.overwrite) {
    throw new QkvGemmError(
      'FILE_EXISTS',
      `The output '${file}' exists. Choose another name, or allow it with --overwrite.`,
    );
  }
  const folder = path.dirname(path.resolve(file));
  if (!fs.statSync(folder, { throwIfNoEntry: false })?.isDirectory()) {
    throw new QkvGemmError(
      'FILE_NOT_WRITABLE',
      `The output '${file}' cannot be written: '${folder}' is no folder.`,
    );
  }
}

/**
 * Writes a file whole or not at all: to a temporary name in the same folder, flushed, then renamed. `check` sees the
 * temporary file; what it throws stops the write.
 */
export async function writeFileWhole(
  file: string,
  parts: readonly Uint8Array[],
  options: WriteOptions = {},
  check?: (temporary: string) => Promise<void>,
): Promise<void> {
  checkWritable(file, options);
  const total = parts.reduce((sum, part) => sum + part.length, 0);
  if (total > MAX_PROTOBUF) {
    throw new QkvGemmError(
      'UNSUPPORTED_MODEL',
      `The rewritten model would have ${total} bytes; a model file holds at most 2 GB.`,
    );
  }
  const temporary = path.join(
    path.dirname(file),
    `.${path.basename(file)}.${crypto.randomBytes(6).toString('hex')}.tmp`,
  );
  const remove = (): void => fs.rmSync(temporary, { force: true });
  const interrupted = (signal: NodeJS.Signals): void => {
    remove();
    process.exit(signal === 'SIGINT' ? 130 : 143);
  };
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  try {
    try {
      const handle = fs.openSync(temporary, 'wx');
      try {
        for (const part of parts) {
          for (let at = 0; at < part.length;)
            at += fs.writeSync(handle, part, at, Math.min(part.length - at, 2 ** 30));
        }
        fs.fsyncSync(handle);
      } finally {
        fs.closeSync(handle);
      }
    } catch (error) {
      throw new QkvGemmError(
        'FILE_NOT_WRITABLE',
        `The output '${file}' cannot be written: ${reason(error)}.`,
        { cause: error },
      );
    }
    await check?.(temporary);
    checkWritable(file, options); // somebody may have put a file there meanwhile
    fs.renameSync(temporary, file);
  } finally {
    remove();
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
  }
}

/** Copies external-data files beside an output in another folder, whole or not at all. */
export function copyBeside(
  files: readonly { from: string; location: string }[],
  folder: string,
  options: WriteOptions = {},
): void {
  for (const { from, location } of files) {
    const to = path.join(folder, location);
    if (sameFile(from, to)) continue;
    fs.mkdirSync(path.dirname(to), { recursive: true });
    checkWritable(to, options);
    const temporary = `${to}.${crypto.randomBytes(6).toString('hex')}.tmp`;
    try {
      fs.copyFileSync(from, temporary, fs.constants.COPYFILE_EXCL);
      fs.renameSync(temporary, to);
    } catch (error) {
      throw new QkvGemmError(
        'FILE_NOT_WRITABLE',
        `The external data '${from}' cannot be copied to '${to}': ${reason(error)}.`,
        { cause: error },
      );
    } finally {
      fs.rmSync(temporary, { force: true });
    }
  }
}
