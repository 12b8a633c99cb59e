/** What `fuse` did and did not do: the data behind the CLI's text and its `--json`. */

export type WeightType = 'float32' | 'float16' | 'bfloat16' | 'int8';

/** One norm with its projections that became one `com.deepspeed.QKVGemm` node. */
export interface FusedSite {
  /** Name of the new node. */
  node: string;
  /** Rules that matched: the norm's and the projection's, e.g. `layer-normalization`, `matmul`. */
  rules: { norm: string; projection: string };
  /** Names (or, unnamed, op types with the output name) of the nodes that it replaces, in graph order. */
  replaced: string[];
  normType: 'layer_norm' | 'rms_norm' | 'none';
  epsilon: number;
  /** Length of the normalised axis, output columns, and the columns of each output. */
  k: number;
  n: number;
  splits: number[];
  emitNorm: boolean;
  weightType: WeightType;
  /** Rows of a column that share a scale, where int8 weights have more than one scale a column. */
  scaleBlock?: number;
  /** Signal-to-quantisation-noise ratio of the weights in dB against the original's; absent where nothing was rounded. */
  weightSqnrDb?: number;
}

/** A norm that stays as it was, and why. */
export interface Refusal {
  /** The norm's node: name, or op type with the output name. */
  node: string;
  opType: string;
  /** Rule that came nearest. */
  rule: string;
  /** The check that failed, with the values it saw. */
  reason: string;
  /** Node at which it failed, where that is not the norm itself. */
  at?: string;
}

export interface FuseReport {
  fused: FusedSite[];
  refused: Refusal[];
  opsBefore: Record<string, number>;
  opsAfter: Record<string, number>;
  bytesBefore: number;
  bytesAfter: number;
  /** What the rewritten model needs, e.g. IR version 10 and ONNX Runtime 1.27 where function overloads were unavoidable. */
  requires: { irVersion: number; onnxruntime: string };
  /** Name of each function body added to the model, `com.deepspeed:QKVGemm[:overload]`. */
  functions: string[];
}
