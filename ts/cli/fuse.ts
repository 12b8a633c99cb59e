/** `qkvgemm fuse`: rewrites a file and says what was done. */
import fs from 'node:fs';
import Table from 'cli-table3';
import { defaultOutput, fuseFile, planFile, type FusedFile } from '../fuse_file.js';
import { fuseHtml } from '../report/fuse_report.js';
import { checkReport, writeReport } from '../report/page.js';
import type { FuseOptions } from '../rewrite/options.js';
import type { FusedSite, FuseReport, Refusal } from '../rewrite/report.js';
import { differenceTable } from './differences.js';
import { EXIT } from './exit.js';
import { ProgressBar } from './progress.js';
import { size } from './size.js';

export interface FuseFlags {
  output?: string;
  dtype: NonNullable<FuseOptions['dtype']>;
  int8Block?: number;
  activationQuant?: boolean;
  fallback: boolean;
  targets: NonNullable<FuseOptions['targets']>;
  verify: boolean;
  dryRun?: boolean;
  explain?: boolean;
  overwrite?: boolean;
  saveAsExternalData?: boolean;
  externalDataFile?: string;
  check?: boolean;
  maxError?: number;
  dims?: Record<string, number>;
  skip?: string[];
  report?: string;
  json?: boolean;
}

export async function fuseCommand(
  input: string,
  given: string | undefined,
  flags: FuseFlags,
): Promise<number> {
  const output = given ?? defaultOutput(input);
  const options = {
    dtype: flags.dtype,
    fallback: flags.fallback,
    targets: flags.targets,
    skip: flags.skip ?? [],
    ...(flags.int8Block === undefined ? {} : { int8Block: flags.int8Block }),
    ...(flags.activationQuant === undefined ? {} : { activationQuant: flags.activationQuant }),
  };
  const external = {
    saveAsExternalData: flags.saveAsExternalData ?? false,
    ...(flags.externalDataFile === undefined ? {} : { externalDataFile: flags.externalDataFile }),
  };
  if (flags.report !== undefined) checkReport(flags.report, [input, output]);
  const progress = new ProgressBar(process.stderr);
  let result: FusedFile;
  try {
    result = flags.dryRun
      ? await planFile(input, output, {
          ...options,
          ...external,
          ...(flags.json ? {} : { onProgress: progress.seen }),
        })
      : await fuseFile(input, output, {
          ...options,
          overwrite: flags.overwrite ?? false,
          verify: flags.verify,
          ...external,
          check: flags.check ?? false,
          ...(flags.maxError === undefined ? {} : { maxError: flags.maxError }),
          ...(flags.dims === undefined ? {} : { dims: flags.dims }),
          ...(flags.json ? {} : { onProgress: progress.seen }),
        });
  } finally {
    progress.stop();
  }
  const { report, data, differences, replaced } = result;
  const written = !flags.dryRun && report.fused.length > 0;
  if (flags.report !== undefined) {
    const files = { input, ...(written ? { output } : {}) };
    const text = fuseHtml({ ...files, report, ...(differences ? { differences } : {}) });
    await writeReport(flags.report, text);
  }
  if (flags.json) {
    const files = {
      input,
      output: written ? output : null,
      ...(data ? { [flags.dryRun ? 'plannedData' : 'data']: data } : {}),
      ...(replaced ? { replaced } : {}),
      ...(differences ? { differences } : {}),
    };
    console.log(JSON.stringify({ ...files, ...report }, undefined, 2));
  } else {
    console.log(describe(report, flags.explain ?? false));
    if (differences) console.log(differenceTable(differences));
    const beside = data ? ` and ${data.file} (${size(data.bytes)})` : '';
    if (written) console.log(`Wrote ${output} (${size(fs.statSync(output).size)})${beside}.`);
    else if (report.fused.length === 0) console.log('Nothing could be fused; nothing was written.');
    else
      console.log(
        `Dry run: nothing was written. It would be ${output} (${size(report.bytesAfter)})${beside}.`,
      );
    for (const name of replaced ?? [])
      console.log(`A run that was killed was about to replace former files; they are now in ${name}.`);
  }
  return report.fused.length > 0 ? EXIT.ok : EXIT.nothingFused;
}

