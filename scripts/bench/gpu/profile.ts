/** Which execution provider ran what. */
import * as ort from 'onnxruntime-node';
import { profiled } from '../../../ts/bench/profile.js';

export interface Placement {
  /** Nodes that ran, by op type. */
  ops: Record<string, number>;
  /** Execution providers of the QKVGemm nodes, each once. */
  providers: string[];
}

/** Runs a model once under the profiler, on inputs in graph order. Copies between host and device show as MemcpyToHost and MemcpyFromHost. */
export async function placement(
  model: Uint8Array,
  inputs: readonly ort.Tensor[],
  options: ort.InferenceSession.SessionOptions,
): Promise<Placement> {
  const nodes = await profiled(async (profiling) => {
    const session = await ort.InferenceSession.create(model, { ...options, ...profiling });
    await session.run(
      Object.fromEntries(session.inputNames.map((name, i) => [name, inputs[i] as ort.Tensor])),
    );
    session.endProfiling();
    await session.release();
  });
  const ops: Record<string, number> = {};
  for (const { op } of nodes) ops[op] = (ops[op] ?? 0) + 1;
  const fused = nodes.filter(({ op }) => op === 'QKVGemm');
  return { ops, providers: [...new Set(fused.map(({ provider }) => provider))] };
}

export function copies({ ops }: Placement): number {
  return (ops.MemcpyToHost ?? 0) + (ops.MemcpyFromHost ?? 0);
}
