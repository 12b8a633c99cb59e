/** Which execution provider ran what, as ONNX Runtime's profiler saw it. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import * as ort from 'onnxruntime-node';

export interface Placement {
  /** Nodes that ran, by op type. */
  ops: Record<string, number>;
  /** Execution providers of the QKVGemm nodes, each once. */
  providers: string[];
}

interface Event {
  cat?: string;
  name?: string;
  args?: { op_name?: string; provider?: string };
}

/** Runs a model once under the profiler, on inputs in graph order. Copies between host and device show as MemcpyToHost and MemcpyFromHost. */
export async function placement(
  model: Uint8Array,
  inputs: readonly ort.Tensor[],
  options: ort.InferenceSession.SessionOptions,
): Promise<Placement> {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-profile-'));
  try {
    const session = await ort.InferenceSession.create(model, {
      ...options,
      enableProfiling: true,
      profileFilePrefix: path.join(folder, 'profile'),
    });
    await session.run(
      Object.fromEntries(session.inputNames.map((name, i) => [name, inputs[i] as ort.Tensor])),
    );
    session.endProfiling();
    await session.release();
    const [file] = fs.readdirSync(folder);
    if (file === undefined) throw new Error('ONNX Runtime wrote no profile');
    const events = JSON.parse(fs.readFileSync(path.join(folder, file), 'utf8')) as Event[];
    const nodes = events.filter(({ cat, name }) => cat === 'Node' && name?.endsWith('_kernel_time'));
    const ops: Record<string, number> = {};
    for (const { args } of nodes) ops[args?.op_name ?? '?'] = (ops[args?.op_name ?? '?'] ?? 0) + 1;
    const fused = nodes.filter(({ args }) => args?.op_name === 'QKVGemm');
    return { ops, providers: [...new Set(fused.map(({ args }) => args?.provider ?? '?'))] };
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

export function copies({ ops }: Placement): number {
  return (ops.MemcpyToHost ?? 0) + (ops.MemcpyFromHost ?? 0);
}
