/** com.microsoft MatMulNBits of 8 bits becomes an int8 weight with the same integers, scales and zero points. */
import { expect } from 'chai';
import { uniform, type ModelBuilder } from '../models/builder.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fromFloat32 } from '../ts/rewrite/weights/convert.js';
import { withQkvGemm } from '../ts/session/index.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { quiet, runModel } from './support/run.js';
import {
  bytesOf,
  carried,
  floatLayer,
  inputOf,
  integers,
  layerOf,
  meaning,
  NAMES,
  turned,
  unsigned,
  type Integers,
} from './support/quantized.js';

const MICROSOFT = 'com.microsoft';
const opsets = { [MICROSOFT]: 1 };
const { float, float16, uint8 } = DataType;

interface Form {
  zeroPoints?: boolean;
  bias?: Float32Array;
  type?: number;
  attributes?: Record<string, number>;
  /** Inputs in place of the form's own. */
  inputs?: (m: ModelBuilder, own: string[]) => string[];
}

/** B [N, blocks, block]: columns are padded to whole blocks with something that would be seen. */
function nbits(m: ModelBuilder, h: string, name: string, w: Integers, form: Form = {}): string {
  const { k, n, block } = w;
  const { zeroPoints = true, bias, type = float, attributes = {} } = form;
  const blocks = Math.ceil(k / block);
  const columns = unsigned(turned(w.values, k));
  const padded = new Uint8Array(n * blocks * block).fill(77);
  for (let column = 0; column < n; column++)
    padded.set(columns.subarray(column * k, (column + 1) * k), column * blocks * block);
  const scale = fromFloat32(turned(Float32Array.from(w.scale), blocks), type);
  const own = [
    h,
    m.tensor(`b_${name}`, uint8, [n, blocks, block], padded),
    m.tensor(`s_${name}`, type, [n, blocks], scale),
    zeroPoints ? m.tensor(`z_${name}`, uint8, [n, blocks], unsigned(turned(w.zeroPoint, blocks))) : '',
    '',
    bias ? m.floats(`c_${name}`, [n], bias, type) : '',
  ];
  while (own.at(-1) === '') own.pop();
  const all = { K: k, N: n, bits: 8, block_size: block, ...attributes };
  return m.node('MatMulNBits', form.inputs?.(m, own) ?? own, [name], {
    domain: MICROSOFT,
    attributes: Object.fromEntries(Object.entries(all).map(([key, integer]) => [key, { integer }])),
  });
}

const build = (weights: readonly Integers[], form: Form = {}): Uint8Array =>
  layerOf(weights[0]?.k ?? 0, (m, h) => weights.map((w, i) => nbits(m, h, NAMES[i] ?? '', w, form)), {
    opsets,
    type: form.type ?? float,
  });

