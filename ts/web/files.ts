/** Files that were dropped on the page: read a range at a time, in a worker, and what is made of them. */
import { QkvGemmError, reason } from '../errors.js';
import { LocatedSource, type Located } from '../located_source.js';
import type { ExternalData } from '../onnx/tensor.js';
import { placeBehind, type WeightFile } from '../weight_store.js';

/** Workers alone have it; the types of pages do not know it. */
declare const FileReaderSync: new () => { readAsArrayBuffer(blob: Blob): ArrayBuffer };

/** @throws QkvGemmError `FILE_NOT_READABLE`: the file has changed since, or there is no memory for it. */
export function readBlob(blob: Blob, name: string): Uint8Array {
  try {
    return new Uint8Array(new FileReaderSync().readAsArrayBuffer(blob));
  } catch (error) {
    throw new QkvGemmError('FILE_NOT_READABLE', `'${name}' cannot be read: ${reason(error)}.`, {
      cause: error,
    });
  }
}

/** `./a/../b` -> `b`; undefined for what leads out of the model's folder. */
export function relativePath(location: string): string | undefined {
  if (location.startsWith('/') || location.includes('\0')) return undefined;
  const parts: string[] = [];
  for (const part of location.split('/')) {
    if (part === '..') {
      if (parts.pop() === undefined) return undefined;
    } else if (part !== '' && part !== '.') parts.push(part);
  }
  return parts.length > 0 ? parts.join('/') : undefined;
}

/** External data in files by name: a browser says nothing of folders where single files are dropped. */
export class FilesSource extends LocatedSource {
  private readonly files: ReadonlyMap<string, Blob>;

  constructor(files: Iterable<readonly [name: string, content: Blob]>) {
    super();
    this.files = new Map(files);
  }

  /** The file that a model means. */
  fileOf(location: string, tensor: string): { file: string; content: Blob } {
    const file = relativePath(location);
    if (file === undefined)
      throw new QkvGemmError(
        'EXTERNAL_DATA',
        `Tensor '${tensor}' is stored in '${location}', outside the model's folder. Such paths are not followed; move the file beside the model.`,
      );
    const content = this.files.get(file) ?? this.files.get(file.slice(file.lastIndexOf('/') + 1));
    if (content) return { file, content };
    throw new QkvGemmError(
      'EXTERNAL_DATA',
      `Tensor '${tensor}' is stored in '${file}', which was not given. Choose the model and its external-data files together.`,
    );
  }

  protected find(location: string, tensor: string): Located {
    const { file, content } = this.fileOf(location, tensor);
    return { file, size: content.size };
  }

  protected load({ file }: Located, offset: number, bytes: number, tensor: string): Uint8Array {
    return readBlob(this.fileOf(file, tensor).content.slice(offset, offset + bytes), file);
  }
}

/** A data file that is made: pieces that the browser keeps, on a disk where they are large. */
export class BlobData implements WeightFile {
  private readonly pieces: Blob[] = [];
  private end = 0;

  constructor(
    readonly location: string,
    private readonly source: FilesSource,
  ) {}

  get size(): number {
    return this.end;
  }

  append(data: Uint8Array): ExternalData {
    return this.add(new Blob([data as Uint8Array<ArrayBuffer>]));
  }

  *copy(from: string, offset: number, length: number): Generator<number, ExternalData> {
    const place = this.add(this.source.fileOf(from, from).content.slice(offset, offset + length));
    yield length;
    return place;
  }

  private add(piece: Blob): ExternalData {
    const offset = placeBehind(this.end);
    if (offset > this.end) this.pieces.push(new Blob([new Uint8Array(offset - this.end)]));
    this.pieces.push(piece);
    this.end = offset + piece.size;
    return { location: this.location, offset, length: piece.size };
  }

  /** All of it; undefined where nothing was put into it. */
  finish(): Blob | undefined {
    return this.pieces.length > 0 ? new Blob(this.pieces) : undefined;
  }
}
