/** How many times as fast as a peer, by rows: one panel for each shape. */
import { scaleLinear, scaleLog } from 'd3-scale';
import { markup, type Html } from '../../ts/report/html.js';
import { at, picture, round } from './svg.js';

export interface Panel {
  title: string;
  rows: readonly number[];
  /** One value for each of `rows`. */
  series: readonly { name: string; values: readonly number[] }[];
}

const WIDTH = 430;
const HEIGHT = 260;
const PLOT = { x0: 40, x1: WIDTH - 16, y0: HEIGHT - 34, y1: 34 };

function panelOf({ title, rows, series }: Panel, most: number): Html {
  const x = scaleLog([rows[0] ?? 1, rows.at(-1) ?? 2], [PLOT.x0 + 8, PLOT.x1]).base(2);
  const y = scaleLinear([0, most], [PLOT.y0, PLOT.y1]);
  const vertical = y.ticks(5).map(
    (value) =>
      markup`<line class="axis" x1="${PLOT.x0}" x2="${PLOT.x1}" y1="${round(y(value))}" y2="${round(y(value))}" />
        <text class="tick" x="${PLOT.x0 - 6}" y="${round(y(value) + 4)}" text-anchor="end">${value}</text>`,
  );
  let free = -Infinity; // numbers that would touch the one before are left out
  const horizontal = rows.map((row) => {
    const wide = String(row).length * 7 + 6;
    if (x(row) - wide / 2 < free) return undefined;
    free = x(row) + wide / 2;
    return markup`<text class="tick" x="${round(x(row))}" y="${PLOT.y0 + 15}" text-anchor="middle">${row}</text>`;
  });
  const lines = series.map(({ name, values }, i) => {
    const points = values.map((value, at) => [round(x(rows[at] ?? 1)), round(y(value))] as const);
    return markup`<path class="line s${i}" d="${points.map(([px, py], at) => `${at === 0 ? 'M' : 'L'}${px} ${py}`).join('')}"><title>${name}</title></path>
      ${points.map(([px, py], at) => markup`<circle class="f${i}" cx="${px}" cy="${py}" r="3"><title>${name}, ${rows[at]} rows: ${values[at]?.toFixed(2)}</title></circle>`)}`;
  });
  return markup`<text class="title" x="${PLOT.x0}" y="20">${title}</text>
    ${vertical}${horizontal}<text class="tick" x="${PLOT.x1}" y="${HEIGHT - 4}" text-anchor="end">rows</text>
    <line class="peer" x1="${PLOT.x0}" x2="${PLOT.x1}" y1="${round(y(1))}" y2="${round(y(1))}" />${lines}`;
}

/** @param heading what is measured against what, and on what. */
export function speedPicture(heading: string, note: string, panels: readonly Panel[]): string {
  const names = panels[0]?.series.map(({ name }) => name) ?? [];
  const most = Math.max(1, ...panels.flatMap(({ series }) => series.flatMap(({ values }) => values))) * 1.05;
  let left = 16;
  const legend = names.map((name, i) => {
    const own = markup`<circle class="f${i}" cx="${left + 4}" cy="66" r="4" /><text x="${left + 14}" y="70">${name}</text>`;
    left += 32 + name.length * 7.3;
    return own;
  });
  const label = `${heading}: ${panels.map(({ title, rows, series }) => `${title}, ${series.map(({ name, values }) => `${name} ${values[0]?.toFixed(2)} at ${rows[0]} rows and ${values.at(-1)?.toFixed(2)} at ${rows.at(-1)}`).join(', ')}`).join('; ')}`;
  return picture(
    16 + panels.length * WIDTH,
    84 + HEIGHT,
    label,
    markup`<text class="title" x="16" y="26">${heading}</text><text class="note" x="16" y="46">${note}</text>${legend}`,
    panels.map((panel, i) => at(8 + i * WIDTH, 80, panelOf(panel, most))),
  );
}
