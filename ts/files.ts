/** Model files: reading with errors that name the file, and what may be written to. Writing itself: staging.ts. */
import fs from 'node:fs';
import path from 'node:path';
import { QkvGemmError, reason } from './errors.js';
import { checkModelSize } from './model_size.js';

/** What is known of a path; undefined where nothing is there. */
export function statOf(file: string): fs.Stats | undefined {
  try {
    return fs.statSync(file, { throwIfNoEntry: false });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOTDIR') return undefined; // below a regular file
    throw new QkvGemmError('INVALID_ARGUMENT', `'${file}' cannot be used: ${reason(error)}.`, {
      cause: error,
    });
  }
}

/** @throws QkvGemmError `FILE_NOT_FOUND`, `FILE_NOT_READABLE`, `UNSUPPORTED_MODEL` for a file above 2 GB. */
export function readModelFile(file: string): Uint8Array {
  const stat = statOf(file);
  if (!stat) throw new QkvGemmError('FILE_NOT_FOUND', `'${file}' does not exist. Check the path.`);
  if (!stat.isFile())
    throw new QkvGemmError('FILE_NOT_READABLE', `'${file}' is not a file. Give the path of a .onnx file.`);
  checkModelSize(file, stat.size);
  try {
    const buffer = fs.readFileSync(file);
    return new Uint8Array(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  } catch (error) {
    throw new QkvGemmError('FILE_NOT_READABLE', `'${file}' cannot be read: ${reason(error)}.`, {
      cause: error,
    });
  }
}

/** Do both paths name the same file? Links and relative paths are followed. */
export function sameFile(a: string, b: string): boolean {
  if (path.resolve(a) === path.resolve(b)) return true;
  const [x, y] = [statOf(a), statOf(b)];
  return x !== undefined && y !== undefined && x.dev === y.dev && x.ino === y.ino;
}

export interface WriteOptions {
  /** Replace an existing file (default false). */
  overwrite?: boolean;
  /** Files that must not be written to: the input and its external data. */
  inputs?: readonly string[];
}

/** Checks that `file` may be written; nothing is written. */
export function checkWritable(file: string, options: WriteOptions = {}): void {
  const input = options.inputs?.find((other) => sameFile(file, other));
  if (input !== undefined) {
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `The output '${file}' is the input '${input}'. Choose another name; inputs, external data included, are never overwritten.`,
    );
  }
  if (file === '') throw new QkvGemmError('INVALID_ARGUMENT', 'The output has no name. Give a file name.');
  const existing = statOf(file);
  if (existing?.isDirectory())
    throw new QkvGemmError('FILE_NOT_WRITABLE', `The output '${file}' is a folder. Give a file name.`);
  if (existing && !existing.isFile())
    throw new QkvGemmError('FILE_NOT_WRITABLE', `The output '${file}' is no regular file. Choose another.`);
  if (existing && !options.overwrite) {
    throw new QkvGemmError(
      'FILE_EXISTS',
      `The output '${file}' exists. Choose another name, or allow it with --overwrite.`,
    );
  }
  const folder = path.dirname(path.resolve(file));
  if (!statOf(folder)?.isDirectory()) {
    throw new QkvGemmError(
      'FILE_NOT_WRITABLE',
      `The output '${file}' cannot be written: '${folder}' is no folder.`,
    );
  }
}
