/** Can sessions of onnxruntime-node run on a GPU? */
import fs from 'node:fs';
import path from 'node:path';
import { QkvGemmError, reason } from '../errors.js';
import { encodeNode } from '../onnx/node.js';
import { DataType } from '../onnx/tensor.js';
import { MessageWriter } from '../onnx/wire.js';
import { cudaDevices, installSessionHook } from './addon.js';

/** ONNX Runtime loads it from beside its own library. onnxruntime-node says that it knows `cuda` whether it is there or not. */
const CUDA_PROVIDER = 'libonnxruntime_providers_cuda.so';

const INSTALL =
  "Run onnxruntime-node's install script, which fetches it: npm rebuild onnxruntime-node --foreground-scripts.";

/** What stands in the way, and what to do about it. */
export interface ProviderProblem {
  found: string;
  action: string;
}

/** What is asked of the machine; tests answer it otherwise. */
export interface ProviderFacts {
  devices: () => readonly string[];
  /** Folders of the copies of ONNX Runtime that are loaded. */
  runtimeFolders: () => readonly string[];
  /** Names of the providers that onnxruntime-node was built for. */
  backends: () => Promise<readonly string[]>;
  exists: (file: string) => boolean;
  /** Makes a session of a model of one standard node there. */
  tryCuda: () => Promise<void>;
}

const MACHINE: ProviderFacts = {
  devices: cudaDevices,
  runtimeFolders: () => installSessionHook().map(({ path: file }) => path.dirname(file)),
  backends: async () => {
    const { listSupportedBackends } = await import('onnxruntime-node');
    return listSupportedBackends().map(({ name }) => name);
  },
  exists: fs.existsSync,
  tryCuda: async () => {
    const ort = await import('onnxruntime-node');
    const options = { executionProviders: ['cuda'], logSeverityLevel: 4 as const };
    await (await ort.InferenceSession.create(identity(), options)).release();
  },
};

/** y = Identity(x), [1]. */
function identity(): Uint8Array {
  const shape = new MessageWriter().bytes(1, new MessageWriter().integer(1, 1).finish()).finish();
  const tensor = new MessageWriter().integer(1, DataType.float).bytes(2, shape).finish();
  const type = new MessageWriter().bytes(1, tensor).finish();
  const value = (name: string): Uint8Array => new MessageWriter().string(1, name).bytes(2, type).finish();
  const graph = new MessageWriter()
    .bytes(1, encodeNode({ opType: 'Identity', inputs: ['x'], outputs: ['y'], attributes: [] }))
    .string(2, 'provider')
    .bytes(11, value('x'))
    .bytes(12, value('y'));
  const opset = new MessageWriter().string(1, '').integer(2, 13).finish();
  return new MessageWriter().integer(1, 8).bytes(7, graph.parts()).bytes(8, opset).finish();
}

/** Why no session can run on a CUDA device here; undefined where one can. */
export async function cudaProblem(facts: ProviderFacts = MACHINE): Promise<ProviderProblem | undefined> {
  if (facts.devices().length === 0)
    return {
      found: 'the driver shows no CUDA device',
      action: 'See that nvidia-smi lists one and that CUDA_VISIBLE_DEVICES does not hide it.',
    };
  const backends = await facts.backends();
  if (!backends.includes('cuda'))
    return {
      found: `onnxruntime-node was built without it; it has ${backends.join(', ')}`,
      action: 'Use onnxruntime-node on a platform that it has CUDA for, such as Linux x64.',
    };
  const folders = facts.runtimeFolders();
  if (!folders.some((folder) => facts.exists(path.join(folder, CUDA_PROVIDER))))
    return { found: `${CUDA_PROVIDER} is not in ${folders.join(' or ')}`, action: INSTALL };
  try {
    await facts.tryCuda();
    return undefined;
  } catch (error) {
    return {
      found: `it is there, but cannot be used: ${reason(error)}`,
      action: 'See that driver, CUDA libraries and cuDNN are those that this release of ONNX Runtime needs.',
    };
  }
}

/**
 * Elsewhere than on Linux nothing is known of devices without the addon, and ONNX Runtime says itself what is wrong.
 *
 * @throws QkvGemmError `RUNTIME_UNSUPPORTED` where no session can run on this provider.
 */
export async function checkProvider(provider: 'cpu' | 'cuda', facts?: ProviderFacts): Promise<void> {
  const problem = provider === 'cuda' && process.platform === 'linux' ? await cudaProblem(facts) : undefined;
  if (problem)
    throw new QkvGemmError(
      'RUNTIME_UNSUPPORTED',
      `ONNX Runtime's CUDA provider cannot be used: ${problem.found}. ${problem.action} qkvgemm doctor says more; --provider cpu does without it.`,
    );
}
