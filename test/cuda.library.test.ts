/** The CUDA library where there is no GPU: it serves sessions on the CPU as the CPU's library does. */
import { expect } from 'chai';
import type * as ort from 'onnxruntime-node';
import { qkvGemmModel, randomOperands } from '../models/qkv_gemm.js';
import { mismatches } from '../models/qkv_gemm_reference.js';
import { cpuReference } from './support/cpu_reference.js';
import { withCustomOps, withQkvGemm } from '../ts/session/index.js';
import { cudaLibraryOrSkip } from './support/cuda.js';
import { SECTIONS } from './support/op_cases.js';
import { inputs, floatForm } from './support/op_mistakes.js';
import { quiet } from './support/run.js';
import { runOp } from './support/run_op.js';

describe('the CUDA library on the CPU', () => {
  let options: ort.InferenceSession.SessionOptions = {};
  before(function () {
    options = withCustomOps(quiet, [cudaLibraryOrSkip(this)]);
  });

  for (const section of ['element types', 'outputs', 'activation_quant']) {
    it(`computes: ${section}`, async () => {
      for (const [name, spec] of Object.entries(SECTIONS[section] ?? {})) {
        const operands = randomOperands(spec);
        const actual = await runOp(qkvGemmModel(spec, operands), options);
        expect(mismatches(cpuReference(spec, operands), actual), name).to.deep.equal([]);
      }
    });
  }

  it('says what is wrong', async () => {
    for (const [name, { spec = floatForm, operands, settings, message }] of Object.entries(inputs)) {
      const model = qkvGemmModel(spec, { ...randomOperands(spec), ...operands }, settings);
      const found = await runOp(model, options).then(
        () => '',
        (error: unknown) => String(error),
      );
      expect(found, name).to.contain(message);
    }
  });

  it("goes beside the CPU's library in one process, a session each", async () => {
    const spec = { ...floatForm };
    const operands = randomOperands(spec);
    const { bytes, feeds } = qkvGemmModel(spec, operands);
    for (const each of [options, withQkvGemm(quiet), options]) {
      const actual = await runOp({ bytes, feeds }, each);
      expect(mismatches(cpuReference(spec, operands), actual)).to.deep.equal([]);
    }
  });
});
