/**
 * Integer products of dynamically quantised activations become int8 weights. Here activations are rounded no more; that they
 * are by default is in rewrite.quantized.rounded_rows.test.ts.
 */
import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { uniform, type ModelBuilder } from '../models/builder.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { DataType } from '../ts/onnx/tensor.js';
import { withQkvGemm } from '../ts/session/index.js';
import { testFolder } from './support/command.js';
import {
  MICROSOFT,
  opsets,
  K,
  store,
  quantize,
  chain,
  biasValues,
  biasOf,
  build,
  weightsFor,
  type Form,
  type Stored,
  type Write,
} from './support/dynamic_quantized.js';
import { checkRefused, fused, type Fused } from './support/fused.js';
import {
  carried,
  floatLayer,
  inputOf,
  integers,
  layerOf,
  meaning,
  NAMES,
  type Integers,
} from './support/quantized.js';
import { quiet, runModel } from './support/run.js';
import { roundingOfModel } from '../scripts/bench/rounding.js';

const { float, uint8 } = DataType;

/**
 * Q, K and V of the fused model lie within float32's rounding of the float formula, and within one step of the
 * activations' scale times a column's sum of |weights| of the original. A step is (max(h, 0) - min(h, 0)) / 255; rounding
 * to it costs half of one, and the zero point, itself rounded, may cut off the ends of the range by another half.
 */
async function check(original: Uint8Array, weights: readonly Integers[], biased = false): Promise<Fused> {
  const result = fused(original, { options: { activationQuant: false } });
  const numbers = weights.map(meaning);
  expect(carried(result)).to.deep.equal(numbers);
  const inputs = inputOf(K);
  const biases = weights.map(({ n }) => (biased ? biasValues(n) : undefined));
  const formula = await runModel(floatLayer(K, numbers, biases), inputs);
  const before = await runModel(original, inputs, { ...quiet, graphOptimizationLevel: 'disabled' });
  const normalised = layerOf(K, (m, h) => [m.node('Identity', [h], ['q'])]);
  const h = (await runModel(normalised, inputs))[1] ?? new Float32Array();
  const step = (Math.max(0, ...h) - Math.min(0, ...h)) / 255;
  for (const options of [withQkvGemm(quiet), quiet]) {
    const after = await runModel(result.bytes, inputs, options);
    expect(worstDifference(formula, after), 'to the formula').to.be.at.most(
      2e-5 + roundingOfModel(result.bytes),
    );
    numbers.forEach((values, part) => {
      const n = weights[part]?.n ?? 1;
      const [was, is] = [before[part + 1] ?? [], after[part + 1] ?? []];
      expect(was).to.have.length(is.length);
      for (let i = 0; i < is.length; i++) {
        const column = values.filter((_, at) => at % n === i % n);
        const bound = step * column.reduce((sum, value) => sum + Math.abs(value), 0);
        expect(Math.abs((was[i] ?? NaN) - (is[i] ?? NaN)), `to the original, ${part}[${i}]`).to.be.at.most(
          bound,
        );
      }
    });
    // What the original loses, the fused model does not.
    expect(worstDifference(formula, before)).to.be.above(100 * worstDifference(formula, after));
  }
  return result;
}

