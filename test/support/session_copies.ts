/**
 * A program with two copies of the addon, as two releases of a package in one tree bring them. Arguments: a folder for
 * the copies; the steps, of which `a` and `b` install a copy and `A` and `B` undo it. Creates sessions after each step
 * and prints what came of them.
 */
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { relativeDifference } from '../../scripts/bench/difference.js';
import type { LoadedRuntime } from '../../ts/session/index.js';
import { findBinary, libraryPath } from '../../ts/session/library.js';
import { expected, fusedModel, K, ROWS, TOLERANCE, x } from './session_models.js';

interface Addon {
  install(): LoadedRuntime[];
  uninstall(): number;
}

const [folder = '', steps = ''] = process.argv.slice(2);
const require = createRequire(import.meta.url);
const [a, b] = ['a', 'b'].map((name) => {
  const copy = path.join(folder, `${name}.node`);
  fs.copyFileSync(findBinary('qkvgemm_session.node'), copy);
  return require(copy) as Addon;
}) as [Addon, Addon];
const bytes = fusedModel();
const file = path.join(folder, 'model.onnx');
fs.writeFileSync(file, bytes);
const options = { logSeverityLevel: 4 as const, extra: { custom_ops: { libraries: libraryPath() } } };

async function outcome(model: string | Uint8Array): Promise<string> {
  try {
    const session =
      typeof model === 'string'
        ? await ort.InferenceSession.create(model, options)
        : await ort.InferenceSession.create(model, options);
    const { y } = await session.run({ x: new ort.Tensor('float32', x, [ROWS, K]) });
    await session.release();
    return relativeDifference(expected().y ?? [], y?.data as Float32Array) < TOLERANCE ? 'right' : 'wrong';
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    return message.includes('QKVGemm') && !message.includes('exist') ? 'without' : message;
  }
}

const outcomes: string[] = [];
for (const step of steps) {
  const copy = step.toLowerCase() === 'a' ? a : b;
  if (step === step.toLowerCase()) copy.install();
  else copy.uninstall();
  outcomes.push(`${await outcome(bytes)} ${await outcome(file)}`);
}
console.log(JSON.stringify(outcomes));
