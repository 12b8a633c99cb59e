/** The inputs of a comparison: from files, and generated for the rest. */
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { checkSizes, type Sizes } from '../generated_inputs.js';
import type { Model } from '../onnx/model.js';
import { planInputs, type FeedPlan } from './feed_plan.js';
import { readInputs, type InputFile } from './input_files.js';

/** Where the inputs of a run come from. */
export interface FeedOptions {
  /** Tensors by name; they come before `inputFiles`. */
  feeds?: Readonly<Record<string, Tensor>>;
  /** Files in the formats TensorProto (.pb), numpy (.npy) and JSON, or folders with input_0.pb, input_1.pb, ... */
  inputFiles?: readonly InputFile[];
  /** Sizes of dimensions that the model leaves open, by name; those left out are tried as 3, then 1. */
  dims?: Sizes;
  /** Of the generated inputs (default 1). */
  seed?: number;
}

/** Takes the inputs that are given and plans the others. */
export function planFeeds(
  inputs: readonly InferenceSession.ValueMetadata[],
  model: Model,
  { feeds = {}, inputFiles = [], dims = {}, seed = 1 }: FeedOptions,
  TensorOf: typeof Tensor,
): FeedPlan {
  checkSizes(dims, inputs); // before files are read
  const given = { ...readInputs(inputFiles, inputs, TensorOf), ...feeds };
  return planInputs(inputs, model, { given, dims, seed }, TensorOf);
}
