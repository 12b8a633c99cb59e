/** How far results lie apart. */
import { compareElements } from '../../ts/verify/difference.js';

/** Largest difference over the largest magnitude of `expected`; Infinity where anything is missing or not finite. */
export function relativeDifference(expected: ArrayLike<number>, actual: ArrayLike<number>): number {
  if (expected.length !== actual.length) return Infinity;
  const { maxError, notFinite } = compareElements(expected, actual, { maxError: 0 });
  return notFinite.a + notFinite.b > 0 ? Infinity : maxError;
}

/** The largest of several outputs' differences. */
export function worstDifference(
  expected: readonly ArrayLike<number>[],
  actual: readonly ArrayLike<number>[],
): number {
  if (expected.length !== actual.length) return Infinity;
  return Math.max(...expected.map((e, i) => relativeDifference(e, actual[i] ?? [])));
}
