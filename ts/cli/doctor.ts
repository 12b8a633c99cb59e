/** `qkvgemm doctor`: what this machine has, what is missing, and what to do. */
import type { Command } from 'commander';
import { diagnose, type Diagnosis } from '../doctor/doctor.js';
import { EXIT } from './exit.js';
import type { Done } from './flags.js';

export function addDoctor(program: Command, done: Done): void {
  program
    .command('doctor')
    .description(
      'check platform, processor, GPU, ONNX Runtime and library, and say what to do about problems',
    )
    .option('--json', 'print one JSON object instead of text')
    .action(async ({ json }: { json?: boolean }) => {
      const diagnosis = await diagnose();
      console.log(json ? JSON.stringify(diagnosis, undefined, 2) : describe(diagnosis));
      done(diagnosis.ok ? EXIT.ok : EXIT.failed);
    });
}

function describe({ checks, ok }: Diagnosis): string {
  const width = Math.max(...checks.map(({ name }) => name.length));
  const lines = checks.flatMap(({ name, status, found, action }) => [
    `${status.padEnd('problem'.length)}  ${name.padEnd(width)}  ${found}`,
    ...(action === undefined ? [] : [`${' '.repeat(9 + width + 2)}-> ${action}`]),
  ]);
  const problems = checks.filter(({ status }) => status === 'problem').length;
  lines.push(ok ? 'All that is needed is there.' : `${problems} of ${checks.length} checks found a problem.`);
  return lines.join('\n');
}
