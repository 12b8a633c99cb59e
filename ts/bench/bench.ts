/** How fast a model runs, alone or against another: verified, then timed in turn in one process. */
import path from 'node:path';
import { QkvGemmError } from '../errors.js';
import { fuseFile } from '../fuse_file.js';
import { rowsOf } from '../inspect/rows.js';
import { checkOptions } from '../options.js';
import type { Progress } from '../progress.js';
import type { FuseOptions } from '../rewrite/options.js';
import { cudaDevices } from '../session/addon.js';
import { libraryPath } from '../session/library.js';
import { checkProvider } from '../session/provider.js';
import { inTemporaryFolder } from '../temporary.js';
import { OpenModel } from '../verify/boundary.js';
import type { Bounds } from '../verify/difference.js';
import type { Feeds } from '../verify/feed_plan.js';
import type { FeedOptions } from '../verify/feeds.js';
import { firstRun, openOther, openReference, released, runOther } from '../verify/pair.js';
import { Runner, type RunnerOptions } from '../verify/runner.js';
import { DEFAULT_MAX_ERROR, describeBounds, describeDifference } from '../verify/bounds.js';
import { verifyModels, type VerifyReport } from '../verify/verify.js';
import { machineLine } from './machine.js';
import { peakMemory, type PeakMemory } from './memory.js';
import { opShares, profiled, type OpShare } from './profile.js';
import { median, quantile, ratioOf, turns, type Ratio, type Turn } from './timing.js';

/** Options of `benchModels`: inputs as for `verifyModels`, bounds of the check before timing. */
export interface BenchOptions extends FeedOptions, Bounds {
  /** The model to compare with. */
  against?: string;
  /** Fuse the model with these options in a temporary folder, external data included, and compare with that. */
  fused?: FuseOptions;
  /** Compare the outputs first, and fail where they differ (default true). */
  verify?: boolean;
  /** Measure each model's memory, in a process of its own (default true). */
  memory?: boolean;
  /** Execution provider of both models (default cpu). With cuda, this package's CUDA library is needed. */
  provider?: 'cpu' | 'cuda';
  /** Threads of each session's pool (default: as many as ONNX Runtime takes, one a physical core). */
  threads?: number;
  /** Seconds of timing, for both together (default 5). */
  seconds?: number;
  /** Tokens of one run, where the inputs do not tell. */
  tokens?: number;
  /** Called now and then, with sums that never fall within a phase. */
  onProgress?: (progress: Progress) => void;
}

const OPTIONS = [
  'feeds', 'inputFiles', 'dims', 'seed', 'maxError', 'atol', 'rtol', 'against', 'fused', 'verify', 'memory', 'provider',
  'threads', 'seconds', 'tokens', 'onProgress',
] as const; // prettier-ignore

/** What was measured of one model. Times are microseconds of one run from JavaScript. */
export interface ModelTiming {
  /** Its path; of what was fused for the occasion, the original's with ` (fused)`. */
  file: string;
  /** Runs that were timed. */
  runs: number;
  /** Median of the times, in microseconds. */
  p50: number;
  /** What 90 % of the runs stayed within, in microseconds. */
  p90: number;
  /** What 99 % of the runs stayed within, in microseconds. */
  p99: number;
  /** By the median. */
  runsPerSecond: number;
  /** By the same, where the inputs tell how many samples and tokens (rows) a run has, or `tokens` does. */
  samplesPerSecond?: number;
  /** Tokens, which are rows of the projections, by the median. */
  tokensPerSecond?: number;
  /** Runs by time: `counts[i]` of them took from `from * step ** i` microseconds on. */
  histogram: {
    /** The fastest run, in microseconds. */
    from: number;
    /** The end of each bin over its beginning. */
    step: number;
    /** Runs of each bin. */
    counts: number[];
  };
  /** From a pass of its own under ONNX Runtime's profiler, which is not timed. */
  ops: OpShare[];
  /** The most memory of a process that runs this model alone; absent where it was not measured. */
  memory?: PeakMemory;
}

