/** A picture in a file of its own, in the colours of the reports: readable on light and dark grounds. */
import { Html, markup, type Content } from '../../ts/report/html.js';
import { COLOURS, DRAWN } from '../../ts/report/style.js';

/** Lines of the pictures alone: seven series, and what is written beside them. */
const OWN = `
.page { fill: var(--page); } .title { font-weight: 700; } .note { fill: var(--soft); font-size: 11px; }
.s0 { stroke: var(--a); } .s1 { stroke: var(--b); } .s2 { stroke: var(--good); } .s3 { stroke: var(--warn); } .s4 { stroke: var(--soft); }
.s5 { stroke: var(--bad); } .s6 { stroke: var(--text); }
.f0 { fill: var(--a); } .f1 { fill: var(--b); } .f2 { fill: var(--good); } .f3 { fill: var(--warn); } .f4 { fill: var(--soft); }
.f5 { fill: var(--bad); } .f6 { fill: var(--text); }
.peer { stroke: var(--text); stroke-dasharray: 5 4; }
`;

export const round = (value: number): string => String(Math.round(value * 10) / 10);

/** @param label says in words what there is to see. */
export function picture(
  width: number,
  height: number,
  label: string,
  ...content: readonly Content[]
): string {
  const [w, h] = [Math.ceil(width), Math.ceil(height)];
  const { text } =
    markup`<svg xmlns="http://www.w3.org/2000/svg" width="${w}" height="${h}" viewBox="0 0 ${w} ${h}" role="img" aria-label="${label}">
    <style>${new Html(COLOURS + DRAWN + OWN)}</style>
    <rect class="page" width="${w}" height="${h}" rx="8" />
    ${content}
  </svg>`;
  return `${text.replace(/\s*\n\s*/g, '\n')}\n`;
}

/** Something drawn, moved. */
export const at = (x: number, y: number, content: Content): Html =>
  markup`<g transform="translate(${round(x)} ${round(y)})">${content}</g>`;
