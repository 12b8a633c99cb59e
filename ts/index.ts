/**
 * onnx-qkv-gemm: ONNX models with norm + QKV projection as one operator, and sessions that run it.
 *
 * @packageDocumentation
 */
import { QkvGemmError } from './errors.js';
import { concat } from './onnx/wire.js';
import { fusePath } from './fuse_file.js';
import { fuseModel } from './rewrite/fuse.js';
import type { FuseOptions } from './rewrite/options.js';
import type { FuseReport } from './rewrite/report.js';

export { benchModels, type BenchOptions, type BenchReport, type ModelTiming } from './bench/bench.js';
export type { PeakMemory } from './bench/memory.js';
export type { OpShare } from './bench/profile.js';
export type { Ratio } from './bench/timing.js';
export { diagnose, type Check, type Diagnosis } from './doctor/doctor.js';
export type { CpuFacts } from './doctor/machine_facts.js';
export { QkvGemmError, type QkvGemmErrorCode } from './errors.js';
export { fuseFile, type FusedFile, type FuseFileOptions } from './fuse_file.js';
export type { Sizes } from './generated_inputs.js';
export {
  inspectModel,
  type Block,
  type BlockCost,
  type InspectOptions,
  type ModelDescription,
  type ValueDescription,
} from './inspect/inspect.js';
export type { Phase, Progress } from './progress.js';
export { benchHtml } from './report/bench_report.js';
export { fuseHtml, type FuseHtmlInput } from './report/fuse_report.js';
export { verifyHtml } from './report/verify_report.js';
export type { OpCounts } from './rewrite/op_counts.js';
export type { FuseOptions, Target } from './rewrite/options.js';
export type { FusedSite, FuseReport, Refusal, WeightType } from './rewrite/report.js';
export type { LoadedRuntime } from './session/addon.js';
export {
  libraryPath,
  withCustomOps,
  withQkvGemm,
  type QkvGemmLibraryOptions,
  type TuneMode,
} from './session/index.js';
export type { Binary } from './session/library.js';
export type { Bounds, ElementPair, ValueDifference } from './verify/difference.js';
export type { FeedOptions } from './verify/feeds.js';
export type { InputFile } from './verify/input_files.js';
export type { InsideReport } from './verify/inside.js';
export { verifyModels, type VerifyOptions, type VerifyReport } from './verify/verify.js';

/** What `fuse` gives. */
export interface FuseResult {
  /** The rewritten model; the input's bytes where nothing was fused. */
  model: Uint8Array;
  /** What was fused, what was refused and why, and what the result needs. */
  report: FuseReport;
}

/**
 * Rewrites a model: each norm with the projections to queries, keys and values becomes one `com.deepspeed.QKVGemm` node.
 * What the rewrite does not touch stays byte for byte.
 *
 * @param model bytes of a ModelProto, or the path of a model file. External data is found from a path only; the result
 *   still refers to what was not fused, relative to the same folder.
 * @returns the rewritten model's bytes and what was done and not done.
 * @throws QkvGemmError `INVALID_ARGUMENT` for an option that is wrong; `INVALID_MODEL` or `UNSUPPORTED_MODEL` for a model;
 *   `FILE_NOT_FOUND`, `FILE_NOT_READABLE` or `EXTERNAL_DATA` for its files. That nothing can be fused is no error: the
 *   report says so. ONNX's specification of LayerNormalization (17), RMSNormalization (23), MatMul and Gemm says what the
 *   node computes; {@link FuseReport} what became of each.
 */
export function fuse(model: Uint8Array | string, options: FuseOptions = {}): Promise<FuseResult> {
  return new Promise((resolve) => {
    if (typeof model !== 'string' && !(model instanceof Uint8Array)) {
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `fuse: expected a model's bytes (Uint8Array) or path (string), found ${Object.prototype.toString.call(model).slice(8, -1)}.`,
      );
    }
    const { parts, report } =
      typeof model === 'string' ? fusePath(model, options) : fuseModel(model, options);
    resolve({ model: parts.length === 1 && parts[0] ? parts[0] : concat(parts), report });
  });
}
