/** The rewrite from file to file: external data, a check that ONNX Runtime accepts the result, and an atomic write. */
import fs from 'node:fs';
import path from 'node:path';
import { checkLoads } from './check_loads.js';
import { named, QkvGemmError } from './errors.js';
import { FolderSource } from './external_data.js';
import { checkWritable, readModelFile } from './files.js';
import { companionsOf, type Companion } from './located_source.js';
import { MAX_PROTOBUF } from './model_size.js';
import { concat } from './onnx/wire.js';
import { checkOptions } from './options.js';
import type { Phase, Progress } from './progress.js';
import type { FuseOptions } from './rewrite/options.js';
import { FUSE_OPTIONS, fuseModel, type FusedModel } from './rewrite/fuse.js';
import type { FuseReport } from './rewrite/report.js';
import { freeDataName, rewriteSteps } from './rewrite_steps.js';
import { inSteps, stageAndCommit, Staging } from './staging.js';
import { CountedData } from './data_file.js';
import type { ValueDifference } from './verify/difference.js';
import { defaultMaxError } from './verify/bounds.js';
import { checkRewritten, verifyModels } from './verify/verify.js';

export type { Progress } from './progress.js';

/** Options of `fuseFile`: those of `fuse`, and where and how the result is written and checked. */
export interface FuseFileOptions extends FuseOptions {
  /** Replace an existing output (default false). The input is never overwritten. */
  overwrite?: boolean;
  /** Load the result in onnxruntime-node before it gets its final name (default true). */
  verify?: boolean;
  /**
   * Weights of at least 1 kB leave the model file for `OUTPUT.data` (default false: only those do whose originals are
   * external, and those with which the model file would become larger than 2 GB).
   */
  saveAsExternalData?: boolean;
  /**
   * One file, of this name beside the output, for all weights of at least 1 kB, those included that lie in other files.
   * Implies `saveAsExternalData`.
   */
  externalDataFile?: string;
  /** Run the original and the result on generated inputs, and write nothing where they differ (default false). */
  check?: boolean;
  /**
   * For `check`: the largest difference allowed, of an output's largest element (default 5e-3; 5e-2 for bf16, and 1e-1 for
   * int8 weights and where rows are rounded to int8).
   */
  maxError?: number;
  /** For `check`: sizes of dimensions that the model leaves open, by name (default 3). */
  dims?: Record<string, number>;
  /** Called now and then, with sums that never fall within a phase. */
  onProgress?: (progress: Progress) => void;
}

const FILE_OPTIONS = [
  'overwrite', 'verify', 'check', 'maxError', 'dims', 'saveAsExternalData', 'externalDataFile', 'onProgress',
] as const; // prettier-ignore

/** What `fuseFile` did and wrote. */
export interface FusedFile {
  /** What was fused, what was refused and why, and what the result needs. */
  report: FuseReport;
  /** The data file that was written beside the output, and its size. */
  data?: {
    /** Its path. */
    file: string;
    /** Its length. */
    bytes: number;
  };
  /** With `check`: each output's difference from the original's. */
  differences?: ValueDifference[];
  /** Folders beside the output with former outputs that a process was replacing when it was killed. */
  replaced?: string[];
}

/** `model.onnx` -> `model.fused.onnx`, in the same folder. */
export function defaultOutput(input: string): string {
  const { dir, name } = path.parse(input);
  return path.join(dir, `${name}.fused.onnx`);
}

/** Reads and rewrites; nothing is written. Errors name the file. */
export function fusePath(input: string, options: FuseOptions = {}): FusedModel {
  const bytes = readModelFile(input);
  return naming(input, () => {
    const source = new FolderSource(path.dirname(input));
    companionsOf(bytes, source); // what is missing is said before the work
    return fuseModel(bytes, options, source);
  });
}

/** What `fuseFile` would do and write. */
export interface PlannedFile {
  report: FuseReport;
  /** The data file that there would be beside the output. */
  data?: { file: string; bytes: number };
}

/** What a rewrite would do, as `fuseFile` decides it; what it would write is counted and thrown away. */
export async function planFile(
  input: string,
  output: string,
  options: FuseOptions & Pick<FuseFileOptions, 'saveAsExternalData' | 'externalDataFile' | 'onProgress'> = {},
): Promise<PlannedFile> {
  const { saveAsExternalData, externalDataFile, onProgress = () => undefined, ...rest } = options;
  const bytes = readModelFile(input);
  try {
    const source = new FolderSource(path.dirname(input));
    const kept = companionsOf(bytes, source);
    const data = new CountedData(dataLocation(output, externalDataFile, kept));
    const everything = externalDataFile !== undefined;
    const always = everything || saveAsExternalData === true;
    const to = { source, data, always, everything, largest: MAX_PROTOBUF, movable: sizeOf(kept) };
    const { report } = await inSteps(rewriteSteps(bytes, rest, to), onProgress);
    const file = path.join(path.dirname(output), data.location);
    return { report, ...(data.size > 0 ? { data: { file, bytes: data.size } } : {}) };
  } catch (error) {
    throw named(input, error);
  }
}

function naming<T>(input: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    throw named(input, error);
  }
}

