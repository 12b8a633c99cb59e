/** Two models on the same inputs: how far their outputs, and the values inside, lie apart. */
import { QkvGemmError } from '../errors.js';
import { checkOptions } from '../options.js';
import type { Progress } from '../progress.js';
import { OpenModel } from './boundary.js';
import { DEFAULT_MAX_ERROR, describeBounds, describeDifference } from './bounds.js';
import { compareTensors, type Bounds, type ValueDifference } from './difference.js';
import type { FeedOptions } from './feeds.js';
import { compareInside, type InsideReport } from './inside.js';
import { checkProvider } from '../session/provider.js';
import { firstRun, openOther, openReference, released, runOther } from './pair.js';
import type { RunnerOptions } from './runner.js';

/** Options of `verifyModels`: inputs, bounds, and how both models are run. */
export interface VerifyOptions extends FeedOptions, Bounds {
  /** Compare the values of the same name that both graphs have inside as well (default false). */
  intermediates?: boolean;
  /** Which of the two is loaded with this package's library (default both). */
  library?: 'both' | 'a' | 'b' | 'none';
  /** Execution provider (default cpu). */
  provider?: 'cpu' | 'cuda';
  /** Threads of each session's pool (default: as many as ONNX Runtime takes, one a physical core). */
  threads?: number;
  /** Called now and then with `intermediates`, with sums that never fall within a phase. */
  onProgress?: (progress: Progress) => void;
}

const OPTIONS = [
  'feeds', 'inputFiles', 'dims', 'seed', 'maxError', 'atol', 'rtol', 'intermediates', 'library', 'provider', 'threads',
  'onProgress',
] as const; // prettier-ignore

/** What `verifyModels` found. */
export interface VerifyReport {
  /** Path of A, the reference. */
  a: string;
  /** Path of B. */
  b: string;
  /** All of A's outputs are in B, and within the bounds. */
  equal: boolean;
  /** The bounds that held, defaults filled in. */
  bounds: Bounds;
  /** What both models were fed. */
  inputs: {
    /** Name of the graph's input. */
    name: string;
    /** Element type, as ONNX Runtime's JavaScript names it: `float32`, `int64`, ... */
    type: string;
    /** Sizes of all dimensions. */
    dims: number[];
    /** Made from the seed, not given. */
    generated: boolean;
  }[];
  /** Seed of the generated inputs. */
  seed: number;
  /** Each of A's outputs, in A's order. */
  outputs: ValueDifference[];
  /** Outputs of B that A has not; they are not compared. */
  onlyInB: string[];
  /** With `intermediates`: the values inside. */
  intermediates?: InsideReport;
}

/**
 * Runs both models on the same inputs and compares every output. A is the reference: it runs without ONNX Runtime's graph
 * optimisations, B as sessions run it by default.
 *
 * @param a path of a model file, as `b`; either may have external data.
 * @param options bounds: by default `maxError` 5e-3; with `atol` or `rtol` these alone. Integers, bools and strings must be
 *   equal, unless `atol` or `rtol` is given.
 * @returns the differences; `equal` is the verdict.
 * @throws QkvGemmError `INVALID_MODEL` where A does not run on such inputs; `CHECK_FAILED` where A does and B does not;
 *   `INVALID_ARGUMENT` for inputs or sizes that do not fit; `UNSUPPORTED_MODEL` for inputs that cannot be generated;
 *   `RUNTIME_UNSUPPORTED` where sessions cannot run on the provider, `LIBRARY_NOT_FOUND` where its library is not there.
 */
export async function verifyModels(a: string, b: string, options: VerifyOptions = {}): Promise<VerifyReport> {
  checkOptions('verify', options, OPTIONS);
  const { library = 'both', provider = 'cpu', threads, seed = 1, intermediates = false } = options;
  const bounds = boundsOf(options);
  await checkProvider(provider);
  const shared: RunnerOptions = { provider, ...(threads === undefined ? {} : { threads }) };
  const optionsOfA = { ...shared, optimize: false, library: library === 'both' || library === 'a' };
  const optionsOfB = { ...shared, library: library === 'both' || library === 'b' };
  const [modelA, modelB] = [new OpenModel(a), new OpenModel(b)];
  const first = await released(openReference(modelA, optionsOfA), (runner) =>
    firstRun(runner, modelA, options),
  );
  const second = await released(openOther(modelB, optionsOfB, a), (runner) =>
    runOther(runner, modelB.file, first.feeds, a),
  );
  const outputs = first.names.map((name) =>
    compareTensors(name, first.results[name], second.results[name], bounds),
  );
  return {
    a,
    b,
    equal: outputs.every(({ within }) => within),
    bounds,
    inputs: Object.entries(first.feeds).map(([name, { type, dims }]) => ({
      name,
      type,
      dims: [...dims],
      generated: !first.given.includes(name),
    })),
    seed,
    outputs,
    onlyInB: second.names.filter((name) => !first.names.includes(name)),
    ...(intermediates
      ? {
          intermediates: await compareInside(
            { model: modelA, options: optionsOfA, feeds: first.feeds },
            { model: modelB, options: optionsOfB, feeds: second.feeds },
            bounds,
            options.onProgress,
          ),
        }
      : {}),
  };
}

function boundsOf({ maxError, atol, rtol }: Bounds): Bounds {
  for (const [name, value] of Object.entries({ maxError, atol, rtol }))
    if (value !== undefined && !(value >= 0))
      throw new QkvGemmError('INVALID_ARGUMENT', `verify: ${name} is ${value}, expected a number >= 0.`);
  if (atol === undefined && rtol === undefined) return { maxError: maxError ?? DEFAULT_MAX_ERROR.keep };
  return { ...(maxError === undefined ? {} : { maxError }), atol: atol ?? 0, rtol: rtol ?? 0 };
}

/** @throws QkvGemmError `CHECK_FAILED` where an output of a rewritten model is beyond the bounds. */
export function checkRewritten({ outputs, bounds }: Pick<VerifyReport, 'outputs' | 'bounds'>): void {
  const beyond = outputs.filter(({ within }) => !within);
  if (beyond.length === 0) return;
  throw new QkvGemmError(
    'CHECK_FAILED',
    `The rewritten model's outputs differ from the original's: ${beyond.map(describeDifference).join('; ')}; allowed are ${describeBounds(bounds)}. Nothing was written. Allow more with --max-error, keep nodes as they are with --skip, or take another --dtype.`,
  );
}