/** What `benchModels` measured. */
export interface BenchReport {
  /** Processor, cores, cache, kernels, releases and date, as one line. */
  machine: string;
  /** Execution provider that was asked for: `cpu` or `cuda`. */
  provider: string;
  /** With cuda, the devices that the driver shows, as `NVIDIA H200, compute capability 9.0`; otherwise none. */
  devices: string[];
  /** What both models were fed. */
  inputs: {
    /** Name of the graph's input. */
    name: string;
    /** Element type, as ONNX Runtime's JavaScript names it: `float32`, `int64`, ... */
    type: string;
    /** Sizes of all dimensions. */
    dims: number[];
  }[];
  /** The model, and where there are two, the other one. */
  models: ModelTiming[];
  /** Median of the first model's times over the second's, with a 95 % interval: above 1, the second is faster. */
  ratio?: Ratio;
  /** How the outputs compare; absent where there is one model, or where this was not asked for. */
  verified?: Pick<VerifyReport, 'equal' | 'bounds' | 'outputs'>;
}

/** Runs under the profiler, after one that is not counted. */
const PROFILED_RUNS = 11;
/** Turns of timing at least and at most. */
const TURNS: [number, number] = [10, 2000];

/**
 * Times a model; with `against` or `fused`, also another one on the same inputs, in turn. Both are loaded with this package's
 * library and ONNX Runtime's optimisations.
 *
 * @param model path of a model file.
 * @returns times in microseconds, rates per second, memory in bytes.
 * @throws QkvGemmError `CHECK_FAILED` where the outputs differ; as `verifyModels` and `fuseFile` otherwise.
 *   `UNSUPPORTED_MODEL` where `fused` finds nothing to fuse; `RUNTIME_UNSUPPORTED` where sessions cannot run on the provider.
 */
export async function benchModels(model: string, options: BenchOptions = {}): Promise<BenchReport> {
  checkOptions('bench', options, OPTIONS);
  const { fused, against, provider = 'cpu', seconds = 5, tokens } = options;
  for (const [name, value] of Object.entries({ seconds, tokens }))
    if (value !== undefined && !(value > 0))
      throw new QkvGemmError('INVALID_ARGUMENT', `bench: ${name} is ${value}, expected a number above 0.`);
  if (fused !== undefined && against !== undefined)
    throw new QkvGemmError('INVALID_ARGUMENT', 'bench: against and fused exclude each other. Give one.');
  await checkProvider(provider);
  libraryPath({ cuda: provider === 'cuda' }); // what is missing is said before the work
  if (fused === undefined) return benchPair(model, against, options);
  return inTemporaryFolder(async (folder) => {
    const output = path.join(folder, `${path.parse(model).name}.fused.onnx`);
    const { onProgress } = options;
    const { report } = await fuseFile(model, output, { ...fused, ...(onProgress ? { onProgress } : {}) });
    if (report.fused.length === 0)
      throw new QkvGemmError(
        'UNSUPPORTED_MODEL',
        `Nothing in '${model}' can be fused: there is nothing to compare. qkvgemm fuse ${model} --dry-run --explain says why.`,
      );
    const own = options.maxError ?? options.atol ?? options.rtol;
    const maxError = DEFAULT_MAX_ERROR[fused.dtype ?? 'keep'];
    const result = await benchPair(model, output, own === undefined ? { ...options, maxError } : options);
    const name = `${model} (fused)`; // the file is gone by then
    return { ...result, models: result.models.map((m) => (m.file === output ? { ...m, file: name } : m)) };
  });
}

/** A model, ready to run. */
interface Contender {
  open: OpenModel;
  runner: Runner;
  feeds: Feeds;
}

async function benchPair(a: string, b: string | undefined, options: BenchOptions): Promise<BenchReport> {
  const { provider = 'cpu', threads, verify = true, memory = true, seconds = 5 } = options;
  const running: RunnerOptions = { provider, ...(threads === undefined ? {} : { threads }) };
  const verified = b !== undefined && verify ? await checked(a, b, options, running) : undefined;
  const models = [a, ...(b === undefined ? [] : [b])].map((file) => new OpenModel(file));
  const contenders: Contender[] = [];
  let measured: Turn[][];
  try {
    for (const open of models) {
      const [first] = contenders;
      const runner = await (first ? openOther(open, running, a) : openReference(open, running));
      const { feeds } = first
        ? await runOther(runner, open.file, first.feeds, a)
        : await firstRun(runner, open, options);
      contenders.push({ open, runner, feeds });
    }
    measured = await turns(
      contenders.map(({ open, runner, feeds }) => ({ name: open.file, run: () => runner.run(feeds) })),
      { seconds, samples: TURNS },
      (done, total) => options.onProgress?.({ phase: 'rounds', done, total }),
    );
  } finally {
    for (const { runner } of contenders) await runner.release();
  }
  const feeds = contenders[0]?.feeds ?? {};
  const rates = ratesOf(models[0], feeds, options);
  const timings: ModelTiming[] = [];
  for (const [i, contender] of contenders.entries()) {
    const { open, feeds: own } = contender;
    timings.push({
      file: open.file,
      ...timingOf(measured[i] ?? [], rates),
      ops: await profile(contender, running),
      ...(memory ? { memory: await peakMemory(open.file, running, own) } : {}),
    });
  }
  const [x, y] = measured.map((own) => own.map(({ calls }) => median(calls)));
  return {
    machine: machineLine(),
    provider,
    devices: provider === 'cuda' ? cudaDevices() : [],
    inputs: Object.entries(feeds).map(([name, { type, dims }]) => ({ name, type, dims: [...dims] })),
    models: timings,
    ...(x && y ? { ratio: ratioOf(x, y) } : {}),
    ...(verified ? { verified } : {}),
  };
}

