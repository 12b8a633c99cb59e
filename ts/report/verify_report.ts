/** The report of `verify`. */
import type { ValueDifference } from '../verify/difference.js';
import { describeBounds, describeDifference, type VerifyReport } from '../verify/verify.js';
import { driftChart, errorHistogram } from './charts.js';
import { facts, markup, name, section, table, type Column, type Content, type Section } from './html.js';
import { page } from './page.js';

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

/** Table and histograms of compared values. */
export function differenceParts(differences: readonly ValueDifference[], caption: string): Content {
  const drawn = differences.filter(({ problem }) => problem === undefined).slice(0, MOST_HISTOGRAMS);
  return markup`${table(caption, COLUMNS, differences)}
    <div class="pair">${drawn.map((d) => errorHistogram(d.name, d.histogram))}</div>`;
}

/** A page with the verdict, each output's difference and histogram, and the values inside where they were compared. */
export function verifyHtml(report: VerifyReport): string {
  const { a, b, equal, bounds, inputs, seed, outputs, onlyInB, intermediates } = report;
  const beyond = outputs.filter(({ within }) => !within);
  const head = markup`<p class="verdict${equal ? '' : ' bad'}">
      ${
        equal
          ? `Equal: no output differs by more than ${describeBounds(bounds)}.`
          : `Different: ${beyond.map(describeDifference).join('; ')}. Allowed are ${describeBounds(bounds)}.`
      }
    </p>
    ${facts([
      ['A, the reference', name(a)],
      ['B', name(b)],
      ...inputs.map(
        (input) =>
          [
            `input ${input.name}`,
            `${input.type} [${input.dims.join(', ')}]${input.generated ? `, generated with seed ${seed}` : ''}`,
          ] as const,
      ),
    ])}`;
  const sections: Section[] = [
    section(
      'outputs',
      'Outputs',
      differenceParts(outputs, 'Differences of the outputs'),
      onlyInB.length > 0 && markup`<p>Only B has: ${onlyInB.map((output) => markup`${name(output)} `)}</p>`,
    ),
  ];
  if (intermediates) {
    const { values, firstBeyond, leftOut } = intermediates;
    const first = values.find((value) => value.name === firstBeyond);
    sections.push(
      section(
        'inside',
        'Values inside',
        markup`<p>
          ${first ? `The first beyond the bounds: ${describeDifference(first)}.` : `All ${values.length} values of the same name are within the bounds.`}
        </p>`,
        values.length > 0 && driftChart(values, bounds.maxError),
        table('Differences of the values inside, in graph order', COLUMNS, values),
        leftOut.length > 0 &&
          markup`<details>
            <summary>${leftOut.length} values could not be compared</summary>
            <ul>
              ${leftOut.map((value) => markup`<li>${name(value.name)}: ${value.reason}</li>`)}
            </ul>
          </details>`,
      ),
    );
  }
  return page('Comparison of two models', head, sections);
}
