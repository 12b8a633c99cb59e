/** Which inputs a model is tried with: those that are given, and generated ones for the rest. */
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { QkvGemmError } from '../errors.js';
import { checkSizes, generate, openDimensions, type Sizes } from '../generated_inputs.js';
import { inputRanges } from '../input_ranges.js';
import type { Model } from '../onnx/model.js';

/** Size of dimensions that the model leaves open and the caller too, tried in order: not all models take any. */
const OPEN_SIZES = [3, 1];

export type Feeds = Record<string, Tensor>;

export interface FeedPlan {
  /** Names of the inputs that were given. */
  given: string[];
  /** Sets of inputs to try, in order: with other sizes of open dimensions, and with integers that are all 0. */
  sets: Iterable<Feeds>;
}

export interface FeedChoices {
  given?: Feeds;
  /** Sizes of dimensions that the model leaves open, by name; those left out are tried as 3, then 1. */
  dims?: Sizes;
  /** Of the generated inputs (default 1). */
  seed?: number;
}

/** Plans the inputs that are not given. */
export function planInputs(
  inputs: readonly InferenceSession.ValueMetadata[],
  model: Model,
  { given = {}, dims = {}, seed = 1 }: FeedChoices,
  TensorOf: typeof Tensor,
): FeedPlan {
  checkSizes(dims, inputs);
  const unknown = Object.keys(given).find((name) => !inputs.some((input) => input.name === name));
  if (unknown !== undefined)
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `There is an input for '${unknown}', but the model's inputs are: ${inputs.map(({ name }) => name).join(', ') || 'none'}.`,
    );
  const sizes = { ...sizesOf(given, inputs), ...dims };
  const rest = inputs.filter(({ name }) => !Object.hasOwn(given, name));
  const rows = inputRanges(model);
  const open = openDimensions(rest).filter((name) => !Object.hasOwn(sizes, name));
  function* sets(): Generator<Feeds> {
    for (const size of open.length > 0 ? OPEN_SIZES : [0]) {
      const all = { ...Object.fromEntries(open.map((name) => [name, size])), ...sizes };
      for (const below of rows.size > 0 ? [rows, new Map<string, number>()] : [rows])
        yield { ...generate(rest, all, TensorOf, { seed, below }), ...given };
    }
  }
  return { given: Object.keys(given), sets: sets() };
}

/** Sizes that given inputs have in dimensions that the model leaves open: others must fit them. */
function sizesOf(given: Feeds, inputs: readonly InferenceSession.ValueMetadata[]): Sizes {
  const sizes: Sizes = {};
  for (const input of inputs) {
    const tensor = given[input.name];
    if (!tensor || !input.isTensor) continue;
    input.shape.forEach((dim, axis) => {
      if (typeof dim === 'string' && dim !== '') sizes[dim] ??= tensor.dims[axis] ?? 1;
    });
  }
  return sizes;
}
