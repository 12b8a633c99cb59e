/** Started with QKVGEMM_ISA set: runs every case of op_cases.ts and prints what was wrong, as JSON. */
import { qkvGemmModel, randomOperands } from '../../models/qkv_gemm.js';
import { instructionSet } from '../../ts/session/addon.js';
import { withQkvGemm } from '../../ts/session/index.js';
import { SECTIONS } from './op_cases.js';
import { mismatches } from '../../models/qkv_gemm_reference.js';
import { cpuReference } from './cpu_reference.js';
import { quiet } from './run.js';
import { runOp } from './run_op.js';

export interface IsaReport {
  isa: string;
  cases: number;
  wrong: string[];
}

const report: IsaReport = { isa: instructionSet(), cases: 0, wrong: [] };
for (const cases of Object.values(SECTIONS)) {
  for (const [name, spec] of Object.entries(cases)) {
    report.cases++;
    const operands = randomOperands(spec);
    try {
      const actual = await runOp(qkvGemmModel(spec, operands), withQkvGemm(quiet));
      report.wrong.push(
        ...mismatches(cpuReference(spec, operands), actual).map((text) => `${name}: ${text}`),
      );
    } catch (error) {
      report.wrong.push(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
}
console.log(JSON.stringify(report));
