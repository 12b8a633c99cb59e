/** Weights behind DequantizeLinear stay the integers that they are; rounded activations are not fused away. */
import { expect } from 'chai';
import { uniform, type ModelBuilder } from '../models/builder.js';
import { QkvGemmError } from '../ts/errors.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { xTensor } from './support/layers.js';
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

const { float, float16, int8, uint8, int32 } = DataType;
const K = 48;

interface Form {
  /** Stored as uint8, 128 more (default int8). */
  unsigned?: boolean;
  /** Stored as [N, K]. */
  turned?: boolean;
  /** What stands between the stored weight and the product's operand. */
  transpose?: 'before' | 'behind';
  /** One scale for all (a scalar, or [1]), one a column, or blocks. */
  scales: 'scalar' | 'one' | 'columns' | 'blocks';
  zeroPoint?: boolean;
  attributes?: Record<string, number>;
}

/** Writes the weight as a graph value [K, N], or [N, K] where `form.turned` and nothing transposes. */
function dequantize(m: ModelBuilder, name: string, w: Integers, form: Form): string {
  const { k, n, block } = w;
  const blocks = Math.ceil(k / block);
  const shift = (values: Int8Array): Uint8Array => (form.unsigned ? unsigned(values) : bytesOf(values));
  const type = form.unsigned ? uint8 : int8;
  // As DequantizeLinear sees it.
  const stored = form.turned ? turned(w.values, k) : w.values;
  let q = m.tensor(`q_${name}`, type, form.turned ? [n, k] : [k, n], shift(stored));
  const perm = { attributes: { perm: { integers: [1, 0] } } };
  const dims = { scalar: [], one: [1], columns: [n], blocks: form.turned ? [n, blocks] : [blocks, n] };
  const lies = <T extends Int8Array | Float32Array>(data: T): T => {
    if (form.scales === 'scalar' || form.scales === 'one') return data.slice(0, 1) as T;
    return form.scales === 'blocks' && form.turned ? turned(data, blocks) : data;
  };
  const scale = m.floats(`s_${name}`, dims[form.scales], lies(w.scale));
  const zero =
    form.zeroPoint === false
      ? []
      : [m.tensor(`z_${name}`, type, dims[form.scales], shift(lies(w.zeroPoint)))];
  if (form.transpose === 'before') q = m.node('Transpose', [q], [`qt_${name}`], perm);
  const lyingTurned = Boolean(form.turned) !== (form.transpose === 'before');
  const attributes: Record<string, number> =
    form.scales === 'columns'
      ? { axis: lyingTurned ? 0 : 1 }
      : form.scales === 'blocks'
        ? { axis: form.turned ? 1 : 0, block_size: block }
        : {};
  const value = m.node('DequantizeLinear', [q, scale, ...zero], [`w_${name}`], {
    attributes: Object.fromEntries(
      Object.entries({ ...attributes, ...form.attributes }).map(([key, integer]) => [key, { integer }]),
    ),
  });
  return form.transpose === 'behind' ? m.node('Transpose', [value], [`wt_${name}`], perm) : value;
}

const build = (weights: readonly Integers[], form: Form, opset = 17): Uint8Array =>
  layerOf(
    K,
    (m, h) =>
      weights.map((w, i) => {
        const name = NAMES[i] ?? '';
        return m.node('MatMul', [h, dequantize(m, name, w, form)], [name]);
      }),
    { opset, irVersion: opset < 21 ? 8 : 10 },
  );

/** Integers for such a form. */
function weightsFor(form: Form): Integers[] {
  return [8, 16, 16].map((n, i) => {
    const w = integers(
      K,
      n,
      30 + i,
      form.scales === 'blocks' ? 16 : K,
      form.zeroPoint === false && !form.unsigned,
    );
    // Without a zero point a uint8 stands for itself: 128 more than the int8 that it becomes.
    if (form.zeroPoint === false && form.unsigned) w.zeroPoint.fill(-128);
    if (form.scales !== 'scalar' && form.scales !== 'one') return w;
    return { ...w, scale: w.scale.fill(w.scale[0] ?? 1), zeroPoint: w.zeroPoint.fill(w.zeroPoint[0] ?? 0) };
  });
}

