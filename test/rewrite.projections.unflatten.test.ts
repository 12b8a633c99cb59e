import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { type ModelBuilder, uniform } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { checkFused } from './support/fused.js';
import { K, layer, layerNorm, N, weight, xTensor } from './support/layers.js';

const NAMES = ['q', 'k', 'v'];
const REST = ['Transpose', 'MatMul', 'Transpose', 'MatMul'];

/** Reshape, packed Gemm, Reshape, Split: GPT-2's. */
const gpt2 = (
  dims: readonly (number | string)[],
  back: readonly number[],
  after?: (m: ModelBuilder) => void,
): Uint8Array =>
  layer({
    dims,
    project: (m, h) => {
      const flat = m.node('Reshape', [h, m.integers('flat', [2], [-1, K])], ['h_flat']);
      const c = m.floats('c', [3 * N], uniform(3 * N, 0.9, 60));
      const product = m.node('Gemm', [flat, weight(m, 'w', 0, [K, 3 * N]), c], ['product']);
      const packed = m.node('Reshape', [product, m.integers('back', [3], back)], ['packed']);
      m.node('Split', [packed], NAMES, { attributes: { axis: { integer: 2 } } });
      return NAMES;
    },
    ...(after ? { after } : {}),
  });

describe('a Reshape that gives a Gemm its leading dimensions back', () => {
  for (const [what, dims, back] of [
    ['all sizes stated', [2, 5, K], [2, 5, 3 * N]],
    ['an open batch', ['batch', 5, K], [-1, 5, 3 * N]],
    ['an open length', [2, 'sequence', K], [2, -1, 3 * N]],
    ['a size that Reshape works out although it is stated', [2, 5, K], [2, -1, 3 * N]],
  ] as const) {
    it(`goes, and the Split with it: ${what}`, async () => {
      const { report, nodes, ops } = await checkFused(gpt2(dims, back));
      expect(ops).to.deep.equal(['QKVGemm', ...REST]);
      expect(report.fused[0]?.rules.projection).to.equal('reshape+gemm+reshape+split');
      expect(nodes[0]?.inputs).to.deep.equal(['x', 'w', 'gamma', 'beta', 'c']);
      expect(nodes[0]?.outputs).to.deep.equal(['q', '', 'k', 'v']);
    });
  }

  for (const [what, dims, back] of [
    ['to other leading dimensions', [2, 6, K], [3, 4, 3 * N]],
    ['with two open dimensions', ['batch', 'sequence', K], [2, -1, 3 * N]],
    ['with a zero, which copies the number of rows', ['batch', 1, K], [0, 1, 3 * N]],
    ['to pieces of rows', [2, 6, K], [2, -1, 3 * N * 2]],
  ] as const) {
    it(`stays where it goes ${what}`, async () => {
      const shape = dims.map((dim, i) => (typeof dim === 'number' ? dim : [2, 5][i])) as number[];
      const { ops } = await checkFused(gpt2(dims, back), { inputs: [xTensor(shape)] });
      expect(ops).to.include('Split').and.to.include('Reshape');
    });
  }

  it('stays where the product is read elsewhere', async () => {
    const { ops } = await checkFused(gpt2([2, 5, K], [2, 5, 3 * N], (m) => void m.output('product')));
    expect(ops).to.include('Split');
  });
});

