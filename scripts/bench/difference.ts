/** How far results lie apart. */

/** Largest difference over the largest magnitude of `expected`; Infinity where anything is missing or not finite. */
export function relativeDifference(expected: ArrayLike<number>, actual: ArrayLike<number>): number {
  if (expected.length !== actual.length) return Infinity;
  let largest = 0;
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    const e = expected[i] ?? NaN;
    const d = Math.abs(e - (actual[i] ?? NaN));
    if (!(d < Infinity)) return Infinity;
    largest = Math.max(largest, Math.abs(e));
    worst = Math.max(worst, d);
  }
  return largest === 0 ? worst : worst / largest;
}

/** The largest of several outputs' differences. */
export function worstDifference(
  expected: readonly ArrayLike<number>[],
  actual: readonly ArrayLike<number>[],
): number {
  if (expected.length !== actual.length) return Infinity;
  return Math.max(...expected.map((e, i) => relativeDifference(e, actual[i] ?? [])));
}