describe('weights behind DequantizeLinear', () => {
  for (const scales of ['scalar', 'one', 'columns', 'blocks'] as const)
    for (const type of ['int8', 'uint8'])
      for (const zeroPoint of [true, false])
        for (const lies of ['[K, N]', '[N, K], Transpose behind', '[N, K], Transpose before']) {
          if (lies.endsWith('before') && scales === 'blocks') continue;
          const transpose = lies.endsWith('behind') ? 'behind' : 'before';
          const form: Form = {
            scales,
            unsigned: type === 'uint8',
            zeroPoint,
            ...(lies === '[K, N]' ? {} : { turned: true, transpose }),
          };
          it(`${type} ${lies}, scales: ${scales}${zeroPoint ? ', zero points' : ''}`, async () => {
            const weights = weightsFor(form);
            const original = build(weights, form, scales === 'blocks' ? 21 : 17);
            const result = await checkFused(original, {
              inputs: inputOf(K),
              reference: floatLayer(K, weights.map(meaning)),
            });
            await checkFused(original, { inputs: inputOf(K) });
            expect(carried(result)).to.deep.equal(weights.map(meaning));
            expect(result.ops.filter((op) => op === 'DequantizeLinear')).to.deep.equal([]);
            const symmetric = !zeroPoint && type === 'int8';
            expect(result.nodes[0]?.inputs).to.have.length(symmetric ? 6 : 7);
            expect(result.report.fused[0]?.rules.projection).to.equal('dequantize+matmul');
          });
        }

  it('a Gemm with transB, alpha and a bias', async () => {
    const weights = [8, 16, 16].map((n, i) => integers(K, n, 60 + i));
    const bias = uniform(16, 1, 8);
    for (const alpha of [1, 0.5, 0.3]) {
      const original = layerOf(
        K,
        (m, h) =>
          weights.map((w, i) => {
            const name = NAMES[i] ?? '';
            const value = dequantize(m, name, w, {
              scales: 'columns',
              turned: true,
              attributes: { axis: 0 },
            });
            const c = m.floats(`c_${name}`, [w.n], bias.subarray(0, w.n));
            return m.node('Gemm', [h, value, c], [name], {
              attributes: { transB: { integer: 1 }, alpha: { float: alpha } },
            });
          }),
        { dims: ['rows', K] },
      );
      const result = await checkFused(original, { inputs: [xTensor([6, K])] });
      expect(result.nodes[0]?.integer('transposed', 0)).to.equal(1);
      expect(result.report.fused[0]?.rules.projection).to.equal('dequantize+gemm');
      const factor = Math.fround(alpha);
      carried(result).forEach((values, part) => {
        const w = weights[part];
        if (!w) throw new Error('no weight');
        const expected = meaning({ ...w, scale: w.scale.map((value) => value * factor) });
        expect(values).to.deep.equal(expected);
      });
    }
  });

  it('a single packed weight that is int8 stays the initialiser that it is', async () => {
    const w = integers(K, 24, 70);
    const original = layerOf(K, (m, h) => {
      const packed = m.node('MatMul', [h, dequantize(m, 'w', w, { scales: 'columns' })], ['packed']);
      const widths = m.integers('widths', [3], [8, 8, 8]);
      m.node('Split', [packed, widths], [...NAMES], { attributes: { axis: { integer: -1 } } });
      return NAMES;
    });
    const { nodes } = await checkFused(original, { inputs: inputOf(K) });
    expect(nodes[0]?.inputs[1]).to.equal('q_w');
  });

  it('of different layouts in one node: one scale, one a column and blocks come to blocks', async () => {
    const forms: Form[] = [{ scales: 'scalar' }, { scales: 'columns' }, { scales: 'blocks' }];
    const weights = forms.map((form) => ({ form, w: weightsFor(form)[1] as Integers }));
    const original = layerOf(
      K,
      (m, h) =>
        weights.map(({ form, w }, i) => {
          const name = NAMES[i] ?? '';
          return m.node('MatMul', [h, dequantize(m, name, w, form)], [name]);
        }),
      { opset: 21, irVersion: 10 },
    );
    const result = await checkFused(original, { inputs: inputOf(K) });
    expect(carried(result)).to.deep.equal(weights.map(({ w }) => meaning(w)));
    expect(result.report.fused[0]?.scaleBlock).to.equal(16);
  });

  it('a weight dequantised for another reader as well stays for it', async () => {
    const weights = weightsFor({ scales: 'columns' });
    const original = layerOf(
      K,
      (m, h) =>
        weights.map((w, i) =>
          m.node('MatMul', [h, dequantize(m, NAMES[i] ?? '', w, { scales: 'columns' })], [NAMES[i] ?? '']),
        ),
      { after: (m) => void m.output(m.node('Neg', ['w_k'], ['minus'])) },
    );
    const { ops } = await checkFused(original, { inputs: inputOf(K) });
    expect(ops.filter((op) => op === 'DequantizeLinear')).to.have.length(1);
  });

  it('gamma, beta and biases behind DequantizeLinear are constants too', async () => {
    const vector = (m: ModelBuilder, name: string, n: number, scale: number, type: number = int8): string => {
      const values = Int32Array.from(uniform(n, 100, 4), Math.floor);
      const q = m.tensor(
        `q_${name}`,
        type,
        [n],
        type === int8 ? bytesOf(Int8Array.from(values)) : bytesOf(values),
      );
      return m.node('DequantizeLinear', [q, m.floats(`s_${name}`, [], [scale])], [name]);
    };
    const weights = weightsFor({ scales: 'columns' });
    const original = layerOf(
      K,
      (m, h) =>
        weights.map((w, i) => {
          const name = NAMES[i] ?? '';
          const product = m.node('MatMul', [h, dequantize(m, name, w, { scales: 'columns' })], [`${name}0`]);
          return m.node('Add', [vector(m, `b_${name}`, w.n, 0.001, int32), product], [name]);
        }),
      {
        norm: (m, x) =>
          m.node('LayerNormalization', [x, vector(m, 'g', K, 0.01), vector(m, 'b', K, 0.01)], ['h']),
      },
    );
    const { report, ops, bytes } = await checkFused(original, { inputs: inputOf(K) });
    expect(report.fused[0]?.rules.projection).to.equal('dequantize+matmul+add');
    expect(ops).to.not.include('DequantizeLinear');
    // A Buffer, as readFile gives it, is part of a larger piece of memory, at any address.
    for (const before of [3, 4]) {
      const pool = Buffer.alloc(before + original.length, 0x55);
      pool.set(original, before);
      expect(Buffer.compare(fuseBytes(pool.subarray(before)).model, bytes), `at ${before}`).to.equal(0);
    }
  });

  const weights = weightsFor({ scales: 'columns' });
  const odd = (write: (m: ModelBuilder, name: string, w: Integers) => string): Uint8Array =>
    layerOf(
      K,
      (m, h) => weights.map((w, i) => m.node('MatMul', [h, write(m, NAMES[i] ?? '', w)], [NAMES[i] ?? ''])),
      { opset: 21, irVersion: 10 },
    );
  for (const [what, original, reason, at] of [
    [
      'scales along K',
      odd((m, name, w) => {
        const q = m.tensor(`q_${name}`, int8, [K, w.n], bytesOf(w.values));
        const attributes = { axis: { integer: 0 } };
        return m.node('DequantizeLinear', [q, m.floats(`s_${name}`, [K], uniform(K, 0.1, 2))], [`w_${name}`], { attributes });
      }),
      "'w_q' has a scale of shape [48] along K, expected one for each output column",
      'w_q_node',
    ],
    [
      'blocks along N',
      odd((m, name, w) => {
        const q = m.tensor(`q_${name}`, int8, [K, w.n], bytesOf(w.values));
        const s = m.floats(`s_${name}`, [K, w.n / 4], uniform((K * w.n) / 4, 0.1, 2));
        const attributes = { axis: { integer: 1 }, block_size: { integer: 4 } };
        return m.node('DequantizeLinear', [q, s], [`w_${name}`], { attributes });
      }),
      "'w_q' has blocks along N, expected them along K",
      'w_q_node',
    ],
    [
      'integers of 32 bits',
      odd((m, name, w) => {
        const q = m.tensor(`q_${name}`, int32, [K, w.n], bytesOf(Int32Array.from(w.values)));
        return m.node('DequantizeLinear', [q, m.floats(`s_${name}`, [], [0.1])], [`w_${name}`]);
      }),
      "the weight 'w_q' is made of int32, expected int8 or uint8",
      'w_q_node',
    ],
    [
      'a scale that is computed',
      odd((m, name, w) => {
        const q = m.tensor(`q_${name}`, int8, [K, w.n], bytesOf(w.values));
        const s = m.node('Abs', [m.floats(`s_${name}`, [], [0.1])], [`abs_${name}`]);
        return m.node('DequantizeLinear', [q, s], [`w_${name}`]);
      }),
      "the scale of 'w_q' is not constant: 'abs_q' is computed by Abs 'abs_q_node'",
      'w_q_node',
    ],
    [
      'a Cast behind that rounds',
      odd((m, name, w) => {
        const value = dequantize(m, name, w, { scales: 'columns' });
        const low = m.node('Cast', [value], [`low_${name}`], { attributes: { to: { integer: float16 } } });
        return m.node('Cast', [low], [`f_${name}`], { attributes: { to: { integer: float } } });
      }),
      "the weight is not constant: 'f_q' is computed by Cast 'f_q_node'",
      'q_node',
    ],
    [
      'a Reshape behind',
      odd((m, name, w) => {
        const value = dequantize(m, name, w, { scales: 'columns' });
        return m.node('Reshape', [value, m.integers(`dims_${name}`, [2], [K, w.n])], [`r_${name}`]);
      }),
      "the weight is not constant: 'r_q' is computed by Reshape 'r_q_node'",
      'q_node',
    ],
  ] as const)
    it(`refuses ${what}`, () => checkRefused(original, reason, at)); // prettier-ignore
});

