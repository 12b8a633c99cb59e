/** Two models that are run on the same inputs: A, whose inputs they are, and B, which must take them. */
import type { Tensor } from 'onnxruntime-node';
import { QkvGemmError } from '../errors.js';
import { reason } from '../files.js';
import type { OpenModel } from './boundary.js';
import { planFeeds, type FeedOptions, type Feeds } from './feeds.js';
import { converted } from './input_files.js';
import { Runner, type RunnerOptions } from './runner.js';

export interface Outcome {
  feeds: Feeds;
  results: Record<string, Tensor>;
  /** Of the outputs. */
  names: string[];
}

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
  const { given, sets } = planFeeds(runner.inputs, model.index.model, from, ort.Tensor);
  let last: unknown;
  for (const feeds of sets) {
    try {
      return { feeds, results: await runner.run(feeds), names: runner.outputs, given };
    } catch (error) {
      last = error;
    }
  }
  throw new QkvGemmError(
    'INVALID_MODEL',
    `'${model.file}' does not run on ${given.length > 0 ? 'these' : 'generated'} inputs: ${reason(last)}. Give the sizes that it needs with --dims, or its inputs as files (--input of verify and bench).`,
    { cause: last },
  );
}

/** Runs B on the inputs that A took. */
export async function runOther(runner: Runner, file: string, feeds: Feeds, a: string): Promise<Outcome> {
  const ort = await import('onnxruntime-node');
  const own: Feeds = {};
  for (const input of runner.inputs) {
    const tensor = feeds[input.name];
    const fitting = tensor && input.isTensor ? converted(tensor, input.type, ort.Tensor) : undefined;
    if (!fitting)
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `'${file}' has an input '${input.name}' (${input.isTensor ? input.type : 'no tensor'}), which '${a}' ${tensor ? `has as ${tensor.type}` : 'has not'}: they cannot be run on the same inputs.`,
      );
    own[input.name] = fitting;
  }
  try {
    return { feeds: own, results: await runner.run(own), names: runner.outputs };
  } catch (error) {
    throw new QkvGemmError(
      'CHECK_FAILED',
      `'${a}' runs on these inputs, '${file}' does not: ${reason(error)}.`,
      { cause: error },
    );
  }
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
