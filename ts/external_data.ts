/** External data: tensors that lie in other files, which are looked for in the model's folder only. */
import fs from 'node:fs';
import path from 'node:path';
import { QkvGemmError } from './errors.js';
import { MAX_TENSOR, Tensor, type DataSource, type ExternalData } from './onnx/tensor.js';
import { readFields } from './onnx/wire.js';

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
  if (!fs.statSync(file).isFile()) {
    throw new QkvGemmError(
      'EXTERNAL_DATA',
      `Tensor '${tensor}' is stored in '${file}', which is not a file.`,
    );
  }
  if (!inside(fs.realpathSync(folder), fs.realpathSync(file))) throw outside();
  return file;
}

/** Reads external data from the folder of a model file. */
export class FolderSource implements DataSource {
  constructor(private readonly folder: string) {}

  check(external: ExternalData, bytes: number, tensor: string): void {
    this.checkedPath(external, bytes, tensor);
  }

  private checkedPath(external: ExternalData, bytes: number, tensor: string): string {
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
    return file;
  }

  read(external: ExternalData, bytes: number, tensor: string): Uint8Array {
    const file = this.checkedPath(external, bytes, tensor);
    const { offset } = external;
    if (bytes > MAX_TENSOR) {
      throw new QkvGemmError(
        'UNSUPPORTED_MODEL',
        `Tensor '${tensor}' has ${bytes} bytes; tensors up to ${MAX_TENSOR} bytes are rewritten.`,
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

  /** Checks that a tensor's file is there and long enough; returns its path and the file's length. */
  locate(external: ExternalData, tensor: string): { file: string; size: number } {
    const file = externalPath(this.folder, external.location, tensor);
    const { size } = fs.statSync(file);
    const end = external.offset + (external.length ?? 0);
    if (end > size) {
      throw new QkvGemmError(
        'EXTERNAL_DATA',
        `Tensor '${tensor}' is stored up to byte ${end} of '${file}', which has ${size}. The file may be truncated or another model's.`,
      );
    }
    return { file, size };
  }
}

/** Submessages in which tensors can lie: for each message, field number to message. */
export const HOLDERS = {
  model: { 7: 'graph', 25: 'function' },
  function: { 7: 'node' },
  graph: { 1: 'node', 5: 'tensor', 15: 'sparse' },
  node: { 5: 'attribute' },
  attribute: { 5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph', 22: 'sparse', 23: 'sparse' },
  sparse: { 1: 'tensor', 2: 'tensor' },
} as const;

/** Every tensor of a model that is stored elsewhere, those in subgraphs, functions and attributes included. */
export function externalTensors(model: Uint8Array): Tensor[] {
  const found: Tensor[] = [];
  const walk = (message: Uint8Array, kind: keyof typeof HOLDERS, depth: number): void => {
    if (depth > 100) throw new QkvGemmError('INVALID_MODEL', 'The graphs are nested more than 100 deep.');
    const inner = HOLDERS[kind] as Record<number, keyof typeof HOLDERS | 'tensor'>;
    for (const field of readFields(message, `a ${kind}`)) {
      const next = field.wire === 2 ? inner[field.number] : undefined;
      if (next === 'tensor') {
        const tensor = new Tensor(field.value, 'a tensor');
        if (tensor.external) found.push(tensor);
      } else if (next) walk(field.value, next, depth + 1);
    }
  };
  walk(model, 'model', 0);
  return found;
}
