/** Charts as SVG, drawn when the report is made; colours are the page's. */
import { scaleBand, scaleLinear, scaleLog } from 'd3-scale';
import { HISTOGRAM_FROM } from '../verify/difference.js';
import { markup, Html, type Content } from './html.js';

const WIDTH = 640;
const HEIGHT = 240;
const MARGIN = { left: 56, right: 12, top: 12, bottom: 36 };
const PLOT = { x0: MARGIN.left, x1: WIDTH - MARGIN.right, y0: HEIGHT - MARGIN.bottom, y1: MARGIN.top };

const n = (value: number): string => value.toFixed(1);

/** 0.001 -> 1e-3; 12000 -> 1.2e4; 12 -> 12. */
function tick(value: number): string {
  if (value === 0) return '0';
  const magnitude = Math.abs(value);
  return magnitude >= 1e4 || magnitude < 1e-2 ? value.toExponential().replace('e+', 'e') : String(value);
}

function figure(caption: Content, label: string, height: number, ...content: readonly Content[]): Html {
  return markup`<figure class="chart" tabindex="0">
    <figcaption><span>${caption}</span></figcaption>
    <svg role="img" aria-label="${label}" viewBox="0 0 ${WIDTH} ${height}">${content}</svg>
  </figure>`;
}

/** An axis with its ticks: positions along it, and their texts. */
function axis(at: 'x' | 'y', ticks: readonly { position: number; text: string }[], title: string): Html {
  const lines = ticks.map(({ position, text }) =>
    at === 'x'
      ? markup`<line
            class="axis"
            x1="${n(position)}"
            x2="${n(position)}"
            y1="${PLOT.y0}"
            y2="${PLOT.y1}"
          /><text class="tick" x="${n(position)}" y="${PLOT.y0 + 14}" text-anchor="middle">${text}</text>`
      : markup`<line
            class="axis"
            x1="${PLOT.x0}"
            x2="${PLOT.x1}"
            y1="${n(position)}"
            y2="${n(position)}"
          /><text class="tick" x="${PLOT.x0 - 6}" y="${n(position + 4)}" text-anchor="end">${text}</text>`,
  );
  const heading =
    at === 'x'
      ? markup`<text class="tick" x="${PLOT.x1}" y="${HEIGHT - 4}" text-anchor="end">${title}</text>`
      : markup`<text class="tick" x="4" y="${PLOT.y1 + 2}">${title}</text>`;
  return markup`${lines}${heading}`;
}

/** How many elements differ by how much, by decades of the largest element. */
export function errorHistogram(name: string, counts: readonly number[]): Html {
  const labels = counts.map((_, i) =>
    i === 0 ? '0' : i === 1 ? `<1e${HISTOGRAM_FROM}` : `1e${HISTOGRAM_FROM + i - 2}`,
  );
  const x = scaleBand(labels, [PLOT.x0, PLOT.x1]).padding(0.15);
  const most = Math.max(1, ...counts);
  // From one half on: a single element can be seen beside millions.
  const y = scaleLog([0.5, most], [PLOT.y0, PLOT.y1]);
  const bars = counts.map((count, i) => {
    if (count === 0) return '';
    const left = x(labels[i] ?? '') ?? 0;
    return markup`<rect
      class="fa"
      x="${n(left)}"
      y="${n(y(count))}"
      width="${n(x.bandwidth())}"
      height="${n(PLOT.y0 - y(count))}"
      ><title>${labels[i]}: ${count} elements</title></rect
    >`;
  });
  const powers = [
    ...new Set(y.ticks(4).filter((value) => value >= 1 && Number.isInteger(Math.log10(value)))),
  ];
  return figure(
    markup`Elements of ${name} by their difference, of the largest element`,
    `Histogram of the differences of ${name}`,
    HEIGHT,
    axis('y', powers.map((value) => ({ position: y(value), text: tick(value) })), 'elements'), // prettier-ignore
    bars,
    labels.map(
      (label) =>
        markup`<text
          class="tick"
          x="${n((x(label) ?? 0) + x.bandwidth() / 2)}"
          y="${PLOT.y0 + 14}"
          text-anchor="middle"
          >${label}</text
        >`,
    ),
    markup`<text class="tick" x="${PLOT.x1}" y="${HEIGHT - 4}" text-anchor="end">from this on</text>`,
  );
}

