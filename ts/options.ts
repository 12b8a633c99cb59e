import { QkvGemmError } from './errors.js';

/** Edit distance (Levenshtein), for "did you mean". */
function distance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substitution, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}

/** Throws `INVALID_ARGUMENT` for a key that is not known, naming the nearest one that is. */
export function checkOptions(where: string, options: object, known: readonly string[]): void {
  if (typeof options !== 'object' || (options as unknown) === null)
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `${where}: expected an object of options, found ${(options as unknown) === null ? 'null' : typeof options}.`,
    );
  for (const key of Object.keys(options)) {
    if (known.includes(key)) continue;
    const nearest = known
      .map((name) => ({ name, d: distance(key.toLowerCase(), name.toLowerCase()) }))
      .sort((a, b) => a.d - b.d)[0];
    const hint = nearest && nearest.d <= 3 ? ` Did you mean '${nearest.name}'?` : '';
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `${where}: unknown option '${key}'; known: ${known.join(', ')}.${hint}`,
    );
  }
}
