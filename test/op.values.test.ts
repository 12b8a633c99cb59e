/** Values at which norms and roundings go wrong: zero and constant rows, large means, overflow, what is not a number. */
import { expect } from 'chai';
import {
  qkvGemmModel,
  randomOperands,
  roundTo,
  type Operands,
  type QkvGemmSpec,
} from '../models/qkv_gemm.js';
import { DataType, dataTypeName } from '../ts/onnx/tensor.js';
import { withQkvGemm } from '../ts/session/index.js';
import { T } from './support/op_cases.js';
import { mismatches, type Actual } from '../models/qkv_gemm_reference.js';
import { cpuReference } from './support/cpu_reference.js';
import { quiet } from './support/run.js';
import { runOp } from './support/run_op.js';

const { float, float16, bfloat16, int8 } = DataType;
const K = 40;
const ROWS = 20;
const base: QkvGemmSpec = { dims: [ROWS, K], n: 36, gamma: float, bias: float, emitNorm: true };

/** Random operands with an input of the caller's, rounded to its type. */
function withInput(
  spec: QkvGemmSpec,
  value: (row: number, column: number, random: number) => number,
): Operands {
  const operands = randomOperands(spec);
  const { input } = operands;
  if (!input) throw new Error('no input');
  const values = input.values.map((random, i) => value(Math.floor(i / K), i % K, random));
  return { ...operands, input: { ...input, values: roundTo(values, input.type) } };
}

const run = (spec: QkvGemmSpec, operands: Operands): Promise<Record<string, Actual>> =>
  runOp(qkvGemmModel(spec, operands), withQkvGemm(quiet));

async function check(spec: QkvGemmSpec, operands: Operands): Promise<void> {
  expect(mismatches(cpuReference(spec, operands), await run(spec, operands))).to.deep.equal([]);
}

/** The elements of one row. */
function row(output: Actual | undefined, at: number): number[] {
  const width = output?.dims.at(-1) ?? 0;
  return Array.from(output?.values ?? []).slice(at * width, (at + 1) * width);
}

describe('values', () => {
  for (const norm of ['layer_norm', 'rms_norm'] as const) {
    for (const type of T) {
      const spec: QkvGemmSpec = { ...base, norm, type };
      const name = `${norm}, ${dataTypeName(type)}`;

      for (const epsilon of [0, 1e-12, 1e-5])
        it(`a row of zeros at epsilon ${epsilon}, ${name}`, () =>
          check(
            { ...spec, epsilon },
            withInput(spec, (r, _, random) => (r % 3 === 1 ? 0 : random)),
          ));

      it(`small values at epsilon 0, ${name}`, () =>
        // Squares near 2^-28 in float16's range, far below 1 in any.
        check(
          { ...spec, epsilon: 0 },
          withInput(spec, (_, __, random) => random * 2 ** -12),
        ));

      it(`large values, ${name}`, () =>
        // Squares are beyond float16's range.
        check(
          spec,
          withInput(spec, (_, __, random) => random * 30000),
        ));

      it(`not a number stays in its row, ${name}`, async () => {
        const operands = withInput(spec, (r, c, random) =>
          r === 5 && c === 7 ? NaN : r === 11 && c === 0 ? Infinity : random,
        );
        const actual = await run(spec, operands);
        const clean = withInput(spec, (_, __, random) => random);
        const without = await run(spec, clean);
        for (let r = 0; r < ROWS; r++) {
          if (r === 5 || r === 11) expect(row(actual.y, r).every(Number.isNaN), `row ${r}`).to.be.true;
          else expect(row(actual.y, r), `row ${r}`).to.deep.equal(row(without.y, r));
        }
      });
    }
  }

  it('constant rows: their deviation is 0, epsilon keeps them finite', () =>
    check(
      { ...base, beta: float },
      withInput(base, (r) => (r - 9) / 3),
    ));

  for (const [mean, deviation] of [
    [100, 1],
    [1000, 1],
    [-4096, 0.5],
  ] as const)
    // prettier-ignore
    it(`layer_norm of values around ${mean} that deviate by ${deviation}`, async () => {
      // The deviations are exact here. E[x²] - E[x]² in float32 would be off by a part of mean² 2^-24 / deviation².
      const operands = withInput(base, (_, __, random) => mean + Math.round(random * 1024) * (deviation / 1024));
      await check(base, operands);
    });

  it('float16 results beyond 65504 are infinite, of either sign', async () => {
    const spec: QkvGemmSpec = { dims: [1, 2], n: 4, type: float16, norm: 'none' };
    const operands: Operands = {
      input: { type: float16, dims: [1, 2], values: Float32Array.of(60000, 60000) },
      weight: { type: float, dims: [2, 4], values: Float32Array.of(1, -1, 0.5, 1, 1, -1, 0.5, -1) },
    };
    expect(Array.from((await run(spec, operands)).y?.values ?? [])).to.deep.equal([
      Infinity,
      -Infinity,
      60000,
      0,
    ]);
  });

  it('results are rounded to nearest, ties to even, once', async () => {
    // 1 and half a unit in the last place of T; the same from 1 and three halves; a little more than half a unit.
    for (const [type, unit] of [
      [float16, 2 ** -10],
      [bfloat16, 2 ** -7],
    ] as const) {
      // prettier-ignore
      const spec: QkvGemmSpec = { dims: [1, 2], n: 3, type, norm: 'none' };
      const operands: Operands = {
        input: { type, dims: [1, 2], values: Float32Array.of(1, unit) },
        weight: {
          type: float,
          dims: [2, 3],
          values: Float32Array.of(1, 1, 1, 0.5, 1.5, 0.5 + 2 ** -10),
        },
      };
      const { y } = await run(spec, operands);
      expect(Array.from(y?.values ?? []), dataTypeName(type)).to.deep.equal([1, 1 + 2 * unit, 1 + unit]);
    }
  });

  it('subnormal float16 results are kept', async () => {
    const spec: QkvGemmSpec = { dims: [1, 1], n: 4, type: float16, norm: 'none' };
    const operands: Operands = {
      input: { type: float16, dims: [1, 1], values: Float32Array.of(2 ** -14) },
      weight: { type: float, dims: [1, 4], values: Float32Array.of(1, 2 ** -10, 3 * 2 ** -10, 2 ** -12) },
    };
    const { y } = await run(spec, operands);
    expect(Array.from(y?.values ?? [])).to.deep.equal([2 ** -14, 2 ** -24, 3 * 2 ** -24, 0]);
  });

  it('int8 weights and zero points at both ends of their range', async () => {
    const spec: QkvGemmSpec = {
      dims: [1, 2],
      n: 4,
      norm: 'none',
      weightType: int8,
      scale: { shape: [4], zeroPoint: true },
    };
    const operands: Operands = {
      input: { type: float, dims: [1, 2], values: Float32Array.of(1, 2) },
      weight: { type: int8, dims: [2, 4], values: Float32Array.of(-128, 127, -128, 127, 127, -128, 0, 0) },
      scale: { type: float, dims: [4], values: Float32Array.of(1, 1, 0.5, 2) },
      zero_point: { type: int8, dims: [4], values: Float32Array.of(127, -128, -128, 127) },
    };
    const { y } = await run(spec, operands);
    expect(Array.from(y?.values ?? [])).to.deep.equal([-255, 255, 128, -508]);
  });
});
