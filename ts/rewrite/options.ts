/** Options of `fuse`; the CLI's flags carry the same names in kebab case. */
import { QkvGemmError } from '../errors.js';

/**
 * Which projections are fused: `qkv`, those behind a norm that lead to attention; `mlp`, the other ones behind a norm, in one
 * node with the former where both are asked for; `linear`, every other product with a constant weight, without a norm.
 */
export type Target = 'qkv' | 'mlp' | 'linear';

export const TARGETS: readonly Target[] = ['qkv', 'mlp', 'linear'];

/** Options of `fuse`. */
export interface FuseOptions {
  /** Type of the fused weights; `keep` (default) leaves them as they are. */
  dtype?: 'keep' | 'fp16' | 'bf16' | 'int8';
  /** Names of nodes that stay as they are: no norm or projection that consists of one of them is fused. */
  skip?: readonly string[];
  /**
   * With dtype int8: rows of a column that share a scale, 8 or more; default: all. Divides K, or is longer. Weights that
   * are integers already keep their scales.
   */
  int8Block?: number;
  /**
   * Nodes with int8 weights round each normalised row to int8 as well, and multiply in integers where the processor does.
   * Default: those behind a norm do whose rows the model itself rounds to 8 bits when it runs (DynamicQuantizeLinear and
   * DynamicQuantizeMatMul), because more bits would take longer than what is replaced; false: none do; true: all do, and it
   * is an error where no node has such weights.
   */
  activationQuant?: boolean;
  /** Put the function body into the model so that it runs where the library is not loaded (default true). */
  fallback?: boolean;
  /** Which projections are fused (default `['qkv']`). */
  targets?: readonly Target[];
}

/** The targets that are asked for; throws `INVALID_ARGUMENT` where the option is no list of them. */
export function targetsOf({ targets = ['qkv'] }: FuseOptions): ReadonlySet<Target> {
  const list: unknown = targets;
  if (!Array.isArray(list) || list.length === 0 || list.some((target) => !TARGETS.includes(target as Target)))
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `fuse: targets is ${JSON.stringify(list)}, expected a list of one or more of ${TARGETS.join(', ')}.`,
    );
  return new Set(targets);
}
