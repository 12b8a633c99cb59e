/** External data: tensors that lie in other files, which are looked for in the model's folder only. */
import fs from 'node:fs';
import path from 'node:path';
import { QkvGemmError } from './errors.js';
import { LocatedSource, type Located } from './located_source.js';

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
export class FolderSource extends LocatedSource {
  constructor(private readonly folder: string) {
    super();
  }

  protected find(location: string, tensor: string): Located {
    const file = externalPath(this.folder, location, tensor);
    return { file, size: fs.statSync(file).size };
  }

  protected load({ file }: Located, offset: number, bytes: number, tensor: string): Uint8Array {
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
}
