/** Compared values as a table and histograms. */
import type { ValueDifference } from '../verify/difference.js';
import { errorHistogram } from './charts.js';
import { markup, name, table, type Column, type Content, type Html } from './html.js';

const number = (value: number, digits = 2): string =>
  Number.isFinite(value) ? value.toExponential(digits) : value === Infinity ? '∞' : 'not a number';

const COLUMNS: Column<ValueDifference>[] = [
  { head: 'value', cell: (d) => name(d.name) },
  { head: '', cell: (d) => (d.within ? markup`<span class="good">within</span>` : markup`<span class="bad">beyond</span>`) },
  { head: 'type', cell: ({ types }) => (types.a === types.b ? types.a : `${types.a}, ${types.b}`) },
  { head: 'shape', cell: ({ dims, problem }) => problem ?? `[${dims.a.join(', ')}]` },
  { head: 'largest difference', number: true, cell: (d) => number(d.maxAbs) },
  { head: 'of the largest element', number: true, cell: (d) => number(d.maxError) },
  { head: 'relative', number: true, cell: (d) => number(d.maxRel) },
  { head: 'RMS', number: true, cell: (d) => number(d.rms) },
  { head: 'SQNR', number: true, cell: ({ sqnrDb }) => (sqnrDb === Infinity ? 'exact' : `${sqnrDb.toFixed(1)} dB`) },
  { head: 'cosine', number: true, cell: ({ cosine }) => cosine.toFixed(8) },
  { head: 'beyond', number: true, cell: (d) => `${d.beyond} of ${d.elements}` },
  { head: 'NaN, Inf', number: true, cell: ({ notFinite: f }) => `${f.a}, ${f.b}` },
  { head: 'first beyond', cell: ({ first }) => first && `[${first.index.join(', ')}]: ${first.a} and ${first.b}` },
]; // prettier-ignore

/** Histograms are drawn of as many outputs. */
const MOST_HISTOGRAMS = 24;

export const differenceTable = (caption: string, differences: readonly ValueDifference[]): Html =>
  table(caption, COLUMNS, differences);

/** Table and histograms of compared values. */
export function differenceParts(differences: readonly ValueDifference[], caption: string): Content {
  const drawn = differences.filter(({ problem }) => problem === undefined).slice(0, MOST_HISTOGRAMS);
  return markup`${differenceTable(caption, differences)}
    <div class="pair">${drawn.map((d) => errorHistogram(d.name, d.histogram))}</div>`;
}
