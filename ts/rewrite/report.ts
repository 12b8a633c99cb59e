/** What `fuse` did and did not do: the data behind the CLI's text and its `--json`. */
import type { Target } from './options.js';

/** Element type of fused weights. */
export type WeightType = 'float32' | 'float16' | 'bfloat16' | 'int8';

/** One norm with its projections, or projections without a norm, that became one `com.deepspeed.QKVGemm` node. */
export interface FusedSite {
  /** Name of the new node. */
  node: string;
  /** The subgraph or function that it is in: `then_branch of If 'choose'`, `function com.example:Block`; absent in the model's graph. */
  scope?: string;
  /** The norm's node, as `Refusal.node` names it; absent where there is none. */
  norm?: string;
  /** What its projections are for, of the targets that were asked for. */
  targets: Target[];
  /** Rules that matched: the norm's (`none` where there is none) and the projection's, e.g. `layer-normalization`, `matmul`. */
  rules: {
    /** The norm's; `none` where there is none. */
    norm: string;
    /** The projection's. */
    projection: string;
  };
  /** Names (or, unnamed, op types with the output name) of the nodes that it replaces, in graph order. */
  replaced: string[];
  /** The node's attribute `norm_type`. */
  normType: 'layer_norm' | 'rms_norm' | 'none';
  /** The node's attribute `epsilon`: what is added to the variance or mean square. */
  epsilon: number;
  /** Length of the normalised axis: rows of the weights. */
  k: number;
  /** Columns of the weights, of all outputs together. */
  n: number;
  /** Columns of each output; their sum is `n`. */
  splits: number[];
  /** The normalised input is an output as well, because others read it. */
  emitNorm: boolean;
  /** Element type of the weights in the result. */
  weightType: WeightType;
  /** Rows are rounded to int8 before the product; absent where they are not. */
  activationQuant?: true;
  /** Rows of a column that share a scale, where int8 weights have more than one scale a column. */
  scaleBlock?: number;
  /** Signal-to-quantisation-noise ratio of the weights in dB against the original's; absent where nothing was rounded. */
  weightSqnrDb?: number;
  /** Place of the norm, or of the first product, among all nodes of the model, in graph order. */
  position: number;
}

/** A norm, a projection of a norm that others are fused of, or with the target `linear` a product, that stays as it was, and why. */
export interface Refusal {
  /** Its node: name, or op type with the output name. */
  node: string;
  /** Operator type of that node. */
  opType: string;
  /** As `FusedSite.scope`. */
  scope?: string;
  /** Rule that came nearest. */
  rule: string;
  /** The check that failed, with the values it saw. */
  reason: string;
  /** Node at which it failed, where that is another one. */
  at?: string;
  /** Place of the node among all nodes of the model, in graph order: that of a subgraph stand behind what holds it. */
  position: number;
}

/** What `fuse` did and did not do. */
export interface FuseReport {
  /** What became nodes, in graph order. */
  fused: FusedSite[];
  /** What stayed as it was, and why, in graph order. */
  refused: Refusal[];
  /** Nodes of each operator before, those of subgraphs and of functions that are called included. */
  opsBefore: Record<string, number>;
  /** The same of the result. */
  opsAfter: Record<string, number>;
  /** Length of the model file, without external data. */
  bytesBefore: number;
  /** The same of the result. */
  bytesAfter: number;
  /** What the rewritten model needs, e.g. IR version 10 and ONNX Runtime 1.27 where function overloads were unavoidable. */
  requires: {
    /** ModelProto.ir_version of the result. */
    irVersion: number;
    /** Oldest release of ONNX Runtime that runs it, e.g. `1.27`. */
    onnxruntime: string;
  };
  /** Name of each function body added to the model, `com.deepspeed:QKVGemm[:overload]`. */
  functions: string[];
}
