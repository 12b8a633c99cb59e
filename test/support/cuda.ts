/** What of CUDA is there: the library, a device, a provider. */
import * as ort from 'onnxruntime-node';
import { cudaDevices } from '../../ts/session/addon.js';
import { libraryPath } from '../../ts/session/index.js';
import { attentionModel } from '../../models/attention.js';
import { quiet } from './run.js';

interface Skippable {
  skip(): void;
}

/** Path of the CUDA library; skips the test, and says so, where it is not built. */
export function cudaLibraryOrSkip(test: Skippable): string {
  try {
    return libraryPath({ cuda: true });
  } catch {
    console.log('  (the CUDA library is not built here: it needs nvcc)');
    test.skip();
    return '';
  }
}

/** Why no session can run on a GPU here; undefined where one can. */
export async function whyNoGpu(): Promise<string | undefined> {
  try {
    libraryPath({ cuda: true });
  } catch {
    return 'the CUDA library is not built';
  }
  if (cudaDevices().length === 0) return 'there is no CUDA device';
  const providers = ort.listSupportedBackends().map(({ name }) => name);
  if (!providers.includes('cuda')) return 'this onnxruntime-node knows no CUDA provider';
  try {
    const session = await ort.InferenceSession.create(attentionModel(), {
      ...quiet,
      executionProviders: ['cuda'],
    });
    await session.release();
    return undefined;
  } catch (error) {
    return `onnxruntime-node cannot use its CUDA provider: ${error instanceof Error ? error.message : String(error)}`;
  }
}
