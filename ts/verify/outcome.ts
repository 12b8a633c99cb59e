/** Two models that are run on the same inputs: A, whose inputs they are, and B, which must take them. */
import type { InferenceSession, Tensor, TypedTensor } from 'onnxruntime-node';
import { QkvGemmError, reason } from '../errors.js';
import { float16Bits } from '../rewrite/weights/convert.js';
import type { FeedPlan, Feeds } from './feed_plan.js';

/** A session, whatever runs it. */
export interface Runnable {
  readonly inputs: readonly InferenceSession.ValueMetadata[];
  /** Names. */
  readonly outputs: string[];
  run(feeds: Readonly<Feeds>): Promise<Record<string, Tensor>>;
}

export interface Outcome {
  feeds: Feeds;
  results: Record<string, Tensor>;
  /** Of the outputs. */
  names: string[];
}

/** Runs A on the first inputs that it takes. */
export async function tryFeeds(
  runner: Runnable,
  file: string,
  { given, sets }: FeedPlan,
): Promise<Outcome & { given: string[] }> {
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
    `'${file}' does not run on ${given.length > 0 ? 'these' : 'generated'} inputs: ${reason(last)}. Give the sizes that it needs with --dims, or its inputs as files (--input of verify and bench).`,
    { cause: last },
  );
}

/** Runs B on the inputs that A took. */
export async function runOnSame(
  runner: Runnable,
  file: string,
  feeds: Feeds,
  a: string,
  TensorOf: typeof Tensor,
): Promise<Outcome> {
  const own: Feeds = {};
  for (const input of runner.inputs) {
    const tensor = feeds[input.name];
    const fitting = tensor && input.isTensor ? converted(tensor, input.type, TensorOf) : undefined;
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

/** The tensor with the type that another model's input has; float types only. */
function converted(tensor: Tensor, type: Tensor['type'], TensorOf: typeof Tensor): Tensor | undefined {
  if (tensor.type === type) return tensor;
  if (tensor.type !== 'float32') return undefined;
  const { data, dims } = tensor as TypedTensor<'float32'>;
  if (type === 'float16') return new TensorOf('float16', Uint16Array.from(data, float16Bits), dims);
  return type === 'float64' ? new TensorOf('float64', Float64Array.from(data), dims) : undefined;
}
