/** A drawing as SVG, laid out when the report is made. */
import * as dagre from '@dagrejs/dagre';
import type { Drawing, DrawnNode } from './drawing.js';
import { markup, type Html } from './html.js';

interface Placed {
  x: number;
  y: number;
  width: number;
  height: number;
}
interface Laid {
  nodes: Placed[];
  edges: { points: { x: number; y: number }[]; label: { x: number; y: number } | undefined }[];
  width: number;
  height: number;
}

/** What is used of dagre: its own declarations do not resolve under Node's module rules. */
interface LayoutGraph {
  setGraph(options: object): void;
  setNode(name: string, size: object): void;
  setEdge(from: string, to: string, label: object, name: string): void;
  graph(): { width?: number; height?: number };
  node(name: string): Placed;
  edge(
    from: string,
    to: string,
    name: string,
  ): { points: { x: number; y: number }[]; x?: number; y?: number };
}
const { graphlib, layout: place } = dagre as unknown as {
  graphlib: { Graph: new (options: object) => LayoutGraph };
  layout: (graph: LayoutGraph) => void;
};

const CHARACTER = 7.3; // width of one, at 12 pixels
const LINE = 16;
const LONGEST = 38;

/** The beginning and the end of a text that is too long. */
function short(text: string, most = LONGEST): string {
  const clean = text.replace(/\s+/g, ' ');
  if (clean.length <= most) return clean;
  const end = Math.floor(most / 2) - 1;
  return `${clean.slice(0, end)}…${clean.slice(-end)}`;
}

function linesOf({ op, name, constants }: DrawnNode): { text: string; cls: string; full: string }[] {
  return [
    { text: short(op), cls: 'op', full: op },
    ...(name === '' ? [] : [{ text: short(name), cls: '', full: name }]),
    ...constants.map((full) => ({ text: short(full, 44), cls: 'more', full })),
  ];
}

/** dagre: layers from top to bottom, few crossings. */
function layout({ nodes, edges }: Drawing): Laid {
  const graph = new graphlib.Graph({ multigraph: true });
  graph.setGraph({ rankdir: 'TB', nodesep: 24, ranksep: 36, marginx: 8, marginy: 8 });
  nodes.forEach((node, i) => {
    const lines = linesOf(node);
    const longest = Math.max(
      ...lines.map(({ text, cls }) => text.length * (cls === 'more' ? 6.2 : CHARACTER)),
    );
    graph.setNode(String(i), { width: longest + 20, height: lines.length * LINE + 12 });
  });
  edges.forEach(({ from, to, value }, i) => {
    const label = { width: short(value, 30).length * 6.2, height: 12, labelpos: 'c' };
    graph.setEdge(String(from), String(to), label, String(i));
  });
  place(graph);
  const { width = 0, height = 0 } = graph.graph();
  return {
    nodes: nodes.map((_, i) => graph.node(String(i))),
    edges: edges.map(({ from, to }, i) => {
      const { points, x, y } = graph.edge(String(from), String(to), String(i));
      return { points, label: x === undefined || y === undefined ? undefined : { x, y } };
    }),
    width: Math.max(1, width),
    height: Math.max(1, height),
  };
}

const round = (value: number): string => value.toFixed(1);

/** A drawing that is laid out: elements of an SVG, and its size in pixels. */
export interface DrawnGraph {
  content: Html;
  width: number;
  height: number;
}

export function drawGraph(drawing: Drawing): DrawnGraph {
  const laid = layout(drawing);
  const edges = laid.edges.map(({ points, label }, i) => {
    const value = drawing.edges[i]?.value ?? '';
    const path = points.map(({ x, y }, at) => `${at === 0 ? 'M' : 'L'}${round(x)} ${round(y)}`).join('');
    const [end, before] = [points.at(-1), points.at(-2)];
    return markup`<g class="edge"
      ><title>${value}</title><path d="${path}" />${
        end && before ? markup`<path class="arrow" d="${arrow(before, end)}" />` : ''
      }${label ? markup`<text x="${round(label.x)}" y="${round(label.y + 4)}" text-anchor="middle">${short(value, 30)}</text>` : ''}</g
    >`;
  });
  const nodes = laid.nodes.map(({ x, y, width, height }, i) => {
    const node = drawing.nodes[i] as DrawnNode;
    const left = x - width / 2;
    const top = y - height / 2;
    return markup`<g class="node ${node.kind}"
      ><title>${[node.op, node.name, ...node.constants].join('\n')}</title
      ><rect
        x="${round(left)}"
        y="${round(top)}"
        width="${round(width)}"
        height="${round(height)}"
        rx="${node.kind === 'value' ? 12 : 4}"
      />${linesOf(node).map(
        ({ text, cls }, line) =>
          markup`<text class="${cls}" x="${round(left + 10)}" y="${round(top + 18 + line * LINE)}"
            >${text}</text
          >`,
      )}</g
    >`;
  });
  return { content: markup`${edges}${nodes}`, width: laid.width, height: laid.height };
}

/** A figure with the drawing, its caption and the buttons that zoom it. */
export function graphFigure(caption: string, drawing: Drawing): Html {
  const { content, width, height } = drawGraph(drawing);
  const left = drawing.hidden > 0 ? ` (${drawing.hidden} neighbours left out)` : '';
  return markup`<figure>
    <figcaption>
      <span>${caption}${left}</span
      ><span class="tools" hidden
        ><button type="button" aria-label="larger">+</button
        ><button type="button" aria-label="smaller">−</button
        ><button type="button" aria-label="all of it">⤢</button></span
      >
    </figcaption>
    <svg
      class="graph"
      tabindex="0"
      role="img"
      preserveAspectRatio="xMidYMin meet"
      aria-label="${caption}: ${drawing.nodes.map(({ op }) => op).join(', ')}"
      viewBox="0 0 ${round(width)} ${round(height)}"
    >
      ${content}
    </svg>
  </figure>`;
}

function arrow(from: { x: number; y: number }, to: { x: number; y: number }): string {
  const angle = Math.atan2(to.y - from.y, to.x - from.x);
  const corner = (turn: number): string =>
    `${round(to.x - 8 * Math.cos(angle + turn))} ${round(to.y - 8 * Math.sin(angle + turn))}`;
  return `M${round(to.x)} ${round(to.y)}L${corner(0.4)}L${corner(-0.4)}Z`;
}
