/** The child process of memory.ts: loads one model, runs it, and says how much memory that took. */
import { Tensor } from 'onnxruntime-node';
import { OpenModel } from '../verify/boundary.js';
import { Runner } from '../verify/runner.js';
import { ownPeak, type MemoryTask } from './memory.js';

async function measure({ file, options, feeds }: MemoryTask): Promise<void> {
  const tensors = Object.fromEntries(
    feeds.map(({ name, type, data, dims }) => [
      name,
      new Tensor(type as 'float32', data as Float32Array, dims),
    ]),
  );
  const boundary = new OpenModel(file).boundary();
  const before = ownPeak();
  const runner = await Runner.create(boundary, options);
  for (let run = 0; run < 2; run++) await runner.run(tensors);
  process.send?.({ peak: ownPeak(), before }, () => process.disconnect());
}

process.once('message', (task: MemoryTask) => {
  measure(task).catch((error: unknown) => {
    console.error(error instanceof Error ? error.message : String(error));
    process.exit(1);
  });
});
