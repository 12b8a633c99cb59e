/**
 * Model files: reading with errors that name the file, and writing that leaves either the whole file or none under the
 * final name.
 */
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { QkvGemmError } from './errors.js';

/** A protobuf message cannot be longer. */
const MAX_PROTOBUF = 2 ** 31 - 1;

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** What is known of a path; undefined where nothing is there. */
function statOf(file: string): fs.Stats | undefined {
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

/** Do both paths name the same file? Links and relative paths are followed. */
function sameFile(a: string, b: string): boolean {
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

/** A file to be copied beside an output: external data, under the name by which the model knows it. */
export interface Companion {
  from: string;
  location: string;
}

/**
 * Writes a model, and copies of its external data where they have to come along, whole or not at all: under temporary
 * names in the output's folder, flushed, then renamed. `check` sees the temporary model; what it throws stops the write.
 */
export async function writeModelWhole(
  file: string,
  parts: readonly Uint8Array[],
  companions: readonly Companion[] = [],
  options: WriteOptions = {},
  check?: (temporary: string) => Promise<void>,
): Promise<void> {
  const folder = path.dirname(file);
  const total = parts.reduce((sum, part) => sum + part.length, 0);
  if (total > MAX_PROTOBUF) {
    throw new QkvGemmError(
      'UNSUPPORTED_MODEL',
      `The rewritten model would have ${total} bytes; a model file holds at most 2 GB.`,
    );
  }
  const copies = companions
    .map(({ from, location }) => ({ from, location, to: path.join(folder, location) }))
    .filter(({ from, to }) => !sameFile(from, to));
  const clash = copies.find(({ to }) => path.resolve(to) === path.resolve(file));
  if (clash) {
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `The output '${file}' has the name of the external data '${clash.from}', which has to lie beside it. Choose another name.`,
    );
  }
  const checkTargets = (): void => {
    checkWritable(file, options);
    for (const { to } of copies) if (statOf(to)) checkWritable(to, options);
  };
  checkTargets();

  const scratch = path.join(
    folder,
    `.${path.basename(file).slice(0, 200)}.${crypto.randomBytes(6).toString('hex')}.tmp`,
  );
  const remove = (): void => fs.rmSync(scratch, { recursive: true, force: true });
  const interrupted = (signal: NodeJS.Signals): void => {
    remove();
    process.exit(signal === 'SIGINT' ? 130 : 143);
  };
  const writing = (action: () => void): void => {
    try {
      action();
    } catch (error) {
      if (error instanceof QkvGemmError) throw error;
      const message = `The output '${file}' cannot be written: ${reason(error)}.`;
      throw new QkvGemmError('FILE_NOT_WRITABLE', message, { cause: error });
    }
  };
  // External data is found beside the model: with some to copy, the temporary name is that of a folder.
  const temporary = copies.length === 0 ? scratch : path.join(scratch, path.basename(file));
  process.once('SIGINT', interrupted).once('SIGTERM', interrupted);
  try {
    writing(() => {
      if (copies.length > 0) fs.mkdirSync(scratch);
      for (const { from, location } of copies.length > 0 ? companions : []) {
        const copy = path.join(scratch, location);
        fs.mkdirSync(path.dirname(copy), { recursive: true });
        fs.copyFileSync(from, copy, fs.constants.COPYFILE_EXCL);
      }
      writeParts(temporary, parts);
    });
    await check?.(temporary);
    writing(() => {
      checkTargets(); // somebody may have put a file there meanwhile
      for (const { location, to } of copies) {
        fs.mkdirSync(path.dirname(to), { recursive: true });
        fs.renameSync(path.join(scratch, location), to);
      }
      fs.renameSync(temporary, file);
    });
  } finally {
    remove();
    process.off('SIGINT', interrupted).off('SIGTERM', interrupted);
  }
}

function writeParts(file: string, parts: readonly Uint8Array[]): void {
  const handle = fs.openSync(file, 'wx');
  try {
    for (const part of parts) {
      for (let at = 0; at < part.length;)
        at += fs.writeSync(handle, part, at, Math.min(part.length - at, 2 ** 30));
    }
    fs.fsyncSync(handle);
  } finally {
    fs.closeSync(handle);
  }
}
