/** What became one node and what did not, with the graph around each; the parts of a page, whoever shows it. */
import { Model } from '../onnx/model.js';
import type { Node } from '../onnx/node.js';
import type { DataSource } from '../onnx/tensor.js';
import { GraphIndex } from '../rewrite/graph_index.js';
import type { FusedSite, FuseReport, Refusal } from '../rewrite/report.js';
import { drawingOf } from './drawing.js';
import { graphFigure } from './graph_svg.js';
import { facts, markup, name, section, table, type Html, type Section } from './html.js';

/** Of the page that has these parts. */
export const FUSE_TITLE = 'Fused model';

/** Sites that are drawn; models of many layers repeat themselves. */
const MOST_FUSED = 40;
const MOST_REFUSED = 40;

/** Nodes of the main graph by what reports call them. */
export class LabelledGraph {
  readonly index: GraphIndex;
  private readonly nodes = new Map<string, Node[]>();

  constructor(model: Uint8Array, source: DataSource) {
    this.index = new GraphIndex(new Model(model), source);
    for (const node of this.index.model.graph.nodes)
      this.nodes.set(node.label, [...(this.nodes.get(node.label) ?? []), node]);
  }

  find(labels: readonly string[]): Node[] {
    return labels.flatMap((label) => this.nodes.get(label) ?? []);
  }
}

export interface FusePartsInput {
  /** Names of the files; without an output nothing was made. */
  input: string;
  output?: string;
  before: LabelledGraph;
  after?: LabelledGraph;
  report: FuseReport;
}

/** Verdict and facts, and the sections below: fused sites before and after, refusals with their place, operator counts. */
export function fuseParts({ input, output, before, after, report }: FusePartsInput): {
  head: Html;
  sections: Section[];
} {
  const { fused, refused } = report;
  const head = markup`<p class="verdict${fused.length === 0 ? ' bad' : ''}">
      ${fused.length} fused, ${refused.length} refused.
    </p>
    ${facts([
      ['input', name(input)],
      ['output', output === undefined ? 'nothing was written' : name(output)],
      ['size', `${report.bytesBefore} bytes before, ${report.bytesAfter} after (the model file)`],
      [
        'needs',
        `IR version ${report.requires.irVersion}, ONNX Runtime ${report.requires.onnxruntime === 'any' ? 'of any release' : `${report.requires.onnxruntime} or newer`}`,
      ],
      ['function bodies', report.functions.join(', ') || 'none'],
    ])}`;
  return {
    head,
    sections: [
      section('fused', 'Fused', ...fusedParts(fused, before, after)),
      section('refused', 'Refused', ...refusedParts(refused, before)),
      section('operators', 'Operators', opTable(report)),
    ],
  };
}

function fusedParts(
  fused: readonly FusedSite[],
  before: LabelledGraph,
  after: LabelledGraph | undefined,
): Html[] {
  if (fused.length === 0) return [markup`<p>Nothing could be fused.</p>`];
  const parts = fused.slice(0, MOST_FUSED).map((site, i) => {
    const replaced = before.find(site.replaced);
    const made = after?.find([site.node]) ?? [];
    const { normType, rules, k, splits, weightType, scaleBlock, weightSqnrDb, emitNorm, targets } = site;
    return markup`<details class="site"${i < 2 ? open : ''}>
      <summary>${name(site.node, 100)}</summary>
      ${facts([
        ['norm', `${normType}${site.norm === undefined ? '' : ` at ${site.norm}`}`],
        ['rules', `${rules.norm} + ${rules.projection}`],
        ['K and columns', `${k}; ${splits.join(', ')}`],
        [
          'weights',
          `${weightType}${scaleBlock === undefined ? '' : `, blocks of ${scaleBlock}`}; ${weightSqnrDb === undefined ? 'exact' : `${weightSqnrDb.toFixed(1)} dB`}`,
        ],
        ['norm output', emitNorm ? 'yes' : 'no'],
        ['targets', targets.join(', ')],
      ])}
      <div class="pair">
        ${graphFigure('Before', drawingOf(before.index, replaced))}${made.length > 0 && after ? graphFigure('After', drawingOf(after.index, made)) : ''}
      </div>
    </details>`;
  });
  const more = fused.length - MOST_FUSED;
  return [...parts, ...(more > 0 ? [markup`<p>${more} more are not drawn.</p>`] : [])];
}

const open = markup` open`;

function refusedParts(refused: readonly Refusal[], before: LabelledGraph): Html[] {
  if (refused.length === 0) return [markup`<p>Nothing that looks like a norm was refused.</p>`];
  const list = table(
    'What stays as it was, and why',
    [
      { head: 'node', cell: ({ node }: Refusal) => name(node) },
      { head: 'op', cell: ({ opType }) => opType },
      { head: 'nearest rule', cell: ({ rule }) => rule },
      {
        head: 'reason',
        cell: ({ reason, at }) => markup`${reason}${at === undefined ? '' : markup` (at ${name(at)})`}`,
      },
    ],
    refused,
  );
  const drawn = refused.slice(0, MOST_REFUSED).map(({ node, at, reason }) => {
    const around = before.find([...new Set([node, ...(at === undefined ? [] : [at])])]);
    const [marked] = before.find([at ?? node]);
    if (around.length === 0) return markup``;
    return markup`<details class="site">
      <summary>${name(node, 100)}: ${reason}</summary>
      ${graphFigure('Around it', drawingOf(before.index, around, marked))}
    </details>`;
  });
  const more = refused.length - MOST_REFUSED;
  return [list, ...drawn, ...(more > 0 ? [markup`<p>${more} more are not drawn.</p>`] : [])];
}

function opTable({ opsBefore, opsAfter }: FuseReport): Html {
  const ops = [...new Set([...Object.keys(opsBefore), ...Object.keys(opsAfter)])].sort();
  const total = (counts: Record<string, number>): number =>
    Object.values(counts).reduce((sum, count) => sum + count, 0);
  const rows = [
    ...ops.map((op) => ({ op, before: opsBefore[op] ?? 0, after: opsAfter[op] ?? 0 })),
    { op: 'all', before: total(opsBefore), after: total(opsAfter) },
  ];
  return table(
    'Nodes of the main graph',
    [
      { head: 'op', cell: ({ op }) => name(op) },
      { head: 'before', number: true, cell: ({ before }) => before },
      { head: 'after', number: true, cell: ({ after }) => after },
      {
        head: 'change',
        number: true,
        cell: ({ before, after }) =>
          after === before ? '' : `${after > before ? '+' : ''}${after - before}`,
      },
    ],
    rows,
  );
}
