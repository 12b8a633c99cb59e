/** External data, wherever the files are: which bytes a tensor has there, and whether the file has them. */
import { QkvGemmError } from './errors.js';
import { externalTensors } from './onnx/external_tensors.js';
import { MAX_TENSOR, type DataSource, type ExternalData } from './onnx/tensor.js';

/** A file, by the name that messages give it. */
export interface Located {
  file: string;
  size: number;
}

export abstract class LocatedSource implements DataSource {
  /** @throws QkvGemmError `EXTERNAL_DATA` where there is no such file, or none that may be read. */
  protected abstract find(location: string, tensor: string): Located;

  /** Bytes of a file that is long enough. */
  protected abstract load(from: Located, offset: number, bytes: number, tensor: string): Uint8Array;

  check(external: ExternalData, bytes: number, tensor: string): void {
    this.checked(external, bytes, tensor);
  }

  private checked(external: ExternalData, bytes: number, tensor: string): Located {
    const found = this.find(external.location, tensor);
    const { file, size } = found;
    const { offset } = external;
    if ((external.length !== undefined && external.length !== bytes) || offset + bytes > size) {
      throw new QkvGemmError(
        'EXTERNAL_DATA',
        `Tensor '${tensor}' needs ${bytes} bytes at ${offset} of '${file}'; ` +
          (offset + bytes > size ? `the file has ${size}.` : `the model says ${external.length}.`),
      );
    }
    return found;
  }

  read(external: ExternalData, bytes: number, tensor: string): Uint8Array {
    const found = this.checked(external, bytes, tensor);
    if (bytes > MAX_TENSOR) {
      throw new QkvGemmError(
        'UNSUPPORTED_MODEL',
        `Tensor '${tensor}' has ${bytes} bytes; tensors up to ${MAX_TENSOR} bytes are rewritten.`,
      );
    }
    return this.load(found, external.offset, bytes, tensor);
  }

  /** Checks that a tensor's file is there and long enough; returns its path and the file's length. */
  locate(external: ExternalData, tensor: string): Located {
    const { file, size } = this.find(external.location, tensor);
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

/** A file that a model refers to, under the name by which the model knows it. */
export interface Companion {
  from: string;
  location: string;
}

/** The external files of a model, each once, but for the data file that was just written. */
export function companionsOf(model: Uint8Array, source: LocatedSource, written?: string): Companion[] {
  const files = new Map<string, string>();
  for (const { name, external } of externalTensors(model)) {
    if (external && external.location !== written)
      files.set(external.location, source.locate(external, name).file);
  }
  return [...files].map(([location, from]) => ({ location, from }));
}
