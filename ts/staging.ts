/**
 * Writing a model and the files beside it, whole or not at all: everything is written into a folder of its own beside the
 * output, flushed, checked there, and gets its name at the end. A process that dies meanwhile leaves that folder, whose
 * name begins with a dot and ends in .tmp, and nothing under a final name; the next write to that output removes it.
 */
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { DataFile, writeAll } from './data_file.js';
import { QkvGemmError, reason } from './errors.js';
import { keepAtSignals, removeAtSignals } from './temporary.js';
import { checkWritable, sameFile, statOf, type WriteOptions } from './files.js';
import type { Companion } from './located_source.js';
import { checkResultSize, MAX_PROTOBUF } from './model_size.js';
import { clearLeftovers, OWNER_FILE, ownerRecord, REPLACED, scratchName } from './leftovers.js';

export class Staging {
  private readonly folder: string;
  private readonly scratch: string;
  private readonly data: DataFile[] = [];
  /** Names, relative to the folder, that get their place before the model gets its own. */
  private readonly beside = new Set<string>();
  private created = false;
  /** Folders with what a process that was killed was about to replace, found beside the output. */
  readonly kept: string[] = [];

  private constructor(
    readonly file: string,
    private readonly options: WriteOptions,
  ) {
    this.folder = path.dirname(file);
    this.scratch = path.join(this.folder, scratchName(file, crypto.randomBytes(6).toString('hex')));
  }

  /** Runs `action`, which stages and commits; whatever was not committed is removed behind it. */
  static async run<T>(
    file: string,
    options: WriteOptions,
    action: (staging: Staging) => Promise<T>,
  ): Promise<T> {
    const staging = new Staging(file, options);
    try {
      return await action(staging);
    } finally {
      staging.remove();
    }
  }

  /** Path of the model before it has its name. */
  get model(): string {
    return path.join(this.scratch, path.basename(this.file));
  }

  /** A data file beside the model, written as a stream. Nothing is created before something is put into it. */
  dataFile(location: string): DataFile {
    const data = new DataFile(
      () => {
        const to = path.join(this.folder, location);
        if (statOf(to)) checkWritable(to, this.options);
        return this.place(location);
      },
      location,
      (error) => this.notWritable(error),
    );
    this.data.push(data);
    return data;
  }

