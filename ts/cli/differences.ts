/** A table of how far values lie apart. */
import Table from 'cli-table3';
import type { ValueDifference } from '../verify/difference.js';
import { plain } from './fuse.js';

/** Tables on a terminal or in a log that are longer than this are cut: JSON has all. */
const MOST_ROWS = 200;

/** @param what the head of the first column, in the singular. */
export function differenceTable(differences: readonly ValueDifference[], what = 'output'): string {
  const head = [what, 'largest difference', 'of the largest element', 'relative', 'SQNR', 'cosine', 'beyond'];
  const table = new Table({ head, ...plain });
  for (const difference of differences.slice(0, MOST_ROWS)) {
    const { name, maxAbs, maxRel, maxError, sqnrDb, cosine, beyond, elements } = difference;
    const numbers =
      difference.problem === undefined
        ? [
            maxAbs.toExponential(2),
            maxError.toExponential(2),
            maxRel.toExponential(2),
            sqnrDb === Infinity ? 'exact' : `${sqnrDb.toFixed(1)} dB`,
            cosine.toFixed(8),
          ]
        : ['-', '-', '-', '-', '-'];
    table.push([name, ...numbers, `${beyond} of ${elements}`]);
  }
  const more = differences.length - MOST_ROWS;
  return `${table.toString()}${more > 0 ? `\n(${more} more; --json has all)` : ''}`;
}
