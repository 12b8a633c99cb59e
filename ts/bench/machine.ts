/** What a measurement was taken on. */
import fs from 'node:fs';
import os from 'node:os';
import { installSessionHook, instructionSet } from '../session/addon.js';

/** Bytes of the last-level cache that the first core uses, where the system says it. */
export function lastLevelCache(): number | undefined {
  try {
    const size = fs.readFileSync('/sys/devices/system/cpu/cpu0/cache/index3/size', 'utf8');
    return Number.parseInt(size) * 1024;
  } catch {
    return undefined;
  }
}

export function machineLine(): string {
  const runtime = installSessionHook().find(({ hooked }) => hooked)?.version ?? 'unknown';
  const cpu = os.cpus()[0]?.model.trim() ?? 'unknown processor';
  const date = new Date().toISOString().slice(0, 10);
  const cache = lastLevelCache();
  const l3 = cache === undefined ? 'of unknown size' : `${(cache / 1e6).toFixed(0)} MB`;
  return `${cpu}, ${os.availableParallelism()} cores, L3 cache ${l3}, kernels ${instructionSet()}, onnxruntime-node ${runtime}, Node ${process.version}, ${date}`;
}
