/** The rewrite from file to file: external data, a check that ONNX Runtime accepts the result, and an atomic write. */
import path from 'node:path';
import { QkvGemmError } from './errors.js';
import { externalTensors, FolderSource } from './external_data.js';
import { checkWritable, readModelFile, writeModelWhole, type Companion } from './files.js';
import { concat } from './onnx/wire.js';
import { checkOptions } from './options.js';
import type { FuseOptions } from './rewrite/options.js';
import { fuseModel, type FusedModel } from './rewrite/fuse.js';
import { withQkvGemm } from './session/index.js';

export interface FuseFileOptions extends FuseOptions {
  /** Replace an existing output (default false). The input is never overwritten. */
  overwrite?: boolean;
  /** Load the result in onnxruntime-node before it gets its final name (default true). */
  verify?: boolean;
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

function naming<T>(input: string, action: () => T): T {
  try {
    return action();
  } catch (error) {
    if (error instanceof QkvGemmError && !error.message.includes(`'${input}'`)) {
      throw new QkvGemmError(error.code, `'${input}': ${error.message}`, { cause: error });
    }
    throw error;
  }
}

/** The external files of a model, each once. */
function companionsOf(model: Uint8Array, source: FolderSource): Companion[] {
  const files = new Map<string, string>();
  for (const { name, external } of externalTensors(model))
    files.set(external.location, source.locate(external, name));
  return [...files].map(([location, from]) => ({ location, from }));
}

/**
 * Rewrites `input` into `output`. Where nothing can be fused, nothing is written.
 *
 * External data that the result refers to is copied beside it where it lies in another folder.
 */
export async function fuseFile(
  input: string,
  output: string,
  options: FuseFileOptions = {},
): Promise<FusedModel> {
  checkOptions('fuseFile', options, ['dtype', 'int8Block', 'fallback', 'overwrite', 'verify']);
  const { overwrite, verify, ...rest } = options;
  const bytes = readModelFile(input); // a missing input is the first thing to say
  const source = new FolderSource(path.dirname(input));
  const inputs = [input];
  checkWritable(output, { overwrite: overwrite ?? false, inputs });
  const result = naming(input, () => {
    inputs.push(...companionsOf(bytes, source).map(({ from }) => from));
    checkWritable(output, { overwrite: overwrite ?? false, inputs });
    return fuseModel(bytes, rest, source);
  });
  if (result.report.fused.length === 0) return result;
  const companions = inputs.length === 1 ? [] : companionsOf(concat(result.parts), source);
  const check = verify === false ? undefined : (temporary: string) => checkLoads(temporary, input);
  const writing = { overwrite: overwrite ?? false, inputs };
  await writeModelWhole(output, result.parts, companions, writing, check);
  return result;
}

async function checkLoads(temporary: string, input: string): Promise<void> {
  const ort = await import('onnxruntime-node');
  const load = async (file: string): Promise<string | undefined> => {
    try {
      const session = await ort.InferenceSession.create(file, withQkvGemm({ logSeverityLevel: 4 }));
      await session.release();
      return undefined;
    } catch (error) {
      if (error instanceof QkvGemmError) throw error;
      return error instanceof Error ? error.message : String(error);
    }
  };
  const problem = await load(temporary);
  if (problem === undefined) return;
  const original = await load(input);
  if (original !== undefined) {
    throw new QkvGemmError(
      'INVALID_MODEL',
      `ONNX Runtime does not load '${input}' itself: ${original}. Nothing was written. (--no-verify rewrites it all the same.)`,
    );
  }
  throw new QkvGemmError(
    'CHECK_FAILED',
    `ONNX Runtime loads '${input}', but not what was made of it: ${problem}. Nothing was written; please report this.`,
  );
}
