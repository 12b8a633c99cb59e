/** The rewrite from file to file: external data, a check that ONNX Runtime accepts the result, and an atomic write. */
import path from 'node:path';
import { QkvGemmError } from './errors.js';
import { checkWritable, copyBeside, FolderSource, readModelFile, writeFileWhole } from './files.js';
import { Model } from './onnx/model.js';
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
  try {
    return fuseModel(bytes, options, new FolderSource(path.dirname(input)));
  } catch (error) {
    if (error instanceof QkvGemmError && !error.message.includes(input)) {
      throw new QkvGemmError(error.code, `'${input}': ${error.message}`, { cause: error });
    }
    throw error;
  }
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
  const { overwrite, verify, ...rest } = options;
  const writing = { overwrite: overwrite ?? false, inputs: [input] };
  readModelFile(input); // a missing input is the first thing to say
  checkWritable(output, writing);
  const result = fusePath(input, rest);
  if (result.report.fused.length === 0) return result;
  const folder = path.dirname(path.resolve(output));
  if (folder !== path.dirname(path.resolve(input))) copyBeside(externalFiles(input, result), folder, writing);
  const check = verify === false ? undefined : (temporary: string) => checkLoads(temporary, input);
  await writeFileWhole(output, result.parts, writing, check);
  return result;
}

/** External files that the rewritten model still refers to. */
function externalFiles(input: string, result: FusedModel): { from: string; location: string }[] {
  const source = new FolderSource(path.dirname(input));
  const model = new Model(Buffer.concat(result.parts));
  const files = new Map<string, string>();
  for (const tensor of model.graph.initializers.values()) {
    if (tensor.external) files.set(tensor.external.location, source.locate(tensor.external, tensor.name));
  }
  return [...files].map(([location, from]) => ({ location, from }));
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
