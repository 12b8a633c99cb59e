import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { ModelBuilder } from '../models/builder.js';
import { QkvGemmError } from '../ts/errors.js';
import { FolderSource } from '../ts/external_data.js';
import { DataType, type DataSource } from '../ts/onnx/tensor.js';
import { concat, MessageWriter, readFields } from '../ts/onnx/wire.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { toFloat32 } from '../ts/rewrite/weights/convert.js';
import { testFolder } from './support/command.js';
import { checkFused, fused, type Fused } from './support/fused.js';
import { K, layer, layerNorm, N, weightValues } from './support/layers.js';
import { spell } from './support/norms.js';

const NAMES = ['q', 'k', 'v'];
const VALUES = NAMES.map((_, i) => weightValues(K * N, i));

/** A layer whose three weights have these values, [K, N] each. */
const withWeights = (values: readonly Float32Array[], transposed = false): Uint8Array =>
  layer({
    project: (m, h) =>
      NAMES.map((name, i) => {
        const data = values[i] ?? new Float32Array(K * N);
        if (!transposed) return m.node('MatMul', [h, m.floats(`w_${name}`, [K, N], data)], [name]);
        const turned = Float32Array.from(data, (_, at) => data[(at % K) * N + Math.floor(at / K)] ?? NaN);
        const w = m.node('Transpose', [m.floats(`s_${name}`, [N, K], turned)], [`w_${name}`]);
        return m.node('MatMul', [h, w], [name]);
      }),
  });

/** The joined weight as three matrices [K, N], dequantised. */
function stored({ model, nodes }: Fused): Float32Array[] {
  const tensor = model.graph.initializers.get(nodes[0]?.inputs[1] ?? '');
  if (!tensor) throw new Error('the weight is no initialiser');
  const transposed = nodes[0]?.integer('transposed', 0) === 1;
  expect(tensor.dims).to.deep.equal(transposed ? [3 * N, K] : [K, 3 * N]);
  const scales = model.graph.initializers.get(nodes[0]?.inputs[5] ?? '');
  const scale = scales && toFloat32(scales.bytes(), scales.type);
  const bytes = tensor.bytes();
  const values = scale ? Int8Array.from(new Int8Array(bytes.slice().buffer)) : toFloat32(bytes, tensor.type);
  return NAMES.map((_, part) =>
    Float32Array.from({ length: K * N }, (_unused, i) => {
      const [row, column] = [Math.floor(i / N), part * N + (i % N)];
      const value = values[transposed ? column * K + row : row * 3 * N + column] ?? NaN;
      return scale ? Math.fround(value * (scale[column] ?? NaN)) : value;
    }),
  );
}

/** Signal to noise in dB. */
function sqnr(original: readonly Float32Array[], actual: readonly Float32Array[]): number {
  let [signal, noise] = [0, 0];
  original.forEach((values, part) =>
    values.forEach((value, i) => {
      signal += value ** 2;
      noise += (value - (actual[part]?.[i] ?? NaN)) ** 2;
    }),
  );
  return 10 * Math.log10(signal / noise);
}

/** Largest error of a weight, given the weight and the largest of its column: half a unit in the last place. */
const LIMITS = {
  fp16: (w: number) => Math.abs(w) * 2 ** -11 + 2 ** -25,
  bf16: (w: number) => Math.abs(w) * 2 ** -8,
  // Half a step of max / 127; the scale itself is rounded to float32.
  int8: (_: number, largest: number) => (largest / 254) * (1 + 1e-5),
} as const;

