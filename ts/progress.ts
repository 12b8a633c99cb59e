/** How far long work is. */

/**
 * What is counted: of a rewrite, bytes of weights (`pack`: put together; `move`: they leave the model or their files; `copy`:
 * files come along; `check`: the result is loaded); of a comparison, `values` that have been compared; of a measurement,
 * `rounds` of runs.
 */
export type Phase = 'pack' | 'move' | 'copy' | 'check' | 'values' | 'rounds';

/** How far long work is. */
export interface Progress {
  /** What is being done. */
  phase: Phase;
  /** Sums that never fall within a phase. */
  done: number;
  /** What `done` will be at the end of the phase. */
  total: number;
}
