import { expect } from 'chai';
import { type ModelBuilder, uniform } from '../models/builder.js';
import { checkFused } from './support/fused.js';
import { K, layer, N, weight, xTensor } from './support/layers.js';

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
