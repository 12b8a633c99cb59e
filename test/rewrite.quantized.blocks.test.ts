/** `int8Block`: float weights become int8 with a scale for each block of rows of a column. */
import { expect } from 'chai';
import { ModelBuilder, uniform } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { toFloat32 } from '../ts/rewrite/weights/convert.js';
import { checkFused, fused } from './support/fused.js';
import { layerNorm } from './support/layers.js';
import { carried, floatLayer, inputOf, layerOf, NAMES, turned } from './support/quantized.js';

const K = 48;
const N = 8;
/** Each row larger than the one before, so that blocks differ in range. */
const VALUES = NAMES.map((_, i) =>
  uniform(K * N, 0.5, 20 + i).map((value, at) => value * 1.1 ** Math.floor(at / N)),
);

const build = (transposed: boolean): Uint8Array =>
  layerOf(K, (m, h) =>
    NAMES.map((name, i) => {
      const values = VALUES[i] ?? new Float32Array();
      if (!transposed) return m.node('MatMul', [h, m.floats(`w_${name}`, [K, N], values)], [name]);
      const w = m.node('Transpose', [m.floats(`s_${name}`, [N, K], turned(values, K))], [`w_${name}`]);
      return m.node('MatMul', [h, w], [name]);
    }),
  );

describe('int8 weights with scales of blocks along K', () => {
  for (const transposed of [false, true])
    for (const [int8Block, block] of [
      [8, 8],
      [16, 16],
      [48, 48],
      [64, 48],
    ] as const)
      it(`${int8Block} rows of ${K}, ${transposed ? '[N, K]' : '[K, N]'}`, async () => {
        const options = { dtype: 'int8', int8Block } as const;
        const original = build(transposed);
        const result = fused(original, { options });
        const { report, model, nodes } = result;
        const numbers = carried(result);
        const scale = model.graph.initializers.get(nodes[0]?.inputs[5] ?? '');
        expect(scale?.dims).to.deep.equal(block === K ? [3 * N] : [K / block, 3 * N]);
        const scales = toFloat32(scale?.bytes() ?? new Uint8Array(), DataType.float);
        let [signal, noise] = [0, 0];
        VALUES.forEach((values, part) => {
          for (let b = 0; b < K / block; b++)
            for (let column = 0; column < N; column++) {
              const rows = Array.from({ length: block }, (_, i) => (b * block + i) * N + column);
              const largest = Math.max(...rows.map((at) => Math.abs(values[at] ?? NaN)));
              expect(scales[b * 3 * N + part * N + column]).to.equal(Math.fround(largest / 127));
              for (const at of rows) {
                const error = Math.abs((values[at] ?? NaN) - (numbers[part]?.[at] ?? NaN));
                expect(error).to.be.at.most((largest / 254) * (1 + 1e-5));
                signal += (values[at] ?? NaN) ** 2;
                noise += error ** 2;
              }
            }
        });
        expect(report.fused[0]?.weightSqnrDb).to.be.closeTo(10 * Math.log10(signal / noise), 1e-3);
        expect(report.fused[0]?.scaleBlock).to.equal(block === K ? undefined : block);
        // The products are of the numbers stored.
        await checkFused(original, { options, inputs: inputOf(K), reference: floatLayer(K, numbers) });
      });

  it('shorter blocks lose less', () => {
    const errors = [48, 24, 8].map(
      (int8Block) =>
        fuseBytes(build(false), { dtype: 'int8', int8Block }).report.fused[0]?.weightSqnrDb ?? NaN,
    );
    expect(errors).to.deep.equal([...errors].sort((a, b) => a - b));
    expect((errors[2] ?? NaN) - (errors[0] ?? NaN)).to.be.above(3);
  });

  it('refuses a block that does not divide K', () => {
    const original = build(false);
    const { model, report } = fuseBytes(original, { dtype: 'int8', int8Block: 32 });
    expect(report.refused.map(({ reason }) => reason)).to.deep.equal([
      'K = 48 is no multiple of the 32 rows that share a scale',
    ]);
    expect(model).to.equal(original);
  });

  it('refuses what is not finite, as with one scale a column', () => {
    const values = new Float32Array(K * N).fill(NaN);
    const original = layerOf(K, (m, h) => [m.node('MatMul', [h, m.floats('w', [K, N], values)], ['q'])]);
    const { report } = fuseBytes(original, { dtype: 'int8', int8Block: 16 });
    expect(report.refused[0]?.reason).to.equal('the weights cannot be int8: column 0 holds NaN');
  });

  it('a model with nodes of both layouts says which ONNX Runtime its two bodies need', () => {
    const block = (k: number): Uint8Array => {
      const m = new ModelBuilder({ '': 17 });
      m.input('x', ['batch', 'sequence', 12]);
      const layer = (x: string, name: string, depth: number): string => {
        const h =
          depth === 12 && name === 'a'
            ? layerNorm(m, x)
            : m.node(
                'LayerNormalization',
                [
                  x,
                  m.floats(`g_${name}`, [depth], uniform(depth, 0.4, 3, 1)),
                  m.floats(`b_${name}`, [depth], uniform(depth, 0.3, 4)),
                ],
                [`h_${name}`],
              );
        const [q, p, v] = [0, 1, 2].map((i) =>
          m.node(
            'MatMul',
            [h, m.floats(`w${i}_${name}`, [depth, k], uniform(depth * k, 0.5, i + 5))],
            [`p${i}_${name}`],
          ),
        );
        const perm = { attributes: { perm: { integers: [0, 2, 1] } } };
        const scores = m.node(
          'MatMul',
          [q ?? '', m.node('Transpose', [p ?? ''], [`t_${name}`], perm)],
          [`scores_${name}`],
        );
        return m.node('MatMul', [scores, v ?? ''], [`o_${name}`]);
      };
      m.output(layer(layer('x', 'a', 12), 'b', k));
      return m.finish();
    };
    // 12 rows are one block; 48 rows are three.
    const { report } = fuseBytes(block(48), { dtype: 'int8', int8Block: 16 });
    expect(report.fused.map(({ scaleBlock }) => scaleBlock)).to.deep.equal([undefined, 16]);
    expect(report.functions).to.have.length(2);
    expect(report.requires).to.deep.equal({ irVersion: 10, onnxruntime: '1.27.0' });
    expect(fuseBytes(block(48), { dtype: 'int8' }).report.requires.irVersion).to.equal(8);
  });
});
