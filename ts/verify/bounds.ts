/** What is allowed between two models, and what is said of it. */
import type { FuseOptions } from '../rewrite/options.js';
import type { FuseReport } from '../rewrite/report.js';
import type { Bounds, ValueDifference } from './difference.js';

/** What is allowed by default, of the largest element: what rounding the weights costs, with room for some layers. */
export const DEFAULT_MAX_ERROR: Record<NonNullable<FuseOptions['dtype']>, number> = {
  keep: 5e-3,
  fp16: 5e-3,
  bf16: 5e-2,
  int8: 1e-1,
};

/** The same of a rewritten model: rows that are rounded to 8 bits cost what weights of 8 bits do. */
export function defaultMaxError(report: FuseReport, dtype: FuseOptions['dtype'] = 'keep'): number {
  return DEFAULT_MAX_ERROR[report.fused.some(({ activationQuant }) => activationQuant) ? 'int8' : dtype];
}

/** `'y' by 1.2e-2 (3.4e-3 of its largest element), first at [0, 3]: 1.5 and 1.512`, for messages. */
export function describeDifference({ name, problem, maxAbs, maxError, first }: ValueDifference): string {
  if (problem !== undefined) return `'${name}': ${problem}`;
  const at = first ? `, first at [${first.index.join(', ')}]: ${String(first.a)} and ${String(first.b)}` : '';
  return `'${name}' by ${maxAbs.toExponential(2)} (${maxError.toExponential(2)} of its largest element)${at}`;
}

/** `5e-3 of the largest element`, `1e-3 + 1e-2 |a|`. */
export function describeBounds({ maxError, atol, rtol }: Bounds): string {
  const parts = [
    ...(maxError === undefined ? [] : [`${maxError} of the largest element`]),
    ...(atol === undefined && rtol === undefined ? [] : [`${atol ?? 0} + ${rtol ?? 0} |a|`]),
  ];
  return parts.join(' and ');
}
