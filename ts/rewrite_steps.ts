/** A rewrite with weights that may leave the model, whoever keeps the files: the same steps for all of them. */
import type { LocatedSource } from './located_source.js';
import { concat } from './onnx/wire.js';
import type { Progress } from './progress.js';
import { fuseSteps, type FusedModel } from './rewrite/fuse.js';
import type { FuseOptions } from './rewrite/options.js';
import { moveTensors, WeightStore, type WeightFile } from './weight_store.js';

export interface RewriteTo {
  source: LocatedSource;
  /** The data file beside the output. */
  data: WeightFile;
  /** All weights of at least 1 kB leave the model. */
  always: boolean;
  /** Those as well that lie in other files. */
  everything: boolean;
  /** Bytes that the model file may have. */
  largest: number;
  /** Bytes of the files that the model refers to. */
  movable: number;
}

/**
 * Rewrites and moves weights, a fused node or a tensor a step. Where nothing is fused, nothing is moved.
 *
 * @returns the model; its report has the size of the model file.
 * @throws QkvGemmError as `fuseModel`.
 */
export function* rewriteSteps(
  bytes: Uint8Array,
  options: FuseOptions,
  to: RewriteTo,
): Generator<Progress, FusedModel> {
  const { source, data, always, everything, largest } = to;
  const store = new WeightStore(data, always, largest - bytes.length);
  const packing = fuseSteps(bytes, options, source, store);
  let result: FusedModel;
  for (;;) {
    const step = packing.next();
    if (step.done) {
      result = step.value;
      break;
    }
    yield { phase: 'pack', ...step.value };
  }
  const { report } = result;
  if (!always || report.fused.length === 0) return result;
  // More than will be moved: what was fused is not. The bar then ends early.
  const total = report.bytesAfter + (everything ? to.movable : 0);
  const moving = moveTensors(concat(result.parts), { data, source, moved: store.moved, everything });
  for (let done = 0; ;) {
    const step = moving.next();
    if (step.done) {
      report.bytesAfter = step.value.reduce((sum, part) => sum + part.length, 0);
      return { parts: step.value, report };
    }
    yield { phase: 'move', done: (done += step.value), total };
  }
}

/**
 * Name of the data file: `OUTPUT.data`, or with a number where the model knows another file by that name.
 *
 * @param taken names, relative to the output, of the files that the model refers to.
 */
export function freeDataName(output: string, taken: ReadonlySet<string>): string {
  let name = `${output}.data`;
  for (let i = 1; taken.has(name); i++) name = `${output}.${i}.data`;
  return name;
}