/** Differences of values in graph order, on a logarithmic axis; those that are equal lie on the floor. */
export function driftChart(values: readonly { name: string; maxError: number }[], bound?: number): Html {
  const finite = values.map(({ maxError }) => maxError).filter((value) => value > 0 && value < Infinity);
  const shown = [...finite, ...(bound !== undefined && bound > 0 ? [bound] : [])];
  const [low, high] = [Math.min(1e-8, ...shown), Math.max(1e-6, ...shown)];
  const y = scaleLog([low / 2, high * 2], [PLOT.y0, PLOT.y1]).clamp(true);
  const x = scaleLinear([0, Math.max(1, values.length - 1)], [PLOT.x0 + 6, PLOT.x1 - 6]);
  const powers = y.ticks(6).filter((value) => Math.abs(Math.log10(value) % 1) < 1e-9);
  const place = (error: number): number => (error === 0 ? PLOT.y0 : y(Math.min(error, high * 2)));
  const points = values.map(
    ({ name, maxError }, i) =>
      markup`<circle class="fa" cx="${n(x(i))}" cy="${n(place(maxError))}" r="3"
        ><title>${name}: ${maxError.toExponential(2)}</title></circle
      >`,
  );
  const line = values.map(({ maxError }, i) => `${i === 0 ? 'M' : 'L'}${n(x(i))} ${n(place(maxError))}`);
  return figure(
    'Largest difference of each value inside, of its largest element, in graph order',
    'Differences of the values inside in graph order',
    HEIGHT,
    axis('y', powers.map((value) => ({ position: y(value), text: tick(value) })), ''), // prettier-ignore
    markup`<path class="line sa" d="${line.join('')}" />`,
    points,
    bound !== undefined && bound > 0
      ? markup`<line class="bound" x1="${PLOT.x0}" x2="${PLOT.x1}" y1="${n(y(bound))}" y2="${n(y(bound))}"
          ><title>bound: ${bound}</title></line
        >`
      : '',
  );
}

export interface LatencySeries {
  name: string;
  /** `counts[i]` runs took from `from * step ** i` microseconds on. */
  from: number;
  step: number;
  counts: readonly number[];
}

const SERIES = ['a', 'b'] as const;

/** Coloured names of one or two models. */
export function legend(names: readonly string[]): Html {
  return markup`${names.map((name, i) => markup`<span><span class="key ${SERIES[i]}"></span> ${name}</span> `)}`;
}

/** The share of runs that took at most so long. */
export function latencyChart(series: readonly LatencySeries[]): Html {
  const ends = series.map(({ from, step, counts }) => from * step ** counts.length);
  const x = scaleLog([Math.min(...series.map(({ from }) => from)), Math.max(...ends)], [PLOT.x0, PLOT.x1]);
  const y = scaleLinear([0, 1], [PLOT.y0, PLOT.y1]);
  const [first = 1, last = 1] = x.domain();
  const wide = last / first > 20;
  const ticks = x.ticks(wide ? 4 : 6).filter((value) => !wide || Number.isInteger(Math.log10(value)));
  const lines = series.map(({ name, from, step, counts }, i) => {
    const total = counts.reduce((sum, count) => sum + count, 0) || 1;
    let below = 0;
    const path = counts.map((count, bin) => {
      below += count;
      return `L${n(x(from * step ** (bin + 1)))} ${n(y(below / total))}`;
    });
    return markup`<path class="line s${SERIES[i]}" d="M${n(x(from))} ${n(y(0))}${path.join('')}"
      ><title>${name}</title></path
    >`;
  });
  return figure(
    markup`Share of runs that took at most so long ${legend(series.map(({ name }) => name))}`,
    'Distribution of the times of single runs',
    HEIGHT,
    axis('y', [0, 0.25, 0.5, 0.75, 1].map((value) => ({ position: y(value), text: `${value * 100} %` })), ''), // prettier-ignore
    axis('x', ticks.map((value) => ({ position: x(value), text: tick(value / 1000) })), 'ms'), // prettier-ignore
    lines,
  );
}

const ROW = 34;
const NAMES = 190;

/** What operators take in each of one or two models: bars beside each other. */
export function opChart(
  ops: readonly { op: string; microseconds: readonly (number | undefined)[] }[],
  models: readonly string[],
): Html {
  const most = Math.max(1e-9, ...ops.flatMap(({ microseconds }) => microseconds.map((value) => value ?? 0)));
  const x = scaleLinear([0, most], [NAMES, WIDTH - 80]);
  const bar = 12;
  const rows = ops.map(({ op, microseconds }, row) => {
    const top = row * ROW + 6;
    const shown = op.length > 24 ? `${op.slice(0, 23)}…` : op;
    return markup`<text x="${NAMES - 8}" y="${top + 17}" text-anchor="end">${shown}<title>${op}</title></text
      >${microseconds.map((value, i) =>
        value === undefined
          ? ''
          : markup`<rect
                class="f${SERIES[i]}"
                x="${NAMES}"
                y="${top + i * (bar + 1)}"
                width="${n(x(value) - NAMES)}"
                height="${bar}"
              /><text class="tick" x="${n(x(value) + 4)}" y="${top + i * (bar + 1) + 10}"
                >${value < 1000 ? `${value.toPrecision(3)} us` : `${(value / 1000).toPrecision(3)} ms`}</text
              >`,
      )}`;
  });
  return figure(
    markup`Time of each operator in one run, profiled ${legend(models)}`,
    'Time of each operator',
    ops.length * ROW + 8,
    rows,
  );
}
