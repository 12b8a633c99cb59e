/** A worker thread that creates and releases sessions, and posts what the last one gave. */
import { parentPort, workerData } from 'node:worker_threads';
import * as ort from 'onnxruntime-node';
import { withQkvGemm } from '../../ts/session/index.js';

const { model, input, dims, rounds } = workerData as {
  model: Uint8Array;
  input: Float32Array;
  dims: number[];
  rounds: number;
};
let result: Float32Array = new Float32Array();
for (let i = 0; i < rounds; i++) {
  const session = await ort.InferenceSession.create(model, withQkvGemm({ logSeverityLevel: 4 }));
  const { y } = await session.run({ x: new ort.Tensor('float32', input, dims) });
  result = Float32Array.from(y?.data as Float32Array);
  await session.release();
}
parentPort?.postMessage(result);
