/** The op as ONNX Runtime runs it, against its contract: every form, within the bounds of test/support/reference.ts. */
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { qkvGemmModel, randomOperands, type QkvGemmSpec } from '../models/qkv_gemm.js';
import { DataType } from '../ts/onnx/tensor.js';
import { withQkvGemm } from '../ts/session/index.js';
import { SECTIONS } from './support/op_cases.js';
import type { IsaReport } from './support/op_isa_child.js';
import { root } from './support/ort_versions.js';
import { mismatches } from '../models/qkv_gemm_reference.js';
import { cpuReference, INSTRUCTION_SETS } from './support/cpu_reference.js';
import { quiet } from './support/run.js';
import { runOp, runSession } from './support/run_op.js';

describe('the contract of com.deepspeed.QKVGemm', () => {
  for (const [section, cases] of Object.entries(SECTIONS)) {
    describe(section, () => {
      for (const [name, spec] of Object.entries(cases)) {
        it(name, async () => {
          const operands = randomOperands(spec);
          const actual = await runOp(qkvGemmModel(spec, operands), withQkvGemm(quiet));
          expect(mismatches(cpuReference(spec, operands), actual)).to.deep.equal([]);
        });
      }
    });
  }

  describe('instruction sets', () => {
    const total = Object.values(SECTIONS).reduce((sum, cases) => sum + Object.keys(cases).length, 0);
    for (const isa of INSTRUCTION_SETS) {
      it(isa, function () {
        const script = path.join(root, 'test', 'support', 'op_isa_child.ts');
        const { status, stdout, stderr } = spawnSync(process.execPath, ['--import', 'tsx', script], {
          cwd: root,
          encoding: 'utf8',
          env: { ...process.env, QKVGEMM_ISA: isa },
        });
        if (stderr.includes('which this processor lacks')) {
          console.log(`      (this processor lacks ${isa}: not tested)`);
          this.skip();
        }
        expect(status, stderr).to.equal(0);
        const report = JSON.parse(stdout) as IsaReport;
        expect(report).to.deep.equal({ isa, cases: total, wrong: [] });
      });
    }
  });

  describe('sessions', () => {
    const spec: QkvGemmSpec = {
      dims: [2, 3, 40],
      n: 44,
      splits: [20, 12, 12],
      type: DataType.float16,
      weightType: DataType.int8,
      scale: { shape: [44] },
      gamma: DataType.float,
      beta: DataType.float,
      emitNorm: true,
    };
    const operands = randomOperands(spec);

    it('infer types and shapes, known and symbolic', async () => {
      const inferred = async (inputDims?: (number | string)[]): Promise<Record<string, unknown>> => {
        const { bytes } = qkvGemmModel(spec, operands, inputDims ? { inputDims } : {});
        const session = await ort.InferenceSession.create(bytes, withQkvGemm(quiet));
        const found = session.outputMetadata.map((output) => [
          output.name,
          output.isTensor ? [output.type, ...output.shape] : [],
        ]);
        await session.release();
        return Object.fromEntries(found) as Record<string, unknown>;
      };
      const shapes = (...lead: (number | string)[]): Record<string, unknown> => ({
        y: ['float16', ...lead, 20],
        norm: ['float16', ...lead, 40],
        y2: ['float16', ...lead, 12],
        y3: ['float16', ...lead, 12],
      });
      expect(await inferred()).to.deep.equal(shapes(2, 3));
      expect(await inferred(['batch', 'sequence', 40])).to.deep.equal(shapes('batch', 'sequence'));
      // K is the weight's to say, too.
      expect(await inferred(['batch', 3, 'depth'])).to.deep.equal(shapes('batch', 3));
    });

    it('take any number of rows, one run after the other and at once', async () => {
      const { bytes } = qkvGemmModel(spec, operands, { inputDims: ['batch', 'sequence', 40] });
      const session = await ort.InferenceSession.create(bytes, withQkvGemm(quiet));
      const runs = [[1, 1], [5, 9], [0, 4], [1, 97], [2, 3], [1, 700], [1, 1]].map((lead, seed) => {
        const form = { ...spec, dims: [...lead, 40] };
        const fed = { ...operands, input: randomOperands(form, seed + 2).input };
        return async (): Promise<void> => {
          const actual = await runSession(session, qkvGemmModel(form, fed).feeds);
          expect(mismatches(cpuReference(form, fed), actual), String(lead)).to.deep.equal([]);
        };
      }); // prettier-ignore
      for (const run of runs) await run();
      await Promise.all([...runs, ...runs].map((run) => run()));
      await session.release();
    });
  });
});