function sizeOf(companions: readonly Companion[]): number {
  return companions.reduce((sum, { from }) => sum + fs.statSync(from).size, 0);
}

/** Name of the data file: `OUTPUT.data`, or with a number where the model knows another file by that name. */
function dataLocation(output: string, wanted: string | undefined, kept: readonly Companion[]): string {
  if (wanted !== undefined) {
    if (wanted === '' || wanted !== path.basename(wanted) || ['.', '..'].includes(wanted)) {
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `The external-data file '${wanted}' must be a file name without folders: it lies beside the output.`,
      );
    }
    if (wanted === path.basename(output)) {
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `The external-data file and the output are both named '${wanted}'. Choose another name for one of them.`,
      );
    }
    return wanted;
  }
  const taken = new Set(kept.map(({ location }) => path.normalize(location)));
  return freeDataName(path.basename(output), taken);
}

/**
 * Rewrites `input` into `output`. Where nothing can be fused, nothing is written.
 *
 * Fused weights that were external data go to a data file beside the output, one node's at a time. External data that the
 * result refers to otherwise stays as it is, and is copied where the output lies in another folder. The result, its data
 * included, gets its names when all of it is written and checked.
 *
 * @param input path of a model file, which is never overwritten.
 * @param output path of the result.
 * @returns what was done, and the files that were written.
 * @throws QkvGemmError as `fuse`; `FILE_EXISTS` where the output is there and `overwrite` is not given; `FILE_NOT_WRITABLE`;
 *   `CHECK_FAILED` where, with `check`, the outputs differ, or where ONNX Runtime does not load the result.
 */
export function fuseFile(input: string, output: string, options: FuseFileOptions = {}): Promise<FusedFile> {
  return fuseFileWithin(input, output, options, MAX_PROTOBUF);
}

/** `fuseFile` with a limit on the size of the model file. */
export async function fuseFileWithin(
  input: string,
  output: string,
  options: FuseFileOptions,
  largest: number,
): Promise<FusedFile> {
  checkOptions('fuseFile', options, [...FUSE_OPTIONS, ...FILE_OPTIONS]);
  const {
    overwrite = false,
    verify = true,
    saveAsExternalData,
    externalDataFile,
    onProgress,
    ...others
  } = options;
  const { check: comparing = false, maxError, dims, ...rest } = others;
  if (maxError !== undefined && !(maxError >= 0)) {
    throw new QkvGemmError('INVALID_ARGUMENT', `fuseFile: maxError is ${maxError}, expected a number >= 0.`);
  }
  const bytes = readModelFile(input); // a missing input is the first thing to say
  const source = new FolderSource(path.dirname(input));
  const inputs = [input];
  const writing = { overwrite, inputs };
  checkWritable(output, writing);
  const kept = naming(input, () => companionsOf(bytes, source));
  inputs.push(...kept.map(({ from }) => from));
  checkWritable(output, writing);
  const location = dataLocation(output, externalDataFile, kept);
  const oneFile = externalDataFile !== undefined;
  const always = oneFile || saveAsExternalData === true;
  if (always) checkWritable(path.join(path.dirname(output), location), writing);

  return Staging.run(output, writing, async (staging) => {
    const data = staging.dataFile(location);
    const counting = (phase: Phase, total: number): ((bytes: number) => void) => {
      let done = 0;
      return (count) => onProgress?.({ phase, done: (done += count), total });
    };
    let result: FusedModel;
    try {
      const to = { source, data, always, everything: oneFile, largest, movable: sizeOf(kept) };
      result = await inSteps(rewriteSteps(bytes, rest, to), (step) => onProgress?.(step));
      if (result.report.fused.length === 0) return { report: result.report };
    } catch (error) {
      throw named(input, error);
    }
    const { parts, report } = result;
    const companions = kept.length === 0 || oneFile ? [] : companionsOf(concat(parts), source, location);
    const weights = sizeOf(companions);
    const size = report.bytesAfter + data.size + weights;
    const check = async (staged: string): Promise<void> => {
      onProgress?.({ phase: 'check', done: 0, total: size });
      await checkLoads(staged, input, { bytes: size, fallback: rest.fallback !== false });
      onProgress?.({ phase: 'check', done: size, total: size });
    };
    let differences: ValueDifference[] | undefined;
    const compare = async (staged: string): Promise<void> => {
      if (verify) await check(staged);
      const { outputs, bounds } = await verifyModels(input, staged, {
        maxError: maxError ?? defaultMaxError(report, others.dtype),
        library: 'b',
        ...(dims ? { dims } : {}),
      });
      differences = outputs;
      checkRewritten({ outputs, bounds });
    };
    const copied = counting('copy', weights);
    await stageAndCommit(
      staging,
      parts,
      companions,
      comparing ? compare : verify ? check : undefined,
      copied,
      largest,
    );
    return {
      report,
      ...(differences ? { differences } : {}),
      ...(staging.kept.length > 0 ? { replaced: staging.kept } : {}),
      ...(data.used ? { data: { file: path.join(path.dirname(output), location), bytes: data.size } } : {}),
    };
  });
}
