/** `qkvgemm fuse`: rewrites a file and says what was done. */
import fs from 'node:fs';
import Table from 'cli-table3';
import { defaultOutput, fuseFile, planFile, type FusedFile } from '../fuse_file.js';
import { fuseHtml } from '../report/fuse_report.js';
import { checkReport, writeReport } from '../report/page.js';
import type { FuseOptions } from '../rewrite/options.js';
import type { FuseReport } from '../rewrite/report.js';
import { differenceTable } from './differences.js';
import { EXIT } from './exit.js';
import { ProgressBar } from './progress.js';
import { size } from './size.js';

export interface FuseFlags {
  output?: string;
  dtype: NonNullable<FuseOptions['dtype']>;
  int8Block?: number;
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
  };
  if (flags.report !== undefined) checkReport(flags.report, [input, output]);
  const progress = new ProgressBar(process.stderr);
  let result: FusedFile;
  try {
    result = flags.dryRun
      ? { report: await planFile(input, options, flags.json ? undefined : progress.seen) }
      : await fuseFile(input, output, {
          ...options,
          overwrite: flags.overwrite ?? false,
          verify: flags.verify,
          saveAsExternalData: flags.saveAsExternalData ?? false,
          ...(flags.externalDataFile === undefined ? {} : { externalDataFile: flags.externalDataFile }),
          check: flags.check ?? false,
          ...(flags.maxError === undefined ? {} : { maxError: flags.maxError }),
          ...(flags.dims === undefined ? {} : { dims: flags.dims }),
          ...(flags.json ? {} : { onProgress: progress.seen }),
        });
  } finally {
    progress.stop();
  }
  const { report, data, differences } = result;
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
      ...(data ? { data } : {}),
      ...(differences ? { differences } : {}),
    };
    console.log(JSON.stringify({ ...files, ...report }, undefined, 2));
  } else {
    console.log(describe(report, flags.explain ?? false));
    if (differences) console.log(differenceTable(differences));
    const beside = data ? ` and ${data.file} (${size(data.bytes)})` : '';
    if (written) console.log(`Wrote ${output} (${size(fs.statSync(output).size)})${beside}.`);
    else
      console.log(
        flags.dryRun ? 'Dry run: nothing was written.' : 'Nothing could be fused; nothing was written.',
      );
  }
  return report.fused.length > 0 ? EXIT.ok : EXIT.nothingFused;
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
        site.scaleBlock === undefined ? site.weightType : `${site.weightType}, blocks of ${site.scaleBlock}`,
        site.emitNorm ? 'yes' : 'no',
        site.weightSqnrDb === undefined ? 'exact' : `${site.weightSqnrDb.toFixed(1)} dB`,
      ]);
    }
    lines.push(table.toString());
    if (explain)
      for (const site of report.fused)
        lines.push(
          `  ${site.norm === undefined ? 'no norm' : `norm ${site.norm}`} [${site.rules.norm} + ${site.rules.projection}]: became ${site.node}, which replaces: ${site.replaced.join(', ')}`,
        );
  }
  if (report.refused.length > 0) {
    lines.push('Refused:');
    for (const refusal of report.refused) {
      const at = explain && refusal.at !== undefined ? ` (at ${refusal.at})` : '';
      const rule = explain ? ` [${refusal.rule}]` : '';
      const type = explain ? ` (${refusal.opType})` : '';
      lines.push(`  ${refusal.node}${type}${rule}: ${refusal.reason}${at}`);
    }
  }
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
