/** A fused site of a model, before and after, as reports draw it. */
import path from 'node:path';
import { FolderSource } from '../../ts/external_data.js';
import { readModelFile } from '../../ts/files.js';
import { fuse } from '../../ts/index.js';
import { drawingOf, type Drawing } from '../../ts/report/drawing.js';
import { LabelledGraph } from '../../ts/report/fuse_parts.js';
import { drawGraph } from '../../ts/report/graph_svg.js';
import { markup } from '../../ts/report/html.js';
import { at, picture } from './svg.js';

const GAP = 48;
const TOP = 64;

/** Names of exporters' values say nothing to a reader: nodes and edges without them. */
const plain = (drawing: Drawing): Drawing => ({
  ...drawing,
  nodes: drawing.nodes.map((node) => ({
    ...node,
    name: node.kind === 'value' ? node.name : '',
    constants: node.constants.flatMap((line) => /: (\w+ \[[\d, ]*\])$/.exec(line)?.[1] ?? []),
  })),
  edges: drawing.edges.map((edge) => ({ ...edge, value: '' })),
});

/** The first site that is fused in a model file. */
export async function sitePicture(file: string, title: string): Promise<string> {
  const source = new FolderSource(path.dirname(file));
  const { model, report } = await fuse(file);
  const [site] = report.fused;
  if (!site) throw new Error(`Nothing in '${file}' is fused.`);
  const graphs = [new LabelledGraph(readModelFile(file), source), new LabelledGraph(model, source)] as const;
  const [before, after] = [
    drawGraph(plain(drawingOf(graphs[0].index, graphs[0].find(site.replaced)))),
    drawGraph(plain(drawingOf(graphs[1].index, graphs[1].find([site.node])))),
  ];
  const [wide, high] = [before.width + GAP + after.width, Math.max(before.height, after.height)];
  const right = 16 + before.width + GAP;
  return picture(
    wide + 32,
    high + TOP + 16,
    `${title}: ${site.replaced.length} nodes before, one com.deepspeed.QKVGemm node after`,
    markup`<text class="title" x="16" y="26">${title}</text>
      <text class="note" x="16" y="48">before: ${site.replaced.length} nodes</text>
      <text class="note" x="${Math.round(right)}" y="48">after: one</text>`,
    at(16, TOP, before.content),
    at(right, TOP + Math.max(0, (before.height - after.height) / 2), after.content),
  );
}
