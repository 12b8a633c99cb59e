/** A worker thread that rewrites the models that it is sent, and answers what became of each. */
import { parentPort, workerData } from 'node:worker_threads';
import { QkvGemmError } from '../../ts/errors.js';
import { FolderSource } from '../../ts/external_data.js';
import { externalTensors } from '../../ts/onnx/external_tensors.js';
import { Model } from '../../ts/onnx/model.js';
import { checkGraph } from '../../ts/rewrite/check_graph.js';
import { fuseBytes } from '../../ts/rewrite/fuse.js';
import type { FuseOptions } from '../../ts/rewrite/options.js';
import { scopesOf } from '../../ts/rewrite/scopes.js';

export interface Task {
  model: Uint8Array;
  options: FuseOptions;
}

export interface Answer {
  /** `fused`, `nothing fused`, or an error code. */
  outcome: string;
  /** What is wrong, where something is. */
  finding?: string;
}

const { folder } = workerData as { folder: string };

function attempt({ model, options }: Task): Answer {
  try {
    const source = new FolderSource(folder);
    for (const { external, name } of externalTensors(model)) if (external) source.locate(external, name);
    const { model: result, report } = fuseBytes(model, options, source);
    if (report.fused.length === 0) return { outcome: 'nothing fused' };
    try {
      const rewritten = new Model(result);
      scopesOf(rewritten, source);
      checkGraph(rewritten.graph);
    } catch (error) {
      return { outcome: 'fused', finding: `the result is not sound: ${String(error)}` };
    }
    return { outcome: 'fused' };
  } catch (error) {
    if (error instanceof QkvGemmError) return { outcome: error.code };
    return {
      outcome: 'unexpected',
      finding: error instanceof Error ? (error.stack ?? error.message) : String(error),
    };
  }
}

parentPort?.on('message', (task: Task) => parentPort?.postMessage(attempt(task)));
