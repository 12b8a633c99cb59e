/** A worker thread that creates and releases sessions, and posts what the last one gave. */
import { parentPort, workerData } from 'node:worker_threads';
import * as ort from 'onnxruntime-node';
import { withQkvGemm } from '../../ts/session/index.js';

const { model, input, dims, rounds, start } = workerData as {
  model: Uint8Array;
  input: Float32Array;
  dims: number[];
  rounds: number;
  /** Workers wait until so many of them are here, so that they create their first sessions at once. */
  start?: { arrived: Int32Array; expected: number };
};
let result: Float32Array = new Float32Array();
const options = withQkvGemm({ logSeverityLevel: 4 });
if (start) {
  Atomics.add(start.arrived, 0, 1);
  while (Atomics.load(start.arrived, 0) < start.expected);
}
for (let i = 0; i < rounds; i++) {
  const session = await ort.InferenceSession.create(model, options);
  const { y } = await session.run({ x: new ort.Tensor('float32', input, dims) });
  result = Float32Array.from(y?.data as Float32Array);
  await session.release();
}
parentPort?.postMessage(result);
