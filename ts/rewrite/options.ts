/** Options of `fuse`; the CLI's flags carry the same names in kebab case. */
export interface FuseOptions {
  /** Type of the fused weights; `keep` (default) leaves them as they are. */
  dtype?: 'keep' | 'fp16' | 'bf16' | 'int8';
  /** Names of nodes that stay as they are: no norm or projection that consists of one of them is fused. */
  skip?: readonly string[];
  /** Put the function body into the model so that it runs where the library is not loaded (default true). */
  fallback?: boolean;
}