describe('DynamicQuantizeLinear and MatMulInteger', () => {
  for (const form of [
    {},
    { bias: true },
    { unsigned: true },
    { perTensor: true },
    { perTensor: true, unsigned: true, bias: true },
    { zeroPoint: false },
    { zeroPoint: false, unsigned: true },
    { scaling: 'product swapped' },
    { scaling: 'activations first', bias: true },
    { scaling: 'weight first' },
  ] as Form[])
    it(Object.entries(form).map(([key, value]) => `${key}: ${value}`).join(', ') || 'as quantize_dynamic writes it', async () => {
      const weights = weightsFor(form);
      const { ops, report } = await check(
        build(weights, (m, name, w) => chain(m, name, w, form)),
        weights,
        form.bias,
      );
      expect(ops).to.deep.equal(['QKVGemm', 'Transpose', 'MatMul', 'Transpose', 'MatMul']);
      const [site] = report.fused;
      expect(site?.rules.projection).to.equal(form.bias ? 'matmul-integer+add' : 'matmul-integer');
      expect([site?.weightType, site?.emitNorm]).to.deep.equal(['int8', false]);
    }); // prettier-ignore

  it('an MLP that shares the DynamicQuantizeLinear keeps it, and reads the norm', () => {
    const weights = weightsFor({});
    const up = integers(K, 20, 50);
    const down = integers(20, K, 53);
    const original = build(weights, chain, (m) => {
      chain(m, 'up', up);
      const relu = m.node('Relu', ['up'], ['act']);
      m.node('DynamicQuantizeLinear', [relu], ['act_q', 'act_s', 'act_z']);
      const { q, scale, zero } = store(m, 'down', down, {});
      const sum = m.node('MatMulInteger', ['act_q', q, 'act_z', zero], ['i_down']);
      const cast = m.node('Cast', [sum], ['f_down'], { attributes: { to: { integer: float } } });
      m.output(m.node('Mul', [cast, m.node('Mul', ['act_s', scale], ['ss_down'])], ['down']));
    });
    const { report, ops } = fused(original);
    expect(report.fused[0]?.emitNorm).to.equal(true);
    expect(report.fused[0]?.splits).to.deep.equal([8, 16, 16]);
    expect(ops.filter((op) => op === 'MatMulInteger')).to.have.length(2);
    expect(ops.filter((op) => op === 'DynamicQuantizeLinear')).to.have.length(2);
  });

  /** A packed projection of rows that a Reshape makes two-dimensional, as quantize_dynamic makes of a Gemm. */
  const packed = (rank: number | undefined, after?: (m: ModelBuilder) => void): [Uint8Array, Integers] => {
    const w = integers(K, 24, 60);
    const project = (m: ModelBuilder, h: string): readonly string[] => {
      const flat = m.node('Reshape', [h, m.integers('flat', [2], [-1, K])], ['h_flat']);
      if (rank !== undefined) m.valueInfo(flat, Array<number>(rank).fill(-1));
      quantize(m, flat);
      const sum = chain(m, 'packed', w, { bias: true });
      const back = m.node('Reshape', [sum, m.integers('back', [3], [2, 5, 24])], ['p_back']);
      const widths = m.integers('widths', [3], [8, 8, 8]);
      m.node('Split', [back, widths], [...NAMES], { attributes: { axis: { integer: -1 } } });
      return NAMES;
    };
    return [layerOf(K, project, { opsets, ...(after ? { after } : {}) }), w];
  };

  /** Fused, with the model's integers, and as near to the float formula as float32 allows. */
  const checkPacked = async (rank: number | undefined): Promise<string> => {
    const [original, w] = packed(rank);
    const result = fused(original, { options: { activationQuant: false } });
    expect(result.ops).to.not.include('DynamicQuantizeLinear');
    expect(carried(result)).to.deep.equal([meaning(w)]);
    const reference = layerOf(K, (m, h) => {
      const product = m.node('MatMul', [h, m.floats('w', [K, 24], meaning(w))], ['p']);
      const sum = m.node('Add', [product, biasOf(m, 'p', 24)], ['p_b']);
      const widths = m.integers('widths', [3], [8, 8, 8]);
      m.node('Split', [sum, widths], [...NAMES], { attributes: { axis: { integer: -1 } } });
      return NAMES;
    });
    const expected = await runModel(reference, inputOf(K));
    for (const options of [withQkvGemm(quiet), quiet])
      expect(worstDifference(expected, await runModel(result.bytes, inputOf(K), options))).to.be.at.most(
        2e-5 + roundingOfModel(result.bytes),
      );
    return result.report.fused[0]?.rules.projection ?? '';
  };

  it('behind a Reshape to two dimensions', async () => {
    expect(await checkPacked(2)).to.equal('reshape+matmul-integer+add');
  });

  it('behind a Reshape to a number of dimensions that the graph does not state: the norm goes behind it', async () => {
    expect(await checkPacked(undefined)).to.equal('matmul-integer+add');
  });

  it('behind a Reshape whose rounded values are read elsewhere too: those stay', () => {
    const [original] = packed(2, (m) => void m.output(m.node('Neg', ['h_s'], ['minus'])));
    const { ops, report } = fused(original);
    expect(ops.filter((op) => op === 'DynamicQuantizeLinear')).to.have.length(1);
    expect(report.fused[0]?.emitNorm).to.equal(true);
  });

  it('refuses a Reshape to an unknown number of dimensions, and to three, where others read the norm as well', () => {
    const read = (m: ModelBuilder): void => void m.output(m.node('Neg', ['h'], ['less']));
    checkRefused(
      packed(undefined, read)[0],
      "'h_flat' has an unknown number of dimensions, expected two",
      'h_flat_node',
    );
    checkRefused(packed(3, read)[0], "'h_flat' has 3 dimensions, expected two", 'h_flat_node');
  });

  const weights = weightsFor({});
  const spoilt = (write: Write): Uint8Array => build(weights, write);
  for (const [what, original, reason, at] of [
    [
      'a sum that is also read as it is',
build(weights, chain, (m) => {
        for (const name of NAMES)
          m.output(m.node('Abs', [`i_${name}`], [`abs_${name}`]), undefined, DataType.int32);
      }),
      "'i_q' is read by something else, expected one Cast to float32",
      'i_q_node',
    ],
    [
      'a sum that is scaled by the weight alone',
      spoilt((m, name, w) => {
        const { q, scale, zero } = store(m, name, w, {});
        const sum = m.node('MatMulInteger', ['h_q', q, 'h_z', zero], [`i_${name}`]);
        const cast = m.node('Cast', [sum], [`f_${name}`], { attributes: { to: { integer: float } } });
        return m.node('Mul', [cast, scale], [name]);
      }),
      "'q' is not multiplied by the scales of activations and weight",
      'f_q_node',
    ],
    [
      'a zero point of other activations',
      spoilt((m, name, w) => {
        const { q, scale, zero } = store(m, name, w, {});
        const other = m.tensor(`o_${name}`, uint8, [], new Uint8Array([3]));
        const sum = m.node('MatMulInteger', ['h_q', q, other, zero], [`i_${name}`]);
        const cast = m.node('Cast', [sum], [`f_${name}`], { attributes: { to: { integer: float } } });
        return m.node('Mul', [cast, m.node('Mul', ['h_s', scale], [`ss_${name}`])], [name]);
      }),
      'MatMulInteger does not take its zero point from DynamicQuantizeLinear',
      'i_q_node',
    ],
    [
      'a scale with a row of its own for each row of the result',
      spoilt((m, name, w) => {
        const { q, zero } = store(m, name, w, {});
        const scale = m.floats(`rows_${name}`, [5, 1], uniform(5, 0.1, 4, 1));
        const sum = m.node('MatMulInteger', ['h_q', q, 'h_z', zero], [`i_${name}`]);
        const cast = m.node('Cast', [sum], [`f_${name}`], { attributes: { to: { integer: float } } });
        return m.node('Mul', [cast, m.node('Mul', ['h_s', scale], [`ss_${name}`])], [name]);
      }),
      "'rows_q' has shape [5, 1], expected one element or [N] = [8]",
      'i_q_node',
    ],
  ] as const)
    it(`refuses ${what}`, () => checkRefused(original, reason, at)); // prettier-ignore
});

