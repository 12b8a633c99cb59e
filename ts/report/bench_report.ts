/** The report of `bench`. */
import type { BenchReport, ModelTiming } from '../bench/bench.js';
import { notOnDevice } from '../bench/profile.js';
import { duration } from '../bench/timing.js';
import { describeBounds } from '../verify/bounds.js';
import { latencyChart, opChart } from './charts.js';
import { facts, markup, name, section, table, type Column } from './html.js';
import { page } from './page.js';
import { differenceParts } from './difference_parts.js';

const rate = (value: number | undefined): string => (value === undefined ? '' : value.toPrecision(4));
const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`;

const COLUMNS: Column<ModelTiming>[] = [
  { head: 'model', cell: ({ file }) => name(file) },
  { head: 'runs', number: true, cell: ({ runs }) => runs },
  { head: 'P50', number: true, cell: ({ p50 }) => duration(p50) },
  { head: 'P90', number: true, cell: ({ p90 }) => duration(p90) },
  { head: 'P99', number: true, cell: ({ p99 }) => duration(p99) },
  { head: 'runs/s', number: true, cell: (m) => rate(m.runsPerSecond) },
  { head: 'samples/s', number: true, cell: (m) => rate(m.samplesPerSecond) },
  { head: 'tokens/s', number: true, cell: (m) => rate(m.tokensPerSecond) },
  { head: 'peak memory', number: true, cell: ({ memory }) => memory && megabytes(memory.peak) },
  { head: 'of it the model', number: true, cell: ({ memory: m }) => m && megabytes(m.peak - m.before) },
];

const elsewhere = (ops: ModelTiming['ops']): string =>
  notOnDevice(ops)
    .map(({ op, nodes }) => `${op} ${Math.round(nodes)}`)
    .join(', ') || 'nothing';

/** Operators in the chart; the table has all. */
const MOST_OPS = 16;

/**
 * A page with times, their distribution, the share of each operator, and the check of the outputs.
 *
 * @param report what `benchModels` gave.
 * @returns HTML that needs nothing else and loads nothing.
 */
export function benchHtml(report: BenchReport): string {
  const { machine, provider, devices, inputs, models, ratio, verified } = report;
  const files = models.map(({ file }) => file);
  const head = markup`${
    ratio &&
    markup`<p class="verdict${ratio.high < 1 ? ' bad' : ''}">
      The second runs ${ratio.value.toFixed(3)} times as fast as the first (95 % interval
      ${ratio.low.toFixed(3)} to ${ratio.high.toFixed(3)}).
    </p>`
  }${facts([
    ['machine', machine],
    ['provider', `${provider}${devices.length > 0 ? `: ${devices.join('; ')}` : ''}`],
    ...(provider === 'cuda'
      ? models.map(({ file, ops }) => [`not on the device, in ${file}`, elsewhere(ops)] as const)
      : []),
    ...inputs.map((input) => [`input ${input.name}`, `${input.type} [${input.dims.join(', ')}]`] as const),
  ])}`;
  const names = [...new Set(models.flatMap(({ ops }) => ops.map(({ op }) => op)))];
  const ops = names
    .map((op) => ({ op, own: models.map((model) => model.ops.find((candidate) => candidate.op === op)) }))
    .sort((x, y) => most(y.own) - most(x.own));
  const cells = models.flatMap((_, i): Column<(typeof ops)[number]>[] => [
    { head: `nodes ${i + 1}`, number: true, cell: ({ own }) => own[i] && Math.round(own[i].nodes) },
    { head: `time ${i + 1}`, number: true, cell: ({ own }) => own[i] && duration(own[i].microseconds) },
    {
      head: `share ${i + 1}`,
      number: true,
      cell: ({ own }) => own[i] && `${(own[i].share * 100).toFixed(1)} %`,
    },
  ]);
  return page('Timing of models', head, [
    section(
      'times',
      'Times',
      table('Times of single runs and rates', COLUMNS, models),
      latencyChart(models.map(({ file, histogram }) => ({ name: file, ...histogram }))),
    ),
    section(
      'operators',
      'Operators',
      opChart(
        ops.slice(0, MOST_OPS).map(({ op, own }) => ({ op, microseconds: own.map((o) => o?.microseconds) })),
        files,
      ),
      table('Operators in one run', [{ head: 'op', cell: ({ op }) => name(op) }, ...cells], ops),
    ),
    ...(models.length > 1
      ? [
          section(
            'check',
            'Check of the outputs',
            verified
              ? markup`<p>No output differs by more than ${describeBounds(verified.bounds)}.</p>
                  ${differenceParts(verified.outputs, 'Differences of the outputs')}`
              : markup`<p class="bad">The outputs were not compared.</p>`,
          ),
        ]
      : []),
  ]);
}

const most = (own: readonly ({ microseconds: number } | undefined)[]): number =>
  Math.max(...own.map((share) => share?.microseconds ?? 0));
