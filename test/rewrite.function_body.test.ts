/**
 * The function body of com.deepspeed.QKVGemm gives what the op gives, in a runtime that has not the op: onnxruntime-node
 * without the library, and onnxruntime-web. All results are held against one float64 reference.
 */
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import * as web from 'onnxruntime-web';
import { ModelBuilder, OPSET } from '../models/builder.js';
import {
  addQkvGemm,
  qkvGemmModel,
  randomOperands,
  type ModelSettings,
  type QkvGemmSpec,
} from '../models/qkv_gemm.js';
import { DataType, dataTypeName } from '../ts/onnx/tensor.js';
import { DOMAIN, OLDEST_OPSET, planFunctions, type Variant } from '../ts/rewrite/function_body.js';
import { withQkvGemm } from '../ts/session/index.js';
import { NORMS, T, type Cases } from './support/op_cases.js';
import { mismatches, reference } from '../models/qkv_gemm_reference.js';
import { cpuReference } from './support/cpu_reference.js';
import { quiet } from './support/run.js';
import { runOp, type Runtime } from './support/run_op.js';

const { float, float16, bfloat16, int8 } = DataType;
const dims = [2, 3, 40];
const n = 36;

/** What the rewriter asks of the body for such a node. */
function variantOf(spec: QkvGemmSpec): Variant {
  const { shape = [], zeroPoint } = spec.scale ?? {};
  const groups = shape.length === 1 && shape[0] !== 1 && shape[0] !== spec.n;
  return {
    ...(shape.length === 2 ? { scales: 'blocks' } : groups ? { scales: 'groups' } : {}),
    ...(zeroPoint ? { zeroPoint } : {}),
    normType: spec.norm ?? 'layer_norm',
    splits: spec.splits?.length ?? 1,
    transposed: spec.transposed ?? false,
    type: spec.type ?? float,
    weightType: spec.weightType ?? float,
    bias: spec.bias !== undefined,
    norm: spec.emitNorm ?? false,
  };
}

/** The vectors that the rewriter gives a node of this norm: all that the body reads. */
function vectors(norm: (typeof NORMS)[number], type: number): Partial<QkvGemmSpec> {
  return {
    norm,
    ...(norm === 'none' ? {} : { gamma: type }),
    ...(norm === 'layer_norm' ? { beta: type } : {}),
  };
}

async function check(
  spec: QkvGemmSpec,
  settings: ModelSettings = {},
  runtime: Runtime = ort,
  variant: Variant = variantOf(spec),
): Promise<void> {
  const operands = randomOperands(spec);
  const functions = planFunctions([variant], settings.opset ?? OPSET).functions.map(({ message }) => message);
  const model = qkvGemmModel(spec, operands, { functions, allAttributes: true, ...settings });
  const body = await runOp(model, quiet, runtime);
  expect(mismatches(reference(spec, operands, 'moments'), body), 'body').to.deep.equal([]);
  if (runtime !== ort) return;
  const op = await runOp(model, withQkvGemm(quiet));
  expect(mismatches(cpuReference(spec, operands), op), 'op').to.deep.equal([]);
}

/** Every norm and element type, with all outputs and with none but the first. */
function types(): Cases {
  const cases: Cases = {};
  for (const norm of NORMS)
    for (const type of T)
      for (const weightType of [...T, int8])
        for (const vector of new Set([type, float])) {
          const scale = weightType === int8 ? { scale: { shape: [n] } } : {};
          const common = { dims, n, type, weightType, ...scale, ...vectors(norm, vector) };
          const name = `${norm}, ${dataTypeName(type)} x ${dataTypeName(weightType)}, vectors ${dataTypeName(vector)}`;
          cases[name] = { ...common, splits: [20, 12, 4], bias: vector, emitNorm: norm !== 'none' };
          cases[`${name}, one output`] = common;
        }
  return cases;
}

function forms(): Cases {
  const cases: Cases = {};
  for (const norm of NORMS)
    for (const weightType of [float, int8])
      for (const transposed of [false, true])
        for (const bias of [false, true])
          for (const splits of [[36], [12, 24], [30, 2, 4], [12, 0, 12, 12]])
            for (const emitNorm of norm === 'none' ? [false] : [false, true])
              cases[
                `${norm}, ${dataTypeName(weightType)}${transposed ? ', transposed' : ''}${bias ? ', bias' : ''}, splits ${splits.join('+')}${emitNorm ? ', norm' : ''}`
              ] = {
                dims,
                n,
                splits,
                weightType,
                transposed,
                emitNorm,
                ...vectors(norm, float),
                ...(bias ? { bias: float } : {}),
                ...(weightType === int8 ? { scale: { shape: transposed ? [n] : [1] } } : {}),
              };
  return cases;
}

