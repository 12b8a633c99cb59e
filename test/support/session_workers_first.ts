/**
 * A program whose main thread loads ONNX Runtime only after worker threads have loaded it, used it and ended; argument:
 * path of a model with input x and output y. Prints the outputs of the workers and of the main thread.
 */
import fs from 'node:fs';
import { Worker } from 'node:worker_threads';
import { K, ROWS, x } from './session_models.js';

const model = new Uint8Array(fs.readFileSync(process.argv[2] ?? ''));
const WORKERS = 6;
const code =
  "const { script } = require('worker_threads').workerData;" +
  "import('tsx/esm/api').then((tsx) => { tsx.register(); return import(script); });";
const workerData = {
  script: new URL('./session_worker.ts', import.meta.url).href,
  model,
  input: x,
  dims: [ROWS, K],
  rounds: 2,
};
const outputs: number[][] = [];
for (let round = 0; round < 2; round++) {
  const arrived = new Int32Array(new SharedArrayBuffer(4));
  const workers = Array.from({ length: WORKERS }, () => {
    const worker = new Worker(code, {
      eval: true,
      execArgv: [],
      workerData: { ...workerData, start: { arrived, expected: WORKERS } },
    });
    worker.on('message', (y: Float32Array) => outputs.push(Array.from(y)));
    return new Promise<void>((resolve, reject) => {
      worker.on('error', reject);
      worker.on('exit', () => {
        resolve();
      });
    });
  });
  await Promise.all(workers);
}
const ort = await import('onnxruntime-node');
const { withQkvGemm } = await import('../../ts/session/index.js');
for (let round = 0; round < 2; round++) {
  const session = await ort.InferenceSession.create(model, withQkvGemm({ logSeverityLevel: 4 }));
  const { y } = await session.run({ x: new ort.Tensor('float32', x, [ROWS, K]) });
  outputs.push(Array.from(y?.data as Float32Array));
  await session.release();
}
console.log(JSON.stringify(outputs));
