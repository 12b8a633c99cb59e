/** Does onnxruntime-node load what was made? */
import { QkvGemmError } from './errors.js';
import { withQkvGemm } from './session/index.js';

/**
 * ONNX Runtime holds the weights of a loaded model several times over: mapped, folded into other constants, packed. From
 * this many bytes on it loads the model without optimisations, and without kernels where there are function bodies, which
 * leaves the weights alone.
 */
const LARGE = 2 ** 29;

/** Loads a staged model in ONNX Runtime, and where that fails, the original, to say whose fault it is. */
export async function checkLoads(
  staged: string,
  input: string,
  { bytes, fallback }: { bytes: number; fallback: boolean },
): Promise<void> {
  const ort = await import('onnxruntime-node');
  const quiet = { logSeverityLevel: 4 } as const;
  const plain = { ...quiet, graphOptimizationLevel: 'disabled' } as const;
  const options = bytes < LARGE ? withQkvGemm(quiet) : fallback ? plain : withQkvGemm(plain);
  const load = async (file: string): Promise<string | undefined> => {
    try {
      const session = await ort.InferenceSession.create(file, options);
      await session.release();
      return undefined;
    } catch (error) {
      if (error instanceof QkvGemmError) throw error;
      return error instanceof Error ? error.message : String(error);
    }
  };
  const problem = await load(staged);
  if (problem === undefined) return;
  const original = await load(input);
  if (original !== undefined) {
    throw new QkvGemmError(
      'INVALID_MODEL',
      `ONNX Runtime does not load '${input}' itself: ${original}. Nothing was written. (--no-verify rewrites it all the same.)`,
    );
  }
  throw new QkvGemmError(
    'CHECK_FAILED',
    `ONNX Runtime loads '${input}', but not what was made of it: ${problem}. Nothing was written; please report this.`,
  );
}
