/** Two sessions in onnxruntime-node that are run on the same inputs. */
import { QkvGemmError, reason } from '../errors.js';
import type { OpenModel } from './boundary.js';
import type { Feeds } from './feed_plan.js';
import { planFeeds, type FeedOptions } from './feeds.js';
import { runOnSame, tryFeeds, type Outcome } from './outcome.js';
import { Runner, type RunnerOptions } from './runner.js';

/** A session of A; what ONNX Runtime says against it is the model's fault. */
export async function openReference(model: OpenModel, options: RunnerOptions): Promise<Runner> {
  try {
    return await Runner.create(model.boundary(), options);
  } catch (error) {
    if (error instanceof QkvGemmError) throw error;
    throw new QkvGemmError('INVALID_MODEL', `ONNX Runtime does not load '${model.file}': ${reason(error)}`, {
      cause: error,
    });
  }
}

/** A session of B, where A has run. */
export async function openOther(model: OpenModel, options: RunnerOptions, a: string): Promise<Runner> {
  try {
    return await Runner.create(model.boundary(), options);
  } catch (error) {
    if (error instanceof QkvGemmError) throw error;
    throw new QkvGemmError(
      'CHECK_FAILED',
      `ONNX Runtime loads '${a}', but not '${model.file}': ${reason(error)}.`,
      { cause: error },
    );
  }
}

/** Runs A on the first inputs that it takes. */
export async function firstRun(
  runner: Runner,
  model: OpenModel,
  from: FeedOptions,
): Promise<Outcome & { given: string[] }> {
  const ort = await import('onnxruntime-node');
  return tryFeeds(runner, model.file, planFeeds(runner.inputs, model.index.model, from, ort.Tensor));
}

/** Runs B on the inputs that A took. */
export async function runOther(runner: Runner, file: string, feeds: Feeds, a: string): Promise<Outcome> {
  const ort = await import('onnxruntime-node');
  return runOnSame(runner, file, feeds, a, ort.Tensor);
}

/** Uses a session and releases it. */
export async function released<T>(opening: Promise<Runner>, use: (runner: Runner) => Promise<T>): Promise<T> {
  const runner = await opening;
  try {
    return await use(runner);
  } finally {
    await runner.release();
  }
}
