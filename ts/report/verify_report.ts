/** The report of `verify`. */
import { describeBounds, describeDifference } from '../verify/bounds.js';
import type { VerifyReport } from '../verify/verify.js';
import { driftChart } from './charts.js';
import { differenceParts, differenceTable } from './difference_parts.js';
import { facts, markup, name, section, type Section } from './html.js';
import { page } from './page.js';

/**
 * A page with the verdict, each output's difference and histogram, and the values inside where they were compared.
 *
 * @param report what `verifyModels` gave.
 * @returns HTML that needs nothing else and loads nothing.
 */
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
        differenceTable('Differences of the values inside, in graph order', values),
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