describe('MatMulNBits of 8 bits', () => {
  for (const [what, k, block, scaleDims] of [
    ['several blocks a column', 64, 16, [4, 40]],
    ['one block a column', 64, 64, [40]],
    ['a column shorter than its block', 24, 32, [40]],
    ['a last block that is shorter', 48, 32, [3, 40]],
  ] as const) {
    for (const zeroPoints of [true, false]) {
      it(`${what}, zero points ${zeroPoints ? 'given' : 'left at 128'}`, async () => {
        const weights = [8, 16, 16].map((n, i) => integers(k, n, 30 + i, block, !zeroPoints));
        const original = build(weights, { zeroPoints });
        const result = await checkFused(original, { inputs: inputOf(k) });
        expect(carried(result)).to.deep.equal(weights.map(meaning));
        const { nodes, model, report, ops } = result;
        expect(ops.slice(0, 2)).to.deep.equal(['QKVGemm', 'Transpose']);
        expect(nodes[0]?.integer('transposed', 0)).to.equal(1);
        expect(model.graph.initializers.get(nodes[0]?.inputs[5] ?? '')?.dims).to.deep.equal(scaleDims);
        expect(nodes[0]?.inputs).to.have.length(zeroPoints ? 7 : 6);
        const [site] = report.fused;
        expect(site?.weightType).to.equal('int8');
        expect(site?.scaleBlock).to.equal(scaleDims.length === 2 ? k / scaleDims[0] : undefined);
        expect(site).to.not.have.property('weightSqnrDb');
        expect(site?.rules.projection).to.equal('matmul-nbits');
        // Against the numbers that the integers stand for.
        await checkFused(original, { inputs: inputOf(k), reference: floatLayer(k, weights.map(meaning)) });
      });
    }
  }

  it('bias as its own input, or added behind it', async () => {
    const weights = NAMES.map((_, i) => integers(32, 8, 40 + i, 16));
    const bias = uniform(8, 1, 9);
    const result = await checkFused(build(weights, { bias }), {
      inputs: inputOf(32),
      reference: floatLayer(32, weights.map(meaning), [bias, bias, bias]),
    });
    expect(result.report.fused[0]?.rules.projection).to.equal('matmul-nbits');
    const added = layerOf(
      32,
      (m, h) =>
        weights.map((w, i) => {
          const name = NAMES[i] ?? '';
          const product = nbits(m, h, `${name}0`, w);
          return m.node('Add', [m.floats(`b_${name}`, [8], bias), product], [name]);
        }),
      { opsets },
    );
    const { report, ops } = await checkFused(added, { inputs: inputOf(32) });
    expect(report.fused[0]?.rules.projection).to.equal('matmul-nbits+add');
    expect(ops).to.not.include('Add');
  });

  it('a bias of its own and another behind it: the second stays', async () => {
    const weights = NAMES.map((_, i) => integers(32, 8, 40 + i, 16));
    const bias = uniform(8, 1, 9);
    const original = layerOf(
      32,
      (m, h) =>
        weights.map((w, i) => {
          const name = NAMES[i] ?? '';
          const product = nbits(m, h, `${name}0`, w, { bias });
          return m.node('Add', [product, m.floats(`b_${name}`, [8], bias)], [name]);
        }),
      { opsets },
    );
    const { ops } = await checkFused(original, { inputs: inputOf(32) });
    expect(ops.filter((op) => op === 'Add')).to.have.length(3);
  });

  it('accuracy_level 4 lets the original round activations: the fused node is nearer to the formula', async () => {
    const weights = NAMES.map((_, i) => integers(64, 16, 50 + i, 32));
    const reference = floatLayer(64, weights.map(meaning));
    const expected = await runModel(reference, inputOf(64));
    for (const level of [0, 1, 4]) {
      const original = build(weights, { attributes: { accuracy_level: level } });
      const { bytes } = await checkFused(original, { inputs: inputOf(64), reference });
      const error = worstDifference(expected, await runModel(bytes, inputOf(64), withQkvGemm(quiet)));
      const before = worstDifference(expected, await runModel(original, inputOf(64)));
      if (level === 4) expect(before, 'the original').to.be.above(10 * error);
    }
  });

  it('other dtypes leave the integers as they are: nothing is rounded twice', async () => {
    const weights = NAMES.map((_, i) => integers(64, 8, 60 + i, 16));
    for (const dtype of ['fp16', 'bf16', 'int8'] as const) {
      const result = await checkFused(build(weights), { inputs: inputOf(64), options: { dtype } });
      expect(carried(result)).to.deep.equal(weights.map(meaning));
    }
  });

  it('blocks of different lengths in one node: the longer are cut', async () => {
    const weights = [16, 32, 64].map((block, i) => integers(64, 8, 70 + i, block, i === 1));
    const result = await checkFused(build(weights), { inputs: inputOf(64) });
    expect(carried(result)).to.deep.equal(weights.map(meaning));
    expect(result.report.fused[0]?.scaleBlock).to.equal(16);
  });

  it('a single packed projection, whose Split becomes outputs of the node', async () => {
    const w = integers(64, 24, 80, 32);
    const original = layerOf(
      64,
      (m, h) => {
        const packed = nbits(m, h, 'packed', w);
        const widths = m.integers('widths', [3], [8, 8, 8]);
        m.node('Split', [packed, widths], [...NAMES], { attributes: { axis: { integer: -1 } } });
        return NAMES;
      },
      { opsets },
    );
    const columns = [0, 1, 2].map((part) => meaning(w).filter((_, i) => Math.floor((i % 24) / 8) === part));
    expect(carried(await checkFused(original, { inputs: inputOf(64) }))).to.deep.equal(columns);
  });

  const weights = NAMES.map((_, i) => integers(64, 8, 90 + i, 16));
  for (const [what, form, reason] of [
    ['of 4 bits', { attributes: { bits: 4 } }, 'MatMulNBits has 4 bits, expected 8'],
    [
      'with g_idx',
      { inputs: (m: ModelBuilder, own: string[]) => [...own.slice(0, 4), m.integers(`g_${own[1]}`, [64], Array<number>(64).fill(0))] },
      "MatMulNBits has g_idx 'g_b_q', expected blocks of adjoining rows",
    ],
    [
      'with a computed scale',
      { inputs: (m: ModelBuilder, [a = '', b = '', s = '', z = '']: string[]) => [a, b, m.node('Neg', [s], [`${s}_neg`]), z] },
      "the scale is not constant: 's_q_neg' is computed by Neg 's_q_neg_node'",
    ],
    [
      'with zero points that are floats',
      { inputs: (m: ModelBuilder, own: string[]) => [...own.slice(0, 3), m.floats(`f_${own[1]}`, [8, 4], new Float32Array(32).fill(3))] },
      "zero point 'f_b_q' is float32, expected uint8",
    ],
    [
      'whose B has another shape',
      { attributes: { block_size: 32 } },
      "the weight 'b_q' is uint8 [8, 4, 16], expected uint8 [8, 2, 32]",
    ],
    [
      'with a scale that is not finite',
      { inputs: (m: ModelBuilder, own: string[]) => own.map((name, i) => (i === 2 ? m.tensor(`nan_${name}`, float, [8, 4], bytesOf(new Float32Array(32).fill(NaN))) : name)) },
      "the scale 'nan_s_q' holds NaN, expected finite numbers",
    ],
  ] as [string, Form, string][])
    it(`refuses one ${what}`, () => checkRefused(build(weights, form), reason, 'q_node')); // prettier-ignore

  it('refuses blocks that share no divisor with K', () =>
    checkRefused(
      build(NAMES.map((_, i) => integers(36, 8, i + 5, 16))),
      'K = 36 and its blocks of 16 rows have no common divisor of 8 or more (found 4)',
      'q_node',
    ));

  it('integers and floats behind one norm: the larger set becomes the node, the other reads the norm', async () => {
    const mixed = (integer: readonly boolean[]): Uint8Array =>
      layerOf(
        64,
        (m, h) =>
          NAMES.map((name, i) => {
            const w = weights[i] as Integers;
            if (integer[i]) return nbits(m, h, name, w);
            return m.node('MatMul', [h, m.floats(`w_${name}`, [64, 8], meaning(w))], [name]);
          }),
        { opsets },
      );
    const two = await checkFused(mixed([true, true, false]), { inputs: inputOf(64) });
    expect(two.report.fused[0]).to.include({ weightType: 'int8', emitNorm: true });
    expect(two.report.fused[0]?.replaced).to.deep.equal(['h_node', 'q_node', 'k_node']);
    expect(two.report.refused.map(({ node, rule, reason }) => [node, rule, reason])).to.deep.equal([
      ['v_node', 'matmul', "the weight 'w_v' is no integer, 'b_q' and those of its node are: one node has one type of weights"],
    ]); // prettier-ignore
    const one = await checkFused(mixed([true, false, false]), { inputs: inputOf(64) });
    expect(one.report.fused[0]).to.include({ weightType: 'float32', emitNorm: true });
    expect(one.report.refused.map(({ node, reason }) => [node, reason])).to.deep.equal([
      ['q_node', "the weight 'b_q' is an integer, 'w_k' and those of its node are none: one node has one type of weights"],
    ]); // prettier-ignore
  });

  it('float16 activations and scales', () => {
    const half = NAMES.map((_, i) => {
      const w = integers(64, 8, 95 + i, 16);
      return { ...w, scale: w.scale.map((value) => Math.fround(Math.round(value * 65536) / 65536)) };
    });
    const result = fused(build(half, { type: float16 }));
    expect(carried(result)).to.deep.equal(half.map(meaning));
  });
});