describe('a Reshape to a shape that the graph computes', () => {
  const K3 = 3 * N;
  type Shape = (m: ModelBuilder, h: string) => string;
  const of = (m: ModelBuilder, opType: string, inputs: string[], output: string, attributes = {}): string =>
    m.node(opType, inputs, [output], { attributes });
  const ints = (m: ModelBuilder, name: string, values: number[], dims = [values.length]): string =>
    m.integers(name, dims, values);
  /** Elements of the shape of a value, one by one, as TorchScript's exporter writes x.size(). */
  const sizes = (m: ModelBuilder, value: string, axes: readonly number[]): string[] =>
    axes.map((axis, i) => {
      const one = of(
        m,
        'Gather',
        [of(m, 'Shape', [value], `s${i}`), ints(m, `at${i}`, [axis], [])],
        `g${i}`,
        { axis: { integer: 0 } },
      );
      return of(m, 'Unsqueeze', [one, ints(m, `zero${i}`, [0])], `u${i}`);
    });
  const joined = (m: ModelBuilder, parts: string[]): string =>
    of(m, 'Concat', [...parts, ints(m, 'n', [K3])], 'target', { axis: { integer: 0 } });
  const leading = (m: ModelBuilder, value: string, end = -1): string =>
    of(m, 'Slice', [of(m, 'Shape', [value], 's'), ints(m, 'from', [0]), ints(m, 'to', [end])], 'lead');

  /** Behind a Reshape to dimensions that callers give: nobody knows how many. */
  const unrankedNorm = (m: ModelBuilder, x: string): string =>
    layerNorm(m, of(m, 'Reshape', [x, m.input('x_dims', ['rank'], DataType.int64)], 'x_open'));

  /** GPT-2's Conv1D: view to rows, Gemm, view back. `first` also computes the shape of the first view. */
  const conv1d = (back: Shape, { open = false, first = false } = {}): Uint8Array =>
    layer({
      ...(open ? { norm: unrankedNorm } : {}),
      project: (m, h) => {
        const rows = first
          ? of(
              m,
              'Concat',
              [
                ints(m, 'minus', [-1]),
                of(
                  m,
                  'Unsqueeze',
                  [
                    of(m, 'Gather', [of(m, 'Shape', [h], 'fs'), ints(m, 'last', [-1], [])], 'fg'),
                    ints(m, 'fz', [0]),
                  ],
                  'fu',
                ),
              ],
              'flat',
              { axis: { integer: 0 } },
            )
          : m.integers('flat', [2], [-1, K]);
        const flat = m.node('Reshape', [h, rows], ['h_flat']);
        const product = m.node(
          'Gemm',
          [flat, weight(m, 'w', 0, [K, K3]), m.floats('c', [K3], uniform(K3, 0.9, 60))],
          ['product'],
        );
        m.node('Split', [m.node('Reshape', [product, back(m, h)], ['packed'])], NAMES, {
          attributes: { axis: { integer: 2 } },
        });
        return NAMES;
      },
    });

  const proven: [string, Shape, Parameters<typeof conv1d>[1]?][] = [
    ['sizes one by one, of the norm', (m, h) => joined(m, sizes(m, h, [0, 1]))],
    [
      'sizes one by one, of its input, and a view whose rows are computed',
      (m) => joined(m, sizes(m, 'x', [0, 1])),
      { first: true },
    ],
    ['all sizes but the last in one Slice, rank known', (m, h) => joined(m, [leading(m, h)])],
    [
      'one size, and one that Reshape works out',
      (m, h) => joined(m, [...sizes(m, h, [0]), ints(m, 'open', [-1])]),
    ],
    ['of a copy of the norm', (m, h) => joined(m, [leading(m, of(m, 'Identity', [h], 'copy'))])],
    ['Shape with an end', (m, h) => joined(m, [of(m, 'Shape', [h], 's', { end: { integer: -1 } })])],
    [
      'in int32 on the way',
      (m, h) =>
        of(m, 'Cast', [of(m, 'Cast', [joined(m, [leading(m, h)])], 't32', { to: { integer: 6 } })], 't64', {
          to: { integer: 7 },
        }),
    ],
  ];
  for (const [what, back, options] of proven) {
    it(`goes where it is proven to restore: ${what}`, async () => {
      const { nodes, ops, report } = await checkFused(conv1d(back, options));
      expect(report.fused[0]?.rules.projection).to.equal('reshape+gemm+reshape+split');
      expect(nodes[0]?.outputs).to.deep.equal(['q', '', 'k', 'v']);
      // What only computed the shapes is gone with them.
      expect(ops).to.deep.equal(['QKVGemm', ...REST]);
    });
  }

  it('goes where the rank is not known, if all leading sizes are taken at once', async () => {
    const inputs = [xTensor(), new ort.Tensor('int64', [2n, 5n, BigInt(K)], [3])];
    const unranked = conv1d((m, h) => joined(m, [leading(m, h)]), { open: true });
    const proof = await checkFused(unranked, { inputs });
    expect(proof.report.fused[0]?.rules.projection).to.equal('reshape+gemm+reshape');
    const oneByOne = conv1d((m, h) => joined(m, sizes(m, h, [0, 1])), { open: true });
    const none = await checkFused(oneByOne, { inputs });
    expect(none.report.fused[0]?.rules.projection).to.equal('reshape+gemm');
  });

  const unproven: [string, Shape][] = [
    ['in another order', (m, h) => joined(m, sizes(m, h, [1, 0]))],
    [
      'of another value',
      (m, h) =>
        joined(m, sizes(m, of(m, 'Transpose', [h], 'turned', { perm: { integers: [1, 0, 2] } }), [0, 1])),
    ],
    [
      'of which one is computed',
      (m, h) => joined(m, [of(m, 'Mul', [leading(m, h), ints(m, 'ones', [1, 1])], 'same')]),
    ],
  ];
  for (const [what, back] of unproven) {
    it(`stays where the sizes are ${what}`, async () => {
      const { ops } = await checkFused(conv1d(back), { inputs: [xTensor([3, 3, K])] });
      expect(ops).to.include('Split').and.to.include('Reshape');
    });
  }
});