async function checked(
  a: string,
  b: string,
  options: BenchOptions,
  running: RunnerOptions,
): Promise<BenchReport['verified']> {
  const { feeds, inputFiles, dims, seed, maxError, atol, rtol } = options;
  const given = Object.entries({ feeds, inputFiles, dims, seed, maxError, atol, rtol, ...running });
  const { equal, bounds, outputs } = await verifyModels(
    a,
    b,
    Object.fromEntries(given.filter(([, value]) => value !== undefined)),
  );
  if (!equal) {
    const beyond = outputs.filter(({ within }) => !within);
    throw new QkvGemmError(
      'CHECK_FAILED',
      `'${a}' and '${b}' give different results, so that their times say nothing: ${beyond.map(describeDifference).join('; ')}. Allowed are ${describeBounds(bounds)}. Allow more with --max-error, or leave the check out with --no-verify.`,
    );
  }
  return { equal, bounds, outputs };
}

interface Rates {
  samples?: number;
  tokens?: number;
}

/** Samples and tokens of a run, by the shapes of its inputs. */
function ratesOf(model: OpenModel | undefined, feeds: Feeds, { tokens }: BenchOptions): Rates {
  const inputs = model?.index.model.graph.inputs ?? [];
  const shaped = inputs.flatMap(({ name }) => {
    const feed = feeds[name];
    return feed ? [{ type: feed.type, shape: feed.dims }] : [];
  });
  const known = rowsOf(shaped, {});
  const count = tokens ?? known?.rows;
  return {
    ...(known ? { samples: known.samples } : {}),
    ...(count === undefined ? {} : { tokens: count }),
  };
}

function timingOf(own: readonly Turn[], { samples, tokens }: Rates): Omit<ModelTiming, 'file' | 'ops'> {
  const times = own.flatMap(({ calls }) => calls).sort((x, y) => x - y);
  const [p50, p90, p99] = [0.5, 0.9, 0.99].map((q) => quantile(times, q)) as [number, number, number];
  const runsPerSecond = 1e6 / p50;
  return {
    runs: times.length,
    ...{ p50, p90, p99, runsPerSecond },
    ...(samples === undefined ? {} : { samplesPerSecond: samples * runsPerSecond }),
    ...(tokens === undefined ? {} : { tokensPerSecond: tokens * runsPerSecond }),
    histogram: histogramOf(times),
  };
}

/** Of each bin's end over its beginning. */
const STEP = 1.05;
const MOST_BINS = 200;

/** @param times sorted. */
function histogramOf(times: readonly number[]): ModelTiming['histogram'] {
  const from = times[0] ?? 1;
  const counts: number[] = [];
  for (const time of times) {
    const bin = Math.min(MOST_BINS - 1, Math.floor(Math.log(time / from) / Math.log(STEP)));
    while (counts.length <= bin) counts.push(0);
    counts[bin] = (counts[bin] ?? 0) + 1;
  }
  return { from, step: STEP, counts };
}

async function profile({ open, feeds }: Contender, running: RunnerOptions): Promise<OpShare[]> {
  const nodes = await profiled((session) =>
    released(Runner.create(open.boundary(), { ...running, session }), async (runner) => {
      for (let run = 0; run <= PROFILED_RUNS; run++) await runner.run(feeds);
      runner.endProfiling();
    }),
  );
  return opShares(nodes.filter(({ run }) => run > 0));
}
