/** How far long work is. */

/**
 * What is counted: of a rewrite, bytes of weights (`pack`: put together; `move`: they leave the model or their files; `copy`:
 * files come along; `check`: the result is loaded); of a comparison, `values` that have been compared; of a measurement,
 * `rounds` of runs.
 */
export type Phase = 'pack' | 'move' | 'copy' | 'check' | 'values' | 'rounds';

export interface Progress {
  phase: Phase;
  /** Sums that never fall within a phase. */
  done: number;
  total: number;
}