/** Layouts of the scales of int8 weights: N = 36, K = 40. */
function scales(): Cases {
  const cases: Cases = {};
  for (const shape of [[], [1], [n], [2], [12], [1, n], [5, n], [20, n], [40, n]])
    for (const zeroPoint of [false, true])
      for (const transposed of [false, true])
        cases[`[${shape.join(', ')}]${zeroPoint ? ', zero points' : ''}${transposed ? ', transposed' : ''}`] =
          {
            dims,
            n,
            splits: [20, 12, 4],
            type: transposed ? float16 : float,
            weightType: int8,
            scale: { shape, zeroPoint },
            transposed,
            bias: float,
            ...vectors('layer_norm', float),
          };
  return cases;
}

function shapes(): Cases {
  const cases: Cases = {};
  for (const norm of NORMS)
    for (const shape of [[40], [7, 40], [2, 1, 3, 40], [1, 2, 1, 3, 40], [0, 40], [2, 0, 40], [3, 1]])
      cases[`${norm}, input [${shape.join(', ')}]`] = {
        dims: shape,
        n,
        splits: [12, 12, 12],
        bias: float,
        emitNorm: norm !== 'none',
        ...vectors(norm, float),
      };
  return cases;
}

describe('function body', () => {
  for (const [section, cases] of Object.entries({
    types: types(),
    forms: forms(),
    scales: scales(),
    shapes: shapes(),
  }))
    describe(section, () => {
      // Leading dimensions are symbols: where ONNX Runtime knows that one is 0, its own fusion of MatMul and Add into Gemm
      // writes a Reshape that fails.
      for (const [name, spec] of Object.entries(cases))
        it(name, () =>
          check(spec, { inputDims: spec.dims.map((dim, i, all) => (i < all.length - 1 ? `d${i}` : dim)) }),
        );
    });

  describe('in models of any opset', () => {
    for (let opset = OLDEST_OPSET; opset <= 23; opset++)
      for (const norm of NORMS)
        for (const weightType of [float, int8])
          it(`${opset}: ${norm}, ${dataTypeName(weightType)}`, () =>
            check(
              {
                dims,
                n,
                splits: [12, 12, 12],
                type: opset % 2 === 0 ? float16 : float,
                weightType,
                bias: float,
                emitNorm: norm !== 'none',
                ...(weightType === int8 ? { scale: { shape: [n] } } : {}),
                ...vectors(norm, float),
              },
              // The IR version that came with the opset, 8 (functions) at least.
              { opset, irVersion: opset >= 23 ? 11 : opset >= 21 ? 10 : opset >= 19 ? 9 : 8 },
            ));
  });

  describe('in models of any opset, scales that broadcast along no axis', () => {
    for (let opset = OLDEST_OPSET; opset <= 23; opset++)
      for (const shape of [[12], [5, n]])
        it(`${opset}: [${shape.join(', ')}]`, () =>
          check(
            {
              dims,
              n,
              splits: [12, 12, 12],
              weightType: int8,
              scale: { shape, zeroPoint: true },
              transposed: opset % 2 === 0,
              bias: float,
              ...vectors('rms_norm', float),
            },
            { opset, irVersion: opset >= 23 ? 11 : opset >= 21 ? 10 : opset >= 19 ? 9 : 8 },
          ));
  });

  it('one body serves nodes with other lengths of blocks and groups', () => {
    const spec = (k: number, shape: number[]): QkvGemmSpec => ({
      dims: [2, k],
      n,
      weightType: int8,
      scale: { shape, zeroPoint: true },
      ...vectors('layer_norm', float),
    });
    for (const specs of [
      [spec(40, [5, n]), spec(40, [2, n]), spec(24, [1, n])],
      [spec(40, [2]), spec(40, [9]), spec(24, [18])],
    ])
      expect(planFunctions(specs.map(variantOf), OPSET).functions).to.have.length(1);
  });

  describe('shared by nodes that use less of it', () => {
    const spec: QkvGemmSpec = { dims, n, splits: [12, 12, 12], ...vectors('layer_norm', float), bias: float };
    const withNorm = { ...variantOf(spec), norm: true };

    it('norm is not asked for', () => check(spec, {}, ort, withNorm));
    // A body has one number of outputs, and ONNX Runtime wants a place for each: the name may be empty.
    it('norm is not asked for, one output', () =>
      check({ ...spec, splits: [n] }, { outputs: ['y', ''] }, ort, { ...withNorm, splits: 1 }));
    it('norm has no name', () => check({ ...spec, emitNorm: true, unnamed: [1] }));
    it('a split has no name', () => check({ ...spec, emitNorm: true, unnamed: [2] }));
    it('the last split has no name', () =>
      check({ ...spec, unnamed: [3] }, { outputs: ['y', '', 'y2', ''] }));
    it('operands are fed', () =>
      check({ ...spec, fed: ['weight', 'gamma', 'beta', 'bias'], type: bfloat16, emitNorm: true }));
    it('epsilon, splits of another node', async () => {
      for (const epsilon of [1e-12, 1e-3, 0.5]) await check({ ...spec, epsilon, splits: [2, 4, 30] });
    });
  });

  it('several bodies in one model, told apart by overload', async () => {
    const specs: QkvGemmSpec[] = [
      { dims, n, ...vectors('layer_norm', float), splits: [12, 24], emitNorm: true },
      { dims, n, ...vectors('rms_norm', float16), type: float16, weightType: int8, scale: { shape: [n] } },
      { dims, n, ...vectors('layer_norm', float), splits: [30, 6], emitNorm: true },
    ];
    const plan = planFunctions(specs.map(variantOf), OPSET);
    expect(plan.functions).to.have.length(2);
    const builder = new ModelBuilder({ [DOMAIN]: 1 }, plan.irVersion);
    for (const { message } of plan.functions) builder.function(message);
    const all = specs.map((spec, i) => {
      const operands = randomOperands(spec, i + 1);
      const prefix = `layer${i}_`;
      const form = { prefix, nodeName: prefix, overload: plan.overloads[i] ?? '', allAttributes: true };
      const feeds = addQkvGemm(builder, spec, operands, form);
      const expected = Object.entries(reference(spec, operands, 'moments'));
      return { feeds, expected: expected.map(([name, output]) => [prefix + name, output] as const) };
    });
    const model = { bytes: builder.finish(), feeds: all.flatMap(({ feeds }) => feeds) };
    const expected = Object.fromEntries(all.flatMap((each) => each.expected));
    expect(mismatches(expected, await runOp(model, quiet)), 'body').to.deep.equal([]);
    expect(mismatches(expected, await runOp(model, withQkvGemm(quiet))), 'op').to.deep.equal([]);
  });

  it('gives NaN for a row of zeros at epsilon 0, as the graph that it stands for, where the op gives 0', async () => {
    for (const norm of ['layer_norm', 'rms_norm'] as const) {
      const spec: QkvGemmSpec = { dims: [1, 8], n: 4, epsilon: 0, ...vectors(norm, float) };
      const zeros = { type: float, dims: spec.dims, values: new Float32Array(8) };
      const functions = planFunctions([variantOf(spec)], OPSET).functions.map(({ message }) => message);
      const operands = { ...randomOperands(spec), input: zeros };
      const model = qkvGemmModel(spec, operands, { functions, allAttributes: true });
      const body = (await runOp(model, quiet)).y?.values ?? [];
      expect(Array.from(body, Number.isNaN), norm).to.deep.equal([true, true, true, true]);
      expect(mismatches(cpuReference(spec, operands), await runOp(model, withQkvGemm(quiet)))).to.deep.equal(
        [],
      );
    }
  });

  describe('in onnxruntime-web', () => {
    before(() => {
      web.env.wasm.numThreads = 1;
    });
    for (const norm of NORMS)
      for (const weightType of [float, float16, int8])
        for (const type of [float, float16])
          it(`${norm}, ${dataTypeName(type)} x ${dataTypeName(weightType)}`, () =>
            check(
              {
                dims,
                n,
                splits: [12, 12, 12],
                type,
                weightType,
                bias: float,
                emitNorm: norm !== 'none',
                transposed: type === float16,
                ...(weightType === int8 ? { scale: { shape: [n] } } : {}),
                ...vectors(norm, float),
              },
              {},
              web,
            ));
  });
});
