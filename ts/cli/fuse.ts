/** `qkvgemm fuse`: rewrites a file and says what was done. */
import fs from 'node:fs';
import Table from 'cli-table3';
import { defaultOutput, fuseFile, fusePath } from '../fuse_file.js';
import type { FuseOptions } from '../rewrite/options.js';
import type { FuseReport } from '../rewrite/report.js';
import { EXIT } from './exit.js';

export interface FuseFlags {
  output?: string;
  dtype: NonNullable<FuseOptions['dtype']>;
  int8Block?: number;
  fallback: boolean;
  verify: boolean;
  dryRun?: boolean;
  explain?: boolean;
  overwrite?: boolean;
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
    ...(flags.int8Block === undefined ? {} : { int8Block: flags.int8Block }),
  };
  const { report } = flags.dryRun
    ? fusePath(input, options)
    : await fuseFile(input, output, {
        ...options,
        overwrite: flags.overwrite ?? false,
        verify: flags.verify,
      });
  const written = !flags.dryRun && report.fused.length > 0;
  if (flags.json) {
    console.log(JSON.stringify({ input, output: written ? output : null, ...report }, undefined, 2));
  } else {
    console.log(describe(report, flags.explain ?? false));
    if (written) console.log(`Wrote ${output} (${size(fs.statSync(output).size)}).`);
    else
      console.log(
        flags.dryRun ? 'Dry run: nothing was written.' : 'Nothing could be fused; nothing was written.',
      );
  }
  return report.fused.length > 0 ? EXIT.ok : EXIT.nothingFused;
}

/** 1234567 -> "1.2 MB". */
export function size(bytes: number): string {
  const units = ['B', 'kB', 'MB', 'GB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${units[unit]}`;
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
        `${site.rules.norm} + ${site.rules.projection}`,
        site.k,
        site.splits.join(' '),
        site.scaleBlock === undefined ? site.weightType : `${site.weightType}, blocks of ${site.scaleBlock}`,
        site.emitNorm ? 'yes' : 'no',
        site.weightSqnrDb === undefined ? 'exact' : `${site.weightSqnrDb.toFixed(1)} dB`,
      ]);
    }
    lines.push(table.toString());
    if (explain)
      for (const site of report.fused) lines.push(`  ${site.node} replaces: ${site.replaced.join(', ')}`);
  }
  if (report.refused.length > 0) {
    lines.push('Refused:');
    for (const refusal of report.refused) {
      const at = explain && refusal.at !== undefined ? ` (at ${refusal.at})` : '';
      const rule = explain ? ` [${refusal.rule}]` : '';
      lines.push(`  ${refusal.node}${rule}: ${refusal.reason}${at}`);
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
