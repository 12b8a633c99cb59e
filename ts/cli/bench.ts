/** `qkvgemm bench`: how fast a model runs, alone or against another. */
import Table from 'cli-table3';
import { Option, type Command } from 'commander';
import { benchModels, type BenchReport, type ModelTiming } from '../bench/bench.js';
import { notOnDevice } from '../bench/profile.js';
import { duration } from '../bench/timing.js';
import { benchHtml } from '../report/bench_report.js';
import { checkReport, writeReport } from '../report/page.js';
import type { FuseOptions, Target } from '../rewrite/options.js';
import { describeBounds } from '../verify/bounds.js';
import { EXIT } from './exit.js';
import {
  addBoundFlags,
  addReportFlag,
  addRunFlags,
  boundOptions,
  parsed,
  parseTargets,
  runOptions,
  type BoundFlags,
  type Done,
  type RunFlags,
} from './flags.js';
import { parseCount } from '../sizes.js';
import { plain } from './fuse.js';
import { ProgressBar } from './progress.js';
import { size } from './size.js';

interface BenchFlags extends RunFlags, BoundFlags {
  against?: string;
  fused?: boolean;
  dtype: NonNullable<FuseOptions['dtype']>;
  targets: Target[];
  verify: boolean;
  memory: boolean;
  seconds?: number;
  tokens?: number;
  report?: string;
  json?: boolean;
}

function parseSeconds(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !(value > 0 && value <= 86400))
    throw new Error('expected a number above 0, of at most 86400.');
  return value;
}

export function addBench(program: Command, done: Done): void {
  const command = program
    .command('bench')
    .description('time a model, or two in turn after their outputs have been compared')
    .argument('<model>', 'model file; it is timed alone unless --against or --fused is given')
    .option('--against <model>', 'the model to compare with')
    .option('--fused', 'fuse the model in a temporary folder and compare with that')
    .addOption(
      new Option('--dtype <type>', 'for --fused: type of the fused weights')
        .choices(['keep', 'fp16', 'bf16', 'int8'])
        .default('keep'),
    )
    .option(
      '--targets <list>',
      'for --fused: projections to fuse; default: qkv',
      (text) => parsed(parseTargets, text),
      ['qkv'] as Target[],
    );
  addReportFlag(addBoundFlags(addRunFlags(command), '5e-3; with --fused as for fuse --check'))
    .option('--seconds <number>', 'of timing, for both models together; default: 5', (text) =>
      parsed(parseSeconds, text),
    )
    .option('--tokens <count>', 'of one run, where the inputs do not tell', (text) =>
      parsed((count) => parseCount(count), text),
    )
    .option('--no-verify', 'do not compare the outputs first')
    .option('--no-memory', 'do not measure the memory, for which each model is loaded once more')
    .option('--json', 'print one JSON object instead of text')
    .action(async (model: string, flags: BenchFlags) => {
      if (flags.against !== undefined && flags.fused)
        command.error('error: --against and --fused exclude each other: give one');
      done(await benchCommand(model, flags));
    });
}

async function benchCommand(model: string, flags: BenchFlags): Promise<number> {
  if (flags.report !== undefined)
    checkReport(flags.report, [model, ...(flags.against === undefined ? [] : [flags.against])]);
  const progress = new ProgressBar(process.stderr);
  const { against, fused, dtype, targets, verify, memory, seconds, tokens, json } = flags;
  let report: BenchReport;
  try {
    report = await benchModels(model, {
      ...runOptions(flags),
      ...boundOptions(flags),
      ...(against === undefined ? {} : { against }),
      ...(fused ? { fused: { dtype, targets } } : {}),
      ...{ verify, memory },
      ...(seconds === undefined ? {} : { seconds }),
      ...(tokens === undefined ? {} : { tokens }),
      ...(json ? {} : { onProgress: progress.seen }),
    });
  } finally {
    progress.stop();
  }
  if (flags.report !== undefined) await writeReport(flags.report, benchHtml(report));
  console.log(json ? JSON.stringify(report, undefined, 2) : describe(report));
  return EXIT.ok;
}

/** A report as text. */
export function describe({
  machine,
  provider,
  devices,
  inputs,
  models,
  ratio,
  verified,
}: BenchReport): string {
  const lines = [machine, `provider ${provider}${devices.length > 0 ? `: ${devices.join('; ')}` : ''}`];
  for (const { name, type, dims } of inputs) lines.push(`input ${name}: ${type} [${dims.join(', ')}]`);
  if (verified)
    lines.push(
      `Verified: no output differs by more than ${describeBounds(verified.bounds)}; the largest difference is ${Math.max(...verified.outputs.map(({ maxError }) => maxError)).toExponential(2)} of the largest element.`,
    );
  else if (models.length > 1) lines.push('Not verified: the outputs were not compared.');
  lines.push(timingTable(models));
  if (ratio)
    lines.push(
      `The second runs ${ratio.value.toFixed(3)} times as fast as the first (95 % interval ${ratio.low.toFixed(3)} to ${ratio.high.toFixed(3)}).`,
    );
  lines.push(opTable(models));
  if (provider === 'cuda') {
    lines.push("Operators' times on CUDA are the host's, of launches; memory is the host's as well.");
    for (const { file, ops } of models) {
      const others = notOnDevice(ops).map(({ op, nodes }) => `${op} ${Math.round(nodes)}`);
      if (others.length > 0) lines.push(`Not on the device, in ${file}: ${others.join(', ')}.`);
    }
  }
  return lines.join('\n');
}

function timingTable(models: readonly ModelTiming[]): string {
  const rate = (value: number | undefined): string => (value === undefined ? '-' : value.toPrecision(4));
  const table = new Table({
    head: [
      'model',
      'runs',
      'P50',
      'P90',
      'P99',
      'runs/s',
      'samples/s',
      'tokens/s',
      'peak memory',
      'of it the model',
    ],
    ...plain,
  });
  for (const { file, runs, p50, p90, p99, memory, ...rates } of models)
    table.push([
      file,
      runs,
      ...[p50, p90, p99].map(duration),
      rate(rates.runsPerSecond),
      rate(rates.samplesPerSecond),
      rate(rates.tokensPerSecond),
      memory ? size(memory.peak) : '-',
      memory ? size(memory.peak - memory.before) : '-',
    ]);
  return table.toString();
}

/** Operators that take less than this of both models' time are summed up. */
const SMALLEST_SHARE = 0.01;

function opTable(models: readonly ModelTiming[]): string {
  const head =
    models.length > 1 ? ['nodes', 'time', 'share', 'nodes', 'time', 'share'] : ['nodes', 'time', 'share'];
  const table = new Table({ head: ['op (profiled)', ...head], ...plain });
  const names = new Set(models.flatMap(({ ops }) => ops.map(({ op }) => op)));
  const of = (op: string): (ModelTiming['ops'][number] | undefined)[] =>
    models.map(({ ops }) => ops.find((own) => own.op === op));
  const large = [...names].filter((op) => of(op).some((own) => (own?.share ?? 0) >= SMALLEST_SHARE));
  for (const op of large)
    table.push([
      op,
      ...of(op).flatMap((own) =>
        own
          ? [String(Math.round(own.nodes)), duration(own.microseconds), `${(own.share * 100).toFixed(1)} %`]
          : ['', '', ''],
      ),
    ]);
  const others = names.size - large.length;
  return `${table.toString()}${others > 0 ? `\n(${others} others of less than 1 %)` : ''}`;
}