describe('the type of fused weights', () => {
  for (const transposed of [false, true]) {
    const layout = transposed ? '[N, K]' : '[K, N]';

    it(`keep, ${layout}: the numbers side by side, unchanged`, async () => {
      const result = await checkFused(withWeights(VALUES, transposed));
      expect(stored(result)).to.deep.equal(VALUES);
      expect(result.report.fused[0]?.weightType).to.equal('float32');
      expect(result.report.fused[0]).to.not.have.property('weightSqnrDb');
    });

    for (const [dtype, type] of [
      ['fp16', 'float16'],
      ['bf16', 'bfloat16'],
      ['int8', 'int8'],
    ] as const) {
      it(`${dtype}, ${layout}: each number within its bound, and the products are of the numbers stored`, async () => {
        const original = withWeights(VALUES, transposed);
        const options = { options: { dtype } };
        const result = fused(original, options);
        const numbers = stored(result);
        VALUES.forEach((values, part) =>
          values.forEach((w, i) => {
            const column = values.filter((_, at) => at % N === i % N);
            const error = Math.abs(w - (numbers[part]?.[i] ?? NaN));
            expect(error, `${w}`).to.be.at.most(LIMITS[dtype](w, Math.max(...column.map(Math.abs))));
          }),
        );
        const [site] = result.report.fused;
        expect(site?.weightType).to.equal(type);
        expect(site?.weightSqnrDb).to.be.closeTo(sqnr(VALUES, numbers), 1e-3);
        // Against the same layer with the rounded weights there is nothing but the order of sums.
        await checkFused(original, { ...options, reference: withWeights(numbers) });
      });
    }
  }

  it('int8: one scale a column, largest magnitude at 127, zeros for a column of zeros', () => {
    const values = VALUES.map((data, part) => data.map((w, i) => (part === 1 && i % N === 2 ? 0 : w)));
    const { model, nodes } = fused(withWeights(values), { options: { dtype: 'int8' } });
    const [q, scales] = [1, 5].map((at) => model.graph.initializers.get(nodes[0]?.inputs[at] ?? ''));
    expect(scales?.dims).to.deep.equal([3 * N]);
    const scale = toFloat32(scales?.bytes() ?? new Uint8Array(), DataType.float);
    const numbers = new Int8Array((q?.bytes() ?? new Uint8Array()).slice().buffer);
    for (let column = 0; column < 3 * N; column++) {
      const data = values[Math.floor(column / N)]?.filter((_, i) => i % N === column % N) ?? [];
      const largest = Math.max(...data.map(Math.abs));
      const found = Math.max(...numbers.filter((_, i) => i % (3 * N) === column).map(Math.abs));
      expect(scale[column]).to.equal(largest === 0 ? 1 : Math.fround(largest / 127));
      expect(found).to.equal(largest === 0 ? 0 : 127);
    }
  });

  it('what a type cannot hold keeps its projection out of the node, and the model as it was where there is no other', () => {
    const spoilt = (value: number): Uint8Array =>
      withWeights(VALUES.map((data, part) => data.map((w, i) => (part === 1 && i === 3 ? value : w))));
    for (const [dtype, value, reason] of [
      ['fp16', 70000, 'weight 70000 is beyond the range of fp16'],
      ['bf16', 3.4e38, `weight ${Math.fround(3.4e38)} is beyond the range of bf16`],
      ['int8', NaN, 'the weights cannot be int8: column 3 holds NaN'],
      ['int8', -Infinity, 'the weights cannot be int8: column 3 holds -Infinity'],
    ] as const) {
      const { report } = fuseBytes(spoilt(value), { dtype });
      expect(report.fused.map(({ splits, replaced }) => [splits, replaced])).to.deep.equal([
        [
          [N, N],
          ['h_node', 'q_node', 'v_node'],
        ],
      ]);
      expect(report.refused.map((refusal) => [refusal.node, refusal.reason])).to.deep.equal([
        ['k_node', reason],
      ]);
      const alone = spoilt(value);
      const { model, report: none } = fuseBytes(alone, { dtype, skip: ['q_node', 'v_node'] });
      expect(none.fused).to.deep.equal([]);
      expect(none.refused.map((refusal) => refusal.reason)).to.deep.equal([reason]);
      expect(model).to.equal(alone);
    }
  });

  it('float16 weights of a float32 layer stay as they are stored, with keep and with fp16', () => {
    const project = (m: ModelBuilder, h: string): string[] => {
      const w = m.floats('s', [K, 3 * N], weightValues(3 * K * N, 5), DataType.float16);
      const cast = m.node('Cast', [w], ['w'], { attributes: { to: { integer: DataType.float } } });
      const packed = m.node('MatMul', [h, cast], ['packed']);
      m.node('Split', [packed, m.integers('n', [3], [N, N, N])], NAMES, {
        attributes: { axis: { integer: 2 } },
      });
      return NAMES;
    };
    for (const dtype of ['keep', 'fp16'] as const) {
      const { nodes, report } = fused(layer({ project }), { options: { dtype } });
      expect(nodes[0]?.inputs[1]).to.equal('s');
      expect(report.fused[0]?.weightType).to.equal('float16');
      expect(report.fused[0]).to.not.have.property('weightSqnrDb');
    }
  });
});

