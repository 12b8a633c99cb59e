/** An external-data file that is written as a stream: tensors one behind the other, each on a page of its own. */
import fs from 'node:fs';
import { QkvGemmError } from './errors.js';
import type { ExternalData } from './onnx/tensor.js';
import { placeBehind, type WeightFile } from './weight_store.js';

/** Bytes that are copied at a time: they stay in a core's cache between being read and written. */
const COPY_BYTES = 2 ** 17;
/** Bytes between two pauses of a copy, in which it can be interrupted. */
const COPY_STEP = 2 ** 23;

export class DataFile implements WeightFile {
  private handle: number | undefined;
  private end = 0;
  private buffer: Uint8Array | undefined;
  private created = false;

  /**
   * @param place gives the path to write to; asked with the first tensor.
   * @param location the name by which the model knows it.
   * @param failed what to throw where it cannot be written.
   */
  constructor(
    private readonly place: () => string,
    readonly location: string,
    private readonly failed: (error: unknown) => Error,
  ) {}

  /** Has anything been put into it? */
  get used(): boolean {
    return this.created;
  }

  /** Bytes up to the end of the last tensor. */
  get size(): number {
    return this.end;
  }

  /** Writes one tensor's elements; returns where they lie. */
  append(data: Uint8Array): ExternalData {
    const offset = this.next();
    this.write(data, offset);
    this.end = offset + data.length;
    return { location: this.location, offset, length: data.length };
  }

  /** Copies a range of another file, piece by piece; yields the bytes of each piece. */
  *copy(from: string, offset: number, length: number): Generator<number, ExternalData> {
    const start = this.next();
    this.buffer ??= new Uint8Array(COPY_BYTES);
    if (length === 0) this.write(new Uint8Array(), start);
    const source = fs.openSync(from, 'r');
    try {
      for (let done = 0, paused = 0; done < length;) {
        const wanted = Math.min(length - done, COPY_BYTES);
        const count = fs.readSync(source, this.buffer, 0, wanted, offset + done);
        if (count === 0)
          throw new QkvGemmError(
            'EXTERNAL_DATA',
            `'${from}' ended at byte ${offset + done} while it was copied.`,
          );
        this.write(this.buffer.subarray(0, count), start + done);
        done += count;
        if (done - paused < COPY_STEP && done < length) continue;
        yield done - paused;
        paused = done;
      }
    } finally {
      fs.closeSync(source);
    }
    this.end = start + length;
    return { location: this.location, offset: start, length };
  }

  /** Flushes to the disk and closes. */
  finish(): void {
    if (this.handle === undefined) return;
    try {
      fs.fsyncSync(this.handle);
    } catch (error) {
      throw this.failed(error);
    }
    this.close();
  }

  /** Closes without flushing, where what was written is thrown away. */
  close(): void {
    if (this.handle !== undefined) fs.closeSync(this.handle);
    this.handle = undefined;
  }

  private next(): number {
    return placeBehind(this.end);
  }

  private write(data: Uint8Array, position: number): void {
    try {
      this.handle ??= fs.openSync(this.place(), 'wx');
      this.created = true;
      writeAll(this.handle, data, position);
    } catch (error) {
      throw this.failed(error);
    }
  }
}

/** Where tensors would lie in a data file; nothing is written. */
export class CountedData implements WeightFile {
  private end = 0;

  constructor(readonly location: string) {}

  get size(): number {
    return this.end;
  }

  append(data: Uint8Array): ExternalData {
    return this.place(data.length);
  }

  *copy(_: string, __: number, length: number): Generator<number, ExternalData> {
    yield length;
    return this.place(length);
  }

  private place(length: number): ExternalData {
    const offset = placeBehind(this.end);
    this.end = offset + length;
    return { location: this.location, offset, length };
  }
}

export function writeAll(handle: number, data: Uint8Array, position: number): void {
  for (let at = 0; at < data.length;)
    at += fs.writeSync(handle, data, at, Math.min(data.length - at, 2 ** 30), position + at);
}
