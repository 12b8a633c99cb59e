/** Original and result side by side in onnxruntime-web, where the function body stands for the operator. */
import type { InferenceSession, Tensor } from 'onnxruntime-web';
import { QkvGemmError, reason } from '../errors.js';
import { Model } from '../onnx/model.js';
import { differenceParts } from '../report/difference_parts.js';
import { facts, markup, table, type Html } from '../report/html.js';
import type { Sizes } from '../generated_inputs.js';
import { describeBounds, describeDifference } from '../verify/bounds.js';
import { compareTensors } from '../verify/difference.js';
import { planInputs, type Feeds } from '../verify/feed_plan.js';
import { runOnSame, tryFeeds, type Runnable } from '../verify/outcome.js';
import type { Provider } from './messages.js';
import type { LoadedModel } from './rewrite.js';

type Runtime = typeof import('onnxruntime-web');

/** Runs of each model that are timed, in turn, behind one that is not. */
const ROUNDS = 7;
/** Milliseconds of a sample, at least: browsers' clocks go in steps of a tenth. */
const LEAST_TIME = 10;

/** The smaller build where it will do. Both come from beside the page. */
function runtime(provider: Provider): Promise<Runtime> {
  return provider === 'webgpu' ? import('onnxruntime-web/webgpu') : import('onnxruntime-web/wasm');
}

class WebRunner implements Runnable {
  private constructor(
    private readonly session: InferenceSession,
    readonly loadTime: number,
  ) {}

  static async create(
    ort: Runtime,
    { bytes, externalData }: LoadedModel,
    options: InferenceSession.SessionOptions,
  ): Promise<WebRunner> {
    const start = performance.now();
    const all = { logSeverityLevel: 4 as const, ...options, externalData };
    const session = await ort.InferenceSession.create(bytes, all);
    return new WebRunner(session, performance.now() - start);
  }

  get inputs(): readonly InferenceSession.ValueMetadata[] {
    return this.session.inputMetadata;
  }

  get outputs(): string[] {
    return [...this.session.outputNames];
  }

  run(feeds: Readonly<Feeds>): Promise<Record<string, Tensor>> {
    return this.session.run(feeds);
  }

  release(): Promise<void> {
    return this.session.release();
  }
}

async function opened(
  runner: Promise<WebRunner>,
  code: 'INVALID_MODEL' | 'CHECK_FAILED',
  what: string,
): Promise<WebRunner> {
  try {
    return await runner;
  } catch (error) {
    throw new QkvGemmError(code, `${what}: ${reason(error)}`, { cause: error });
  }
}

export interface RunChoices {
  provider: Provider;
  dims: Sizes;
  seed: number;
  maxError: number;
}

/**
 * Runs both on the same generated inputs, as `verify` does: the original without ONNX Runtime's optimisations is the
 * reference. Then times both as sessions run them by default.
 *
 * @returns markup with verdict, times and differences.
 * @throws QkvGemmError `INVALID_MODEL` where the original does not run, `CHECK_FAILED` where the result does not.
 */
export async function runBoth(
  original: LoadedModel,
  fused: LoadedModel,
  choices: RunChoices,
  onProgress: (text: string, done: number, total: number) => void,
): Promise<Html> {
  const { provider, dims, seed, maxError } = choices;
  onProgress('Loading ONNX Runtime', 0, 4);
  const ort = await runtime(provider);
  const options = { executionProviders: [provider] };
  const notLoaded = `ONNX Runtime does not load '${original.name}'`;

  onProgress('Running the original', 1, 4);
  const reference = await opened(
    WebRunner.create(ort, original, { ...options, graphOptimizationLevel: 'disabled' }),
    'INVALID_MODEL',
    notLoaded,
  );
  let first;
  try {
    const plan = planInputs(reference.inputs, new Model(original.bytes), { dims, seed }, ort.Tensor);
    first = await tryFeeds(reference, original.name, plan);
  } finally {
    await reference.release();
  }

  onProgress('Running the fused model', 2, 4);
  const b = await opened(
    WebRunner.create(ort, fused, options),
    'CHECK_FAILED',
    `ONNX Runtime loads '${original.name}', but not '${fused.name}'`,
  );
  const runners = [b];
  try {
    const second = await runOnSame(b, fused.name, first.feeds, original.name, ort.Tensor);
    const bounds = { maxError };
    const outputs = first.names.map((name) =>
      compareTensors(name, first.results[name], second.results[name], bounds),
    );
    onProgress('Timing both', 3, 4);
    const a = await opened(WebRunner.create(ort, original, options), 'INVALID_MODEL', notLoaded);
    runners.push(a);
    const times = await timed([() => a.run(first.feeds), () => b.run(second.feeds)]);
    const beyond = outputs.filter(({ within }) => !within);
    const rows = [
      { model: `original (${original.name})`, load: a.loadTime, run: times[0] ?? NaN },
      { model: `fused (${fused.name})`, load: b.loadTime, run: times[1] ?? NaN },
    ];
    const milliseconds = (value: number): string => `${value.toPrecision(3)} ms`;
    return markup`<p class="verdict${beyond.length === 0 ? '' : ' bad'}">
        ${
          beyond.length === 0
            ? `Equal: no output differs by more than ${describeBounds(bounds)}.`
            : `Different: ${beyond.map(describeDifference).join('; ')}. Allowed are ${describeBounds(bounds)}.`
        }
      </p>
      ${facts([
        [
          'runtime',
          `onnxruntime-web ${ort.env.versions.web ?? ''}, ${provider === 'wasm' ? 'WebAssembly' : 'WebGPU'}`,
        ],
        ...Object.entries(first.feeds).map(
          ([name, { type, dims: sizes }]) =>
            [`input ${name}`, `${type} [${sizes.join(', ')}], generated with seed ${seed}`] as const,
        ),
      ])}
      ${differenceParts(outputs, 'Differences of the outputs')}
      ${table(
        `Times with ONNX Runtime's optimisations, median of ${ROUNDS} samples in turn; the library's kernels do not run in browsers`,
        [
          { head: 'model', cell: ({ model }: (typeof rows)[number]) => model },
          { head: 'load', number: true, cell: ({ load }) => milliseconds(load) },
          { head: 'run', number: true, cell: ({ run }) => milliseconds(run) },
        ],
        rows,
      )}`;
  } finally {
    for (const runner of runners) await runner.release();
  }
}

/** Median time of each, in milliseconds. */
async function timed(runs: readonly (() => Promise<unknown>)[]): Promise<number[]> {
  const samples = runs.map((): number[] => []);
  for (let round = 0; round <= ROUNDS; round++) {
    for (const [i, run] of runs.entries()) {
      const start = performance.now();
      let [time, count] = [0, 0];
      for (; time < LEAST_TIME; time = performance.now() - start, count++) await run();
      if (round > 0) samples[i]?.push(time / count);
    }
  }
  return samples.map((own) => own.sort((x, y) => x - y)[Math.floor(own.length / 2)] ?? NaN);
}
