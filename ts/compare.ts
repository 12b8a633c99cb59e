/** Two models on the same generated inputs: how far their outputs lie apart. */
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { generate, openDimensions, type Sizes } from './generated_inputs.js';
import { QkvGemmError } from './errors.js';
import { readModelFile } from './files.js';
import { inputRanges } from './input_ranges.js';
import { Model } from './onnx/model.js';
import { DataType } from './onnx/tensor.js';
import { toFloat32 } from './rewrite/weights/convert.js';
import { withQkvGemm } from './session/index.js';

export interface OutputDifference {
  output: string;
  /** Largest difference of two elements; Infinity where one is missing, or not finite where the other is. */
  maxAbs: number;
  /** The same over the largest magnitude of the original's output. */
  maxRel: number;
}

/** Size of dimensions that the model leaves open and the caller too, tried in order: not all models take any. */
const OPEN_SIZES = [3, 1];

/**
 * Runs the original, without optimisations, and the rewritten model, with the library, on seeded random inputs;
 * integers that look rows of a constant table up are within it.
 *
 * @param sizes of dimensions that the model leaves open, by name.
 * @throws QkvGemmError `INVALID_MODEL` where the original does not run on such inputs; `UNSUPPORTED_MODEL` for inputs that
 *   cannot be generated; `CHECK_FAILED` where the rewritten one does not run.
 */
export async function compareModels(
  original: string,
  rewritten: string,
  sizes: Sizes = {},
): Promise<OutputDifference[]> {
  const ort = await import('onnxruntime-node');
  const quiet = { logSeverityLevel: 4 } as const;
  const run = async (
    file: string,
    options: InferenceSession.SessionOptions,
    feedsOf: (session: InferenceSession) => Record<string, Tensor>,
  ): Promise<{
    feeds: Record<string, Tensor>;
    results: InferenceSession.OnnxValueMapType;
    names: readonly string[];
  }> => {
    const session = await ort.InferenceSession.create(file, options);
    try {
      const feeds = feedsOf(session);
      return { feeds, results: await session.run(feeds), names: session.outputNames };
    } finally {
      await session.release();
    }
  };
  const ranges = inputRanges(new Model(readModelFile(original)));
  const reference = async (): Promise<Awaited<ReturnType<typeof run>>> => {
    let last: unknown;
    for (const size of OPEN_SIZES) {
      try {
        return await run(original, { ...quiet, graphOptimizationLevel: 'disabled' }, (session) => {
          const open = openDimensions(session.inputMetadata);
          const all = Object.fromEntries(open.map((name) => [name, size]));
          return generate(session.inputMetadata, { ...all, ...sizes }, ort.Tensor, ranges);
        });
      } catch (error) {
        if (error instanceof QkvGemmError) throw error;
        last = error;
      }
    }
    throw new QkvGemmError(
      'INVALID_MODEL',
      `The original '${original}' does not run on generated inputs: ${messageOf(last)}. Give the sizes that it needs with --dims, or leave out --check.`,
      { cause: last },
    );
  };
  const { feeds, results, names } = await reference();
  let actual: InferenceSession.OnnxValueMapType;
  try {
    ({ results: actual } = await run(rewritten, withQkvGemm(quiet), () => feeds));
  } catch (error) {
    if (error instanceof QkvGemmError) throw error;
    throw new QkvGemmError(
      'CHECK_FAILED',
      `The original runs on generated inputs, the rewritten model does not: ${messageOf(error)}. Nothing was written; please report this.`,
      { cause: error },
    );
  }
  return names.map((output) => ({
    output,
    ...difference(numbersOf(results[output] as Tensor), numbersOf(actual[output])),
  }));
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

function numbersOf(tensor: Tensor | undefined): ArrayLike<number> {
  if (!tensor) return [];
  const { data, type } = tensor;
  if (type === 'string')
    throw new QkvGemmError('UNSUPPORTED_MODEL', 'An output holds strings, which --check cannot compare.');
  if (type === 'float16') {
    const view = data as Uint16Array;
    return toFloat32(new Uint8Array(view.buffer, view.byteOffset, view.byteLength), DataType.float16);
  }
  return type === 'float32' ? (data as Float32Array) : Float64Array.from(data as ArrayLike<number>, Number);
}

function difference(
  expected: ArrayLike<number>,
  actual: ArrayLike<number>,
): { maxAbs: number; maxRel: number } {
  let largest = 0;
  let maxAbs = expected.length === actual.length ? 0 : Infinity;
  for (let i = 0; i < expected.length && maxAbs < Infinity; i++) {
    const [e, a] = [expected[i] ?? NaN, actual[i] ?? NaN];
    if (Object.is(e, a) || e === a) continue;
    const d = Math.abs(e - a);
    maxAbs = d < Infinity ? Math.max(maxAbs, d) : Infinity;
  }
  for (let i = 0; i < expected.length; i++) {
    const magnitude = Math.abs(expected[i] ?? NaN);
    if (magnitude < Infinity) largest = Math.max(largest, magnitude);
  }
  return { maxAbs, maxRel: maxAbs === 0 ? 0 : maxAbs / (largest || 1) };
}

/** What is allowed by default, of the largest output: what rounding the weights costs, with room for some layers. */
export const DEFAULT_MAX_ERROR = { keep: 5e-3, fp16: 5e-3, bf16: 5e-2, int8: 1e-1 } as const;

/** @throws QkvGemmError `CHECK_FAILED` where an output lies further apart than `most`, of its largest element. */
export function checkDifferences(differences: readonly OutputDifference[], most: number): void {
  const worse = differences.filter(({ maxRel }) => !(maxRel <= most));
  if (worse.length === 0) return;
  const list = worse.map(({ output, maxAbs, maxRel }) => `'${output}' by ${maxAbs.toExponential(2)} (${maxRel.toExponential(2)} of its largest element)`); // prettier-ignore
  throw new QkvGemmError(
    'CHECK_FAILED',
    `The rewritten model's outputs differ from the original's: ${list.join(', ')}; allowed are ${most} of the largest. Nothing was written. Allow more with --max-error, keep nodes as they are with --skip, or take another --dtype.`,
  );
}
