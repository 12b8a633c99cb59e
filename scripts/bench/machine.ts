/** What a measurement was taken on. */
import os from 'node:os';
import * as ort from 'onnxruntime-node';
import { installSessionHook, instructionSet } from '../../ts/session/addon.js';

export function machineLine(): string {
  installSessionHook();
  const cpu = os.cpus()[0]?.model.trim() ?? 'unknown processor';
  const runtime = ort.env.versions.node ?? 'unknown';
  const date = new Date().toISOString().slice(0, 10);
  return `${cpu}, ${os.availableParallelism()} cores, kernels ${instructionSet()}, onnxruntime-node ${runtime}, Node ${process.version}, ${date}`;
}