describe('integers that a model says it has', () => {
  it('and has not are an error, before scales are repeated for them', () => {
    const original = layerOf(K, (m, h) => {
      const q = m.tensor('q', int8, [K, 2 ** 31 - 1], new Uint8Array(K));
      return [m.node('MatMul', [h, m.node('DequantizeLinear', [q, m.floats('s', [], [0.1])], ['w'])], ['p'])];
    });
    expect(() => fuseBytes(original))
      .to.throw(QkvGemmError, "Tensor 'q' is int8 [48, 2147483647]")
      .with.property('code', 'INVALID_MODEL');
  });

  it('and lie in an external file are an error without it', () => {
    const original = layerOf(K, (m, h) => {
      const scale = m.external('s', [8], { location: 'data.bin', offset: 0 });
      const q = m.tensor('q', int8, [K, 8], new Uint8Array(K * 8));
      return [m.node('MatMul', [h, m.node('DequantizeLinear', [q, scale], ['w'])], ['p'])];
    });
    expect(() => fuseBytes(original))
      .to.throw(QkvGemmError, "Tensor 's' is stored in 'data.bin'")
      .with.property('code', 'EXTERNAL_DATA');
  });
});

describe('activations that are quantised with constant scales', () => {
  const weights = weightsFor({ scales: 'columns' });
  const pair = (m: ModelBuilder, value: string, name: string): string => {
    const [s, z] = [
      m.floats(`${name}_s`, [], [0.03]),
      m.tensor(`${name}_z`, uint8, [], new Uint8Array([120])),
    ];
    const q = m.node('QuantizeLinear', [value, s, z], [`${name}_q`]);
    return m.node('DequantizeLinear', [q, s, z], [`${name}_dq`]);
  };
  const matMul = (m: ModelBuilder, h: string, i: number): string => {
    const w = weights[i];
    if (!w) throw new Error('three weights');
    return m.node('MatMul', [h, dequantize(m, NAMES[i] ?? '', w, { scales: 'columns' })], [NAMES[i] ?? '']);
  };

  it('between norm and projections: refused, with the reason', () => {
    checkRefused(
      layerOf(K, (m, h) => {
        const rounded = pair(m, h, 'h');
        return NAMES.map((_, i) => matMul(m, rounded, i));
      }),
      "its output 'h' is rounded by QuantizeLinear before MatMul 'q_node'; the fused op would leave that rounding out",
      'h_q_node',
    );
  });

  it('before an integer product: refused, with the reason', () => {
    checkRefused(
      layerOf(K, (m, h) => {
        const [s, z] = [m.floats('h_s', [], [0.03]), m.tensor('h_z', uint8, [], new Uint8Array([120]))];
        const q = m.node('QuantizeLinear', [h, s, z], ['h_q']);
        return weights.map((w, i) => {
          const name = NAMES[i] ?? '';
          const b = m.tensor(`b_${name}`, int8, [K, w.n], bytesOf(w.values));
          const product = m.node('MatMulInteger', [q, b, z], [`i_${name}`]);
          return m.node('Cast', [product], [name], { attributes: { to: { integer: float } } });
        });
      }),
      "its output 'h' is rounded by QuantizeLinear before MatMulInteger 'i_q_node'; the fused op would leave that rounding out",
      'h_q_node',
    );
  });

  it('for other readers of the norm: kept there, and they read the norm that the op gives', async () => {
    const original = layerOf(K, (m, h) => NAMES.map((_, i) => matMul(m, h, i)), {
      after: (m, h) => void m.output(m.node('Neg', [pair(m, h, 'h')], ['minus'])),
    });
    const { report, ops } = await checkFused(original, { inputs: inputOf(K) });
    expect(report.fused[0]?.emitNorm).to.equal(true);
    expect(ops).to.include.members(['QuantizeLinear', 'DequantizeLinear']);
  });

  it('behind the projections: kept there', async () => {
    const original = layerOf(K, (m, h) => NAMES.map((name, i) => pair(m, matMul(m, h, i), `out_${name}`)), {
      expose: false,
    });
    const { ops, report } = fused(original);
    expect(ops.filter((op) => op === 'QuantizeLinear')).to.have.length(3);
    expect(report.fused[0]?.splits).to.deep.equal(weights.map(({ n }) => n));
    expect(fuseBytes(original).report.refused).to.deep.equal([]);
    // Outputs reach from -120 to 135 steps; the largest is more than 100.
    await checkFused(original, { inputs: inputOf(K), step: 1 / 100 });
  });
});