describe('initialisers', () => {
  it('that nobody reads any more go; those read elsewhere stay, byte for byte', async () => {
    const after = (m: ModelBuilder): void => void m.output(m.node('Neg', ['w_k'], ['less']));
    for (const dtype of ['keep', 'int8'] as const) {
      const original = layer({ after });
      const { model } = await checkFused(original, {
        options: { dtype },
        bound: dtype === 'keep' ? 2e-5 : 2e-2,
      });
      const names = [...model.graph.initializers.keys()];
      expect(names).to.include('w_k').and.to.not.include.members(['w_q', 'w_v']);
      const values = toFloat32(
        model.graph.initializers.get('w_k')?.bytes() ?? new Uint8Array(),
        DataType.float,
      );
      expect(Float32Array.from(values)).to.deep.equal(VALUES[1]);
    }
  });

  it('that are graph outputs themselves stay', async () => {
    const { model } = await checkFused(layer({ after: (m) => void m.output('w_q') }));
    expect(model.graph.initializers.has('w_q')).to.equal(true);
  });

  it('in typed fields instead of raw data, packed and not', async () => {
    const project = (m: ModelBuilder, h: string): string[] =>
      NAMES.map((name) => m.node('MatMul', [h, `w_${name}`], [name]));
    // TensorProto: dims 1, data_type 2, float_data 4, name 8; GraphProto: initializer 5.
    const typed = NAMES.map((name, i) => {
      const writer = new MessageWriter().integer(1, K).integer(1, N).integer(2, DataType.float);
      const data = VALUES[i] ?? new Float32Array();
      if (i === 0) writer.bytes(4, new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
      else for (const value of data) writer.float(4, value);
      return new MessageWriter().bytes(5, writer.string(8, `w_${name}`).finish()).finish();
    });
    const parts = readFields(layer({ project }), 'the model').map((field) =>
      field.number === 7 ? new MessageWriter().bytes(7, [field.value, ...typed]).finish() : field.span,
    );
    expect(stored(await checkFused(concat(parts)))).to.deep.equal(VALUES);
  });
});

describe('weights in external data', () => {
  const folder = testFolder();
  const place = (offset: number): { location: string; offset: number } => ({ location: 'data.bin', offset });
  const size = 4 * K * N;
  const external = (m: ModelBuilder, h: string): string[] =>
    NAMES.map((name, i) => m.node('MatMul', [h, m.external(`w_${name}`, [K, N], place(i * size))], [name]));
  const write = (...parts: Float32Array[]): DataSource => {
    const bytes = parts.map((data) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
    fs.writeFileSync(path.join(folder(), 'data.bin'), concat(bytes));
    return new FolderSource(folder());
  };

  it('come out as the same weights inside the model do', () => {
    const source = write(...VALUES);
    for (const dtype of ['keep', 'fp16', 'bf16', 'int8'] as const) {
      const inside = fuseBytes(layer(), { dtype });
      const outside = fuseBytes(layer({ project: external }), { dtype }, source);
      expect(Buffer.compare(inside.model, outside.model), dtype).to.equal(0);
    }
  });

  it('a single one that is kept is not read: it stays where it is', () => {
    const project = (m: ModelBuilder, h: string): string[] => external(m, h).slice(0, 1);
    const source: DataSource = {
      check: () => undefined,
      read: () => expect.fail('nothing needs these bytes'),
    };
    const { model } = fused(layer({ project }), { source });
    expect(model.graph.initializers.get('w_q')?.external).to.deep.equal({ ...place(0), length: size });
  });

  it('the constants of a decomposed norm may lie there as well', () => {
    const source = write(new Float32Array([2]), new Float32Array([0.125]));
    const norm = (m: ModelBuilder, x: string): string =>
      spell(m, x, true, { external: { two: place(0), epsilon: place(4) } });
    const { report } = fused(layer({ opset: 13, norm }), { source });
    expect(report.fused[0]?.epsilon).to.equal(0.125);
  });

  it('without a source, or with a file that is too short, they are an error', () => {
    const original = layer({ project: external });
    expect(() => fuseBytes(original))
      .to.throw(QkvGemmError, "Tensor 'w_q' is stored in 'data.bin'")
      .with.property('code', 'EXTERNAL_DATA');
    const source = write(weightValues(K * N, 0));
    expect(() => fuseBytes(original, {}, source))
      .to.throw(QkvGemmError, "Tensor 'w_k' needs")
      .with.property('code', 'EXTERNAL_DATA');
  });
});

describe('weights that several nodes share', () => {
  /** Two layers, one behind the other, whose projections have these weights. */
  const two = (write: (m: ModelBuilder, h: string, second: boolean) => string[]): Uint8Array => {
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    const swap = { attributes: { perm: { integers: [0, 2, 1] } } };
    const [q = '', k = '', v = ''] = write(m, layerNorm(m, 'x'), false);
    const p = m.node('MatMul', [q, m.node('Transpose', [k], ['kt'], swap)], ['p']);
    const up = m.node('MatMul', [m.node('MatMul', [p, v], ['pv']), m.floats('o', [N, K], weightValues(N * K, 9))], ['up']);
    const g = m.node('LayerNormalization', [up, 'gamma', 'beta'], ['g']);
    const [a = '', b = '', c = ''] = write(m, g, true);
    m.output(m.node('MatMul', [m.node('MatMul', [a, m.node('Transpose', [b], ['bt'], swap)], ['ab']), c], ['y']));
    return m.finish();
  }; // prettier-ignore
  const products = (m: ModelBuilder, h: string, second: boolean, names: readonly string[]): string[] =>
    names.map((name, i) => m.node('MatMul', [h, name], [`${second ? 'b' : 'a'}${i}`]));
  const shared = (order: readonly string[]): Uint8Array =>
    two((m, h, second) => {
      const names = ['w_q', 'w_k', 'w_v'];
      if (!second) names.forEach((name, i) => m.floats(name, [K, N], weightValues(K * N, i)));
      return products(m, h, second, second ? order : names);
    });

  for (const [dtype, bound] of [['keep', 2e-5], ['fp16', 3e-3], ['int8', 5e-2]] as const) {
    it(`are packed once: ${dtype}`, async () => {
      const { model, nodes } = await checkFused(shared(['w_q', 'w_k', 'w_v']), { count: 2, options: { dtype }, bound });
      expect(nodes.map(({ inputs }) => [inputs[1], inputs[5]])).to.deep.equal([
        [nodes[0]?.inputs[1], nodes[0]?.inputs[5]],
        [nodes[0]?.inputs[1], nodes[0]?.inputs[5]],
      ]);
      expect(model.graph.initializers.has('w_q')).to.equal(false);
    });
  } // prettier-ignore

  it('are packed for each where their order, or what is done with them, differs', async () => {
    for (const original of [
      shared(['w_q', 'w_v', 'w_k']),
      two((m, h, second) => {
        if (!second) ['w_q', 'w_k', 'w_v'].forEach((name, i) => m.floats(name, [N, N], weightValues(N * N, i)));
        const cut = second ? 'MatMul' : 'Gemm';
        const flat = m.node('MatMul', [h, second ? 'down' : m.floats('down', [K, N], weightValues(K * N, 5))], [`${cut}_in`]);
        const g = m.node('LayerNormalization', [flat, second ? 'scale' : m.floats('scale', [N], weightValues(N, 6))], [`${cut}_h`]);
        return ['w_q', 'w_k', 'w_v'].map((name, i) => {
          const turned = second ? m.node('Transpose', [name], [`${name}_t`]) : name;
          return m.node('MatMul', [g, turned], [`${second ? 'b' : 'a'}${i}`]);
        });
      }),
    ]) {
      const { nodes } = await checkFused(original, { count: 2 });
      expect(new Set(nodes.map(({ inputs }) => inputs[1])).size).to.equal(2);
    }
  }); // prettier-ignore
});
