/** Running model files, which find their external data by their path. */
import * as ort from 'onnxruntime-node';
import { withQkvGemm } from '../../ts/session/index.js';
import { K, values } from './attention.js';
import { difference, quiet } from './run.js';

async function run(file: string, options: ort.InferenceSession.SessionOptions): Promise<Float32Array> {
  const session = await ort.InferenceSession.create(file, options);
  const { y } = await session.run({ x: new ort.Tensor('float32', values(2 * 5 * K, 7), [2, 5, K]) });
  await session.release();
  return y?.data as Float32Array;
}

/** Largest difference of an attention model's fused form to the original, with and without the library. */
export async function runFile(fused: string, original: string): Promise<number> {
  const reference = await run(original, quiet);
  return Math.max(
    difference(reference, await run(fused, withQkvGemm(quiet))),
    difference(reference, await run(fused, quiet)),
  );
}
