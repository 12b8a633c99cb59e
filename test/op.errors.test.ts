/** What breaks the contract: each is an error that names op, node and place, with what was expected and what was found. */
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import {
  INPUTS,
  qkvGemmModel,
  randomOperands,
  type Operands,
  type QkvGemmModel,
  type QkvGemmSpec,
} from '../models/qkv_gemm.js';
import { DataType } from '../ts/onnx/tensor.js';
import { withQkvGemm } from '../ts/session/index.js';
import {
  attributes,
  floatForm,
  inputs,
  int8Form,
  ones,
  weights,
  type Mistake,
} from './support/op_mistakes.js';
import { mismatches } from '../models/qkv_gemm_reference.js';
import { cpuReference } from './support/cpu_reference.js';
import { quiet } from './support/run.js';
import { runOp, runSession } from './support/run_op.js';

const { float, uint8 } = DataType;
const NODE = 'encoder/layer.0/qkv';

type Phase = 'create' | 'run';

async function fails(model: QkvGemmModel): Promise<{ phase: Phase; message: string }> {
  let phase: Phase = 'create';
  try {
    const session = await ort.InferenceSession.create(model.bytes, withQkvGemm(quiet));
    phase = 'run';
    try {
      await runSession(session, model.feeds);
    } finally {
      await session.release();
    }
  } catch (error) {
    return { phase, message: error instanceof Error ? error.message : String(error) };
  }
  throw new Error('no error');
}

async function works(spec: QkvGemmSpec = floatForm): Promise<void> {
  const operands = randomOperands(spec);
  const actual = await runOp(qkvGemmModel(spec, operands), withQkvGemm(quiet));
  expect(mismatches(cpuReference(spec, operands), actual)).to.deep.equal([]);
}

describe('what breaks the contract', () => {
  const sections: [string, Record<string, Mistake>, { constant: Phase; fed: Phase }][] = [
    ['attributes and outputs', attributes, { constant: 'create', fed: 'create' }],
    ['weights', weights, { constant: 'create', fed: 'run' }],
    ['inputs', inputs, { constant: 'run', fed: 'run' }],
  ];
  for (const [section, mistakes, phases] of sections) {
    describe(section, () => {
      for (const [name, { spec = floatForm, operands, settings, message }] of Object.entries(mistakes)) {
        for (const placement of ['constant', 'fed'] as const) {
          for (const unknownShapes of [false, true]) {
            it(`${name}; operands ${placement}, shapes ${unknownShapes ? 'unknown' : 'known'}`, async () => {
              const form = { ...spec, fed: placement === 'fed' ? INPUTS : [] };
              const wrong = { ...randomOperands(spec), ...operands };
              const model = qkvGemmModel(form, wrong, { nodeName: NODE, unknownShapes, ...settings });
              const found = await fails(model);
              expect(found.message.slice(-message.length)).to.equal(message);
              expect(found.message).to.include(`com.deepspeed.QKVGemm node '${NODE}': ${message}`);
              expect(found.phase).to.equal(phases[placement]);
              await works();
            });
          }
        }
      }
    });
  }

  // These ONNX Runtime finds by itself, from what the op declares.
  const byRuntime: Record<string, [Operands, RegExp]> = {
    'no weight': [{ weight: undefined }, /Node \(encoder\/layer\.0\/qkv\)'s input 1 is marked single/],
    'no input': [{ input: undefined }, /Node \(encoder\/layer\.0\/qkv\)'s input 0 is marked single/],
    'weight uint8': [{ weight: ones(uint8, 8, 12) }, /encoder\/layer\.0\/qkv.*input 1 'weight'.*found uint8/],
  };
  for (const [name, [operands, message]] of Object.entries(byRuntime))
    it(name, async () => {
      const wrong = { ...randomOperands(floatForm), ...operands };
      const found = await fails(qkvGemmModel(floatForm, wrong, { nodeName: NODE }));
      expect(found.message).to.match(message);
      expect(found.phase).to.equal('create');
      await works();
    });

  it('a session goes on after a run that failed', async () => {
    const form: QkvGemmSpec = { ...int8Form, emitNorm: true, splits: [4, 8], fed: ['gamma', 'scale'] };
    const right = randomOperands(form);
    const settings = { unknownShapes: true };
    const model = qkvGemmModel(form, right, settings);
    const session = await ort.InferenceSession.create(model.bytes, withQkvGemm(quiet));
    for (const wrong of [{ gamma: ones(float, 7) }, { scale: ones(float, 5) }, { input: ones(float, 3) }]) {
      let message = '';
      try {
        await runSession(session, qkvGemmModel(form, { ...right, ...wrong }, settings).feeds);
      } catch (error) {
        message = String(error);
      }
      expect(message).to.include("com.deepspeed.QKVGemm node 'qkv': input");
      const actual = await runSession(session, model.feeds);
      expect(mismatches(cpuReference(form, right), actual)).to.deep.equal([]);
    }
    await session.release();
  });
});