  /** Copies a file that has to come along; yields the bytes of each piece. One that lies there already is left. */
  *copy({ from, location }: Companion): Generator<number> {
    const to = path.join(this.folder, location);
    if (sameFile(from, to) || this.beside.has(path.normalize(location))) return;
    if (path.resolve(to) === path.resolve(this.file)) {
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `The output '${this.file}' has the name of the external data '${from}', which has to lie beside it. Choose another name.`,
      );
    }
    if (statOf(to)) checkWritable(to, this.options);
    const copy = this.writing(() => this.place(location));
    try {
      // Shares the blocks where the file system can; elsewhere it fails at once.
      fs.copyFileSync(from, copy, fs.constants.COPYFILE_EXCL | fs.constants.COPYFILE_FICLONE_FORCE);
    } catch {
      const data = new DataFile(
        () => copy,
        location,
        (error) => this.notWritable(error),
      );
      fs.rmSync(copy, { force: true });
      this.data.push(data);
      yield* data.copy(from, 0, fs.statSync(from).size);
    }
    this.beside.add(path.normalize(location));
  }

  /** Makes a file that stays where it is visible beside the staged model, for as long as that is checked. */
  link({ from, location }: Companion): void {
    const link = path.join(this.scratch, location);
    this.writing(() => {
      if (fs.existsSync(link)) return;
      fs.mkdirSync(path.dirname(link), { recursive: true });
      const real = fs.realpathSync(from);
      try {
        fs.linkSync(real, link);
      } catch {
        // Another file system, or one without hard links, or a file of somebody else's: runtimes do not follow symbolic
        // links out of the model's folder.
        fs.copyFileSync(real, link);
      }
    });
  }

  /** Writes the model and flushes everything. */
  finish(parts: readonly Uint8Array[], largest = MAX_PROTOBUF): void {
    const total = parts.reduce((sum, part) => sum + part.length, 0);
    checkResultSize(total, largest);
    this.writing(() => {
      this.makeScratch();
      for (const data of this.data) {
        if (data.used) this.beside.add(path.normalize(data.location));
        data.finish();
      }
      const handle = fs.openSync(this.model, 'wx');
      try {
        let at = 0;
        for (const part of parts) {
          writeAll(handle, part, at);
          at += part.length;
        }
        fs.fsyncSync(handle);
      } finally {
        fs.closeSync(handle);
      }
    });
  }

  /**
   * Gives everything its name: data first, the model last, so that a model is never there without its data. Where data of
   * a former output are replaced, the former model goes first: it must not be left with data that are not its own.
   */
  commit(): void {
    this.checkTargets(); // somebody may have put a file there meanwhile
    const undo: (() => void)[] = [];
    const move = (from: string, to: string): void => {
      fs.mkdirSync(path.dirname(to), { recursive: true });
      fs.renameSync(from, to);
      undo.push(() => fs.renameSync(to, from));
    };
    this.writing(() => {
      try {
        const replaced = [...this.beside].filter((name) => statOf(path.join(this.folder, name)));
        const former = statOf(this.file) && replaced.length > 0 ? [path.basename(this.file)] : [];
        for (const name of [...former, ...replaced])
          move(path.join(this.folder, name), path.join(this.scratch, REPLACED, name));
        for (const name of this.beside) move(path.join(this.scratch, name), path.join(this.folder, name));
        move(this.model, this.file);
      } catch (error) {
        for (const step of undo.reverse()) step();
        throw error;
      }
    });
    syncFolder(this.folder);
  }

  private checkTargets(): void {
    checkWritable(this.file, this.options);
    for (const name of this.beside) {
      const to = path.join(this.folder, name);
      if (statOf(to)) checkWritable(to, this.options);
    }
  }

  /** Path for a file in the staging folder, which is made when it is first needed. */
  private place(location: string): string {
    this.makeScratch();
    const file = path.join(this.scratch, location);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    return file;
  }

  private makeScratch(): void {
    if (this.created) return;
    this.kept.push(...clearLeftovers(this.file));
    // Before the folder is there: a signal in between would leave it.
    this.created = true;
    removeAtSignals(this);
    fs.mkdirSync(this.scratch);
    fs.writeFileSync(path.join(this.scratch, OWNER_FILE), ownerRecord());
  }

  remove(): void {
    for (const data of this.data) data.close();
    if (!this.created) return;
    fs.rmSync(this.scratch, { recursive: true, force: true });
    keepAtSignals(this);
  }

  private writing<T>(action: () => T): T {
    try {
      return action();
    } catch (error) {
      throw this.notWritable(error);
    }
  }

  private notWritable(error: unknown): QkvGemmError {
    if (error instanceof QkvGemmError) return error;
    const message = `The output '${this.file}' cannot be written: ${reason(error)}. Nothing was left under its name.`;
    return new QkvGemmError('FILE_NOT_WRITABLE', message, { cause: error });
  }
}

/** Makes renames last through a power failure, where the file system can. */
function syncFolder(folder: string): void {
  let handle: number | undefined;
  try {
    handle = fs.openSync(folder, 'r');
    fs.fsyncSync(handle);
  } catch {
    // Some file systems cannot flush a folder; the files themselves are flushed.
  } finally {
    if (handle !== undefined) fs.closeSync(handle);
  }
}

/** Runs steps one by one, and lets signals and timers in between. */
export async function inSteps<S, T>(
  steps: Generator<S, T>,
  seen: (step: S) => void = () => undefined,
): Promise<T> {
  for (;;) {
    const step = steps.next();
    if (step.done) return step.value;
    seen(step.value);
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Writes a model with copies of the files that it refers to; `check` sees it staged, and what it throws stops the write. */
export async function writeModelWhole(
  file: string,
  parts: readonly Uint8Array[],
  companions: readonly Companion[] = [],
  options: WriteOptions = {},
  check?: (staged: string) => Promise<void>,
): Promise<void> {
  await Staging.run(file, options, async (staging) => {
    checkWritable(file, options);
    await stageAndCommit(staging, parts, companions, check);
  });
}

/** The last steps of every write: companions, the model, the check, the names. */
export async function stageAndCommit(
  staging: Staging,
  parts: readonly Uint8Array[],
  companions: readonly Companion[],
  check: ((staged: string) => Promise<void>) | undefined,
  copied: (bytes: number) => void = () => undefined,
  largest = MAX_PROTOBUF,
): Promise<void> {
  for (const companion of companions) await inSteps(staging.copy(companion), copied);
  staging.finish(parts, largest);
  if (check) {
    for (const companion of companions) staging.link(companion);
    await check(staging.model);
  }
  staging.commit();
}