describe("what ONNX Runtime's extended optimisations make of them", () => {
  for (const bias of [false, true])
    for (const form of [{}, { unsigned: true, perTensor: true }, { zeroPoint: false }] as Form[]) {
      const name = `${bias ? 'with' : 'without'} a bias, ${JSON.stringify(form)}`;

      it(`DynamicQuantizeMatMul, ${name}`, async () => {
        const weights = weightsFor(form);
        const original = layerOf(
          K,
          (m, h) =>
            weights.map((w, i) => {
              const name = NAMES[i] ?? '';
              const { q, scale, zero } = store(m, name, w, form);
              const inputs = [h, q, scale, zero, bias ? biasOf(m, name, w.n) : ''];
              while (inputs.at(-1) === '') inputs.pop();
              return m.node('DynamicQuantizeMatMul', inputs, [name], { domain: MICROSOFT });
            }),
          { opsets },
        );
        const { report } = await check(original, weights, bias);
        expect(report.fused[0]?.rules.projection).to.equal('dynamic-quantize-matmul');
      });

      it(`MatMulIntegerToFloat, ${name}`, async () => {
        const weights = weightsFor(form);
        const original = build(weights, (m, name, w) => {
          const { q, scale, zero } = store(m, name, w, form);
          const inputs = ['h_q', q, 'h_s', scale, 'h_z', zero, bias ? biasOf(m, name, w.n) : ''];
          while (inputs.at(-1) === '') inputs.pop();
          return m.node('MatMulIntegerToFloat', inputs, [name], { domain: MICROSOFT });
        });
        const { report, ops } = await check(original, weights, bias);
        expect(ops).to.not.include('DynamicQuantizeLinear');
        expect(report.fused[0]?.rules.projection).to.equal('matmul-integer-to-float');
      });
    }

  const folder = testFolder();
  it('as ONNX Runtime itself writes them', async () => {
    const weights = weightsFor({});
    const [input, output] = ['in.onnx', 'out.onnx'].map((name) => path.join(folder(), name)) as [
      string,
      string,
    ];
    fs.writeFileSync(
      input,
      build(weights, (m, name, w) => chain(m, name, w, { bias: true })),
    );
    const session = await ort.InferenceSession.create(input, {
      ...quiet,
      graphOptimizationLevel: 'extended',
      optimizedModelFilePath: output,
    });
    await session.release();
    const { bytes, report, ops } = fused(new Uint8Array(fs.readFileSync(output)), {
      options: { activationQuant: false },
    });
    const biases = weights.map(({ n }) => biasValues(n));
    const formula = await runModel(floatLayer(K, weights.map(meaning), biases), inputOf(K));
    for (const options of [withQkvGemm(quiet), quiet])
      expect(worstDifference(formula, await runModel(bytes, inputOf(K), options))).to.be.at.most(
        2e-5 + roundingOfModel(bytes),
      );
    expect(report.fused[0]?.rules.projection).to.equal('matmul-integer-to-float');
    expect(ops).to.not.include('DynamicQuantizeLinear');
  });

  const weights = weightsFor({});
  it('refuses a bias of another length, and a scale that is computed', () => {
    const write =
      (make: (m: ModelBuilder, h: string, stored: Stored, name: string) => string[]) =>
      (m: ModelBuilder, h: string): string[] =>
        weights.map((w, i) => {
          const name = NAMES[i] ?? '';
          const inputs = make(m, h, store(m, name, w, {}), name);
          return m.node('DynamicQuantizeMatMul', inputs, [name], { domain: MICROSOFT });
        });
    checkRefused(
      layerOf(K, write((m, h, { q, scale, zero }, name) => [h, q, scale, zero, m.floats(`b_${name}`, [1], [2])]), { opsets }),
      'the bias has shape [1], expected [N] = [8]',
      'q_node',
    ); // prettier-ignore
    checkRefused(
      layerOf(K, write((m, h, { q, scale, zero }, name) => [h, q, m.node('Abs', [scale], [`abs_${name}`]), zero]), { opsets }),
      "the scale of the weight is not constant: 'abs_q' is computed by Abs 'abs_q_node'",
      'q_node',
    ); // prettier-ignore
  });

  it('refuses MatMulIntegerToFloat with a scale of other activations', () => {
    const original = build(weights, (m, name, w) => {
      const { q, scale, zero } = store(m, name, w, {});
      const inputs = ['h_q', q, m.floats(`o_${name}`, [], [0.1]), scale, 'h_z', zero];
      return m.node('MatMulIntegerToFloat', inputs, [name], { domain: MICROSOFT });
    });
    checkRefused(
      original,
      'MatMulIntegerToFloat does not take scale and zero point from DynamicQuantizeLinear',
      'q_node',
    );
  });
});
