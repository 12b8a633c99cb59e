/** Files of the attention layer of models/attention.ts, and what they give. */
import fs from 'node:fs';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { attentionModel, externalBytes, K, type AttentionOptions } from '../../models/attention.js';
import { uniform } from '../../models/builder.js';
import { relativeDifference } from '../../scripts/bench/difference.js';
import { withQkvGemm } from '../../ts/session/index.js';
import { quiet } from './run.js';

/** Something for the layer to read. */
export const attentionInput = (): ort.Tensor =>
  new ort.Tensor('float32', uniform(2 * 5 * K, 0.5, 7), [2, 5, K]);

/** Writes the model, and with `location` the external file beside it; returns the model's path. */
export function writeAttentionModel(folder: string, options: AttentionOptions = {}): string {
  const file = path.join(folder, 'model.onnx');
  fs.writeFileSync(file, attentionModel(options));
  if (options.location !== undefined) {
    const data = path.resolve(folder, options.location);
    fs.mkdirSync(path.dirname(data), { recursive: true });
    fs.writeFileSync(data, externalBytes());
  }
  return file;
}

async function run(file: string, options: ort.InferenceSession.SessionOptions): Promise<Float32Array> {
  const session = await ort.InferenceSession.create(file, options);
  const { y } = await session.run({ x: attentionInput() });
  await session.release();
  return y?.data as Float32Array;
}

/** Largest difference of a fused file to the original one, with and without the library; by path, for external data. */
export async function fileDifference(fused: string, original: string): Promise<number> {
  const reference = await run(original, quiet);
  return Math.max(
    relativeDifference(reference, await run(fused, withQkvGemm(quiet))),
    relativeDifference(reference, await run(fused, quiet)),
  );
}
