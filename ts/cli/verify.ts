/** `qkvgemm verify`: two models on the same inputs. */
import { Option, type Command } from 'commander';
import { checkReport, writeReport } from '../report/page.js';
import { verifyHtml } from '../report/verify_report.js';
import { describeBounds, describeDifference } from '../verify/bounds.js';
import { verifyModels, type VerifyReport } from '../verify/verify.js';
import { differenceTable } from './differences.js';
import { EXIT } from './exit.js';
import {
  addBoundFlags,
  addReportFlag,
  addRunFlags,
  boundOptions,
  runOptions,
  type BoundFlags,
  type Done,
  type RunFlags,
} from './flags.js';
import { ProgressBar } from './progress.js';

interface VerifyFlags extends RunFlags, BoundFlags {
  intermediates?: boolean;
  library: 'both' | 'a' | 'b' | 'none';
  report?: string;
  json?: boolean;
}

export function addVerify(program: Command, done: Done): void {
  const command = program
    .command('verify')
    .description('run two models on the same inputs and compare their outputs; exit code 4 where they differ')
    .argument('<a>', 'the reference: run without graph optimisations')
    .argument('<b>', 'run as sessions run it by default');
  addReportFlag(addBoundFlags(addRunFlags(command)))
    .option('--intermediates', 'compare the values inside as well that both graphs have under one name')
    .addOption(
      new Option('--library <models>', "which of them are loaded with this package's library")
        .choices(['both', 'a', 'b', 'none'])
        .default('both'),
    )
    .option('--json', 'print one JSON object instead of text')
    .action(async (a: string, b: string, flags: VerifyFlags) => done(await verifyCommand(a, b, flags)));
}

async function verifyCommand(a: string, b: string, flags: VerifyFlags): Promise<number> {
  if (flags.report !== undefined) checkReport(flags.report, [a, b]);
  const progress = new ProgressBar(process.stderr);
  let report: VerifyReport;
  try {
    report = await verifyModels(a, b, {
      ...runOptions(flags),
      ...boundOptions(flags),
      intermediates: flags.intermediates ?? false,
      library: flags.library,
      ...(flags.json ? {} : { onProgress: progress.seen }),
    });
  } finally {
    progress.stop();
  }
  if (flags.report !== undefined) await writeReport(flags.report, verifyHtml(report));
  console.log(flags.json ? JSON.stringify(report, undefined, 2) : describe(report));
  return report.equal ? EXIT.ok : EXIT.different;
}

function describe({
  inputs,
  seed,
  outputs,
  onlyInB,
  intermediates,
  equal,
  bounds,
  a,
  b,
}: VerifyReport): string {
  const lines = [`A: ${a}`, `B: ${b}`];
  for (const { name, type, dims, generated } of inputs)
    lines.push(
      `input ${name}: ${type} [${dims.join(', ')}]${generated ? `, generated with seed ${seed}` : ''}`,
    );
  lines.push(differenceTable(outputs));
  if (onlyInB.length > 0) lines.push(`Only B has the outputs ${onlyInB.join(', ')}.`);
  for (const { name, notFinite } of outputs)
    if (notFinite.a + notFinite.b > 0)
      lines.push(
        `'${name}' holds NaN or Inf: ${notFinite.a} in A, ${notFinite.b} in B, ${notFinite.different} not the same.`,
      );
  if (intermediates) {
    const { values, firstBeyond, leftOut } = intermediates;
    lines.push(
      values.length > 0
        ? differenceTable(values, 'value inside')
        : 'No value inside has the same name in both.',
    );
    for (const { name, reason } of leftOut) lines.push(`'${name}' is left out: ${reason}`);
    const first = values.find(({ name }) => name === firstBeyond);
    if (first) lines.push(`The first value inside beyond the bounds: ${describeDifference(first)}.`);
  }
  const beyond = outputs.filter(({ within }) => !within);
  lines.push(
    equal
      ? `Equal: no output differs by more than ${describeBounds(bounds)}.`
      : `Different: ${beyond.map(describeDifference).join('; ')}. Allowed are ${describeBounds(bounds)}.`,
  );
  return lines.join('\n');
}