/** Where a node is, if not in the model's own graph. */
const within = ({ scope }: { scope?: string }): string => (scope === undefined ? '' : `, in ${scope}`);

function explainFused({ norm, rules, node, replaced, scope }: FusedSite): string {
  const what = norm === undefined ? 'no norm' : `norm ${norm}`;
  const where = within(scope === undefined ? {} : { scope });
  return `  ${what} [${rules.norm} + ${rules.projection}]${where}: became ${node}, which replaces: ${replaced.join(', ')}`;
}

function explainRefusal(refusal: Refusal): string {
  const at = refusal.at === undefined ? '' : ` (at ${refusal.at})`;
  return `  refused: ${refusal.node} (${refusal.opType}) [${refusal.rule}]${within(refusal)}: ${refusal.reason}${at}`;
}

/** Tables without colours, which a file or a pipe would keep. */
export const plain = { style: { head: [], border: [] } };

/** The report as text: what was fused, what was refused and why, op counts, sizes. */
export function describe(report: FuseReport, explain: boolean): string {
  const lines: string[] = [`Fused ${report.fused.length}, refused ${report.refused.length}.`];
  if (report.fused.length > 0) {
    const table = new Table({
      head: ['fused node', 'rules', 'K', 'splits', 'weights', 'norm output', 'weight SQNR'],
      ...plain,
    });
    for (const site of report.fused) {
      table.push([
        site.node,
        site.normType === 'none' ? site.rules.projection : `${site.rules.norm} + ${site.rules.projection}`,
        site.k,
        site.splits.join(' '),
        [
          site.weightType,
          ...(site.scaleBlock === undefined ? [] : [`blocks of ${site.scaleBlock}`]),
          ...(site.activationQuant ? ['int8 rows'] : []),
        ].join(', '),
        site.emitNorm ? 'yes' : 'no',
        site.weightSqnrDb === undefined ? 'exact' : `${site.weightSqnrDb.toFixed(1)} dB`,
      ]);
    }
    lines.push(table.toString());
  }
  const refusals = report.refused.map((refusal) => ({
    position: refusal.position,
    text: explain ? explainRefusal(refusal) : `  ${refusal.node}${within(refusal)}: ${refusal.reason}`,
  }));
  if (explain) {
    const fused = report.fused.map((site) => ({ position: site.position, text: explainFused(site) }));
    const all = [...fused, ...refusals].sort((a, b) => a.position - b.position);
    if (all.length > 0) lines.push('In graph order:', ...all.map(({ text }) => text));
  } else if (refusals.length > 0) lines.push('Refused:', ...refusals.map(({ text }) => text));
  const ops = [...new Set([...Object.keys(report.opsBefore), ...Object.keys(report.opsAfter)])].sort();
  const changed = ops.filter((op) => report.opsBefore[op] !== report.opsAfter[op]);
  if (changed.length > 0) {
    const table = new Table({ head: ['op', 'before', 'after'], ...plain });
    for (const op of changed) table.push([op, report.opsBefore[op] ?? 0, report.opsAfter[op] ?? 0]);
    const total = (counts: Record<string, number>): number =>
      Object.values(counts).reduce((sum, count) => sum + count, 0);
    table.push(['all ops', total(report.opsBefore), total(report.opsAfter)]);
    lines.push(table.toString());
    lines.push(
      `Size: ${size(report.bytesBefore)} -> ${size(report.bytesAfter)}. Needs IR version ${report.requires.irVersion}, ONNX Runtime >= ${report.requires.onnxruntime}.`,
    );
  }
  return lines.join('\n');
}
