/** Options of `fuse`; the CLI's flags carry the same names in kebab case. */
export interface FuseOptions {
  /** Type of the fused weights; `keep` (default) leaves them as they are. */
  dtype?: 'keep' | 'fp16' | 'bf16' | 'int8';
  /**
   * With dtype int8: rows of a column that share a scale, 8 or more; default: all. Divides K, or is longer. Weights that
   * are integers already keep their scales.
   */
  int8Block?: number;
  /** Put the function body into the model so that it runs where the library is not loaded (default true). */
  fallback?: boolean;
}
