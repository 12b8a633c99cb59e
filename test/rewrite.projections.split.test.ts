import { expect } from 'chai';
import { ModelBuilder, uniform } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { checkFused, fused } from './support/fused.js';
import { attend, gammaOf, K, layer, N, weight, xTensor, type Layer } from './support/layers.js';
import { spell } from './support/norms.js';

const NAMES = ['q', 'k', 'v'];
const REST = ['Transpose', 'MatMul', 'Transpose', 'MatMul'];
const LAST = { axis: { integer: -1 } };

const spelt = (m: ModelBuilder, x: string): string => spell(m, x, false);

type Cut = (m: ModelBuilder, packed: string) => readonly string[];

/** A packed projection [K, n], with a bias, and what cuts it. */
const cutBy =
  (cut: Cut, n = 3 * N) =>
  (m: ModelBuilder, h: string): readonly string[] => {
    const product = m.node('MatMul', [h, weight(m, 'w', 0, [K, n])], ['product']);
    return cut(m, m.node('Add', [product, m.floats('bias', [n], uniform(n, 0.7, 8))], ['packed']));
  };
const cutLayer = (cut: Cut, settings: Layer = {}, n = 3 * N): Uint8Array =>
  layer({ project: cutBy(cut, n), ...settings });

const split =
  (widths: readonly number[], attributes: Record<string, { integer: number }> = LAST): Cut =>
  (m, packed) => {
    m.node('Split', [packed, m.integers('widths', [widths.length], widths)], NAMES.slice(0, widths.length), { attributes });
    return NAMES.slice(0, widths.length);
  }; // prettier-ignore

/** Slices of these columns, in this order; `steps` where there are any. */
const slices =
  (ranges: readonly (readonly [number, number])[], axis = -1, step?: number): Cut =>
  (m, packed) => {
    const axes = m.integers('axes', [1], [axis]);
    const steps = step === undefined ? [] : [m.integers('steps', [1], [step])];
    return ranges.map(([from, to], i) => {
      const name = NAMES[i] ?? `piece_${i}`;
      return m.node('Slice', [packed, m.integers(`from_${i}`, [1], [from]), m.integers(`to_${i}`, [1], [to]), axes, ...steps], [name]);
    });
  }; // prettier-ignore

const THIRDS = [[0, N], [N, 2 * N], [2 * N, 3 * N]] as const; // prettier-ignore

describe('a packed projection that is cut right behind it', () => {
  const FORMS: Record<string, [Uint8Array, readonly number[], string]> = {
    'Split of equal widths': [cutLayer(split([N, N, N])), [N, N, N], 'split'],
    'Split of other widths (grouped queries)': [cutLayer(split([12, 12])), [12, 12], 'split'],
    'Split on a positive axis': [cutLayer(split([N, N, N], { axis: { integer: 2 } })), [N, N, N], 'split'],
    'Split without widths': [
      cutLayer((m, packed) => [m.node('Split', [packed], NAMES, { attributes: LAST }), 'k', 'v']),
      [N, N, N],
      'split',
    ],
    'Split by a number of outputs, the last smaller': [
      cutLayer((m, packed) => {
        m.node('Split', [packed], NAMES, { attributes: { ...LAST, num_outputs: { integer: 3 } } });
        m.output('v');
        return ['q', 'k'];
      }, { opset: 18, expose: false }, 20), [7, 7, 6], 'split',
    ],
    'Split whose widths are an attribute': [
      cutLayer((m, packed) => {
        m.node('Split', [packed], NAMES, { attributes: { ...LAST, split: { integers: [N, N, N] } } });
        return NAMES;
      }, { opset: 11, norm: spelt }), [N, N, N], 'split',
    ],
    'Slices': [cutLayer(slices(THIRDS)), [N, N, N], 'slice'],
    'Slices in another order, the last to the end': [
      cutLayer(slices([[2 * N, Number.MAX_SAFE_INTEGER], [0, N], [-2 * N, -N]])), [N, N, N], 'slice',
    ],
    'Slices on a positive axis, with steps': [cutLayer(slices(THIRDS, 2, 1)), [N, N, N], 'slice'],
    'Slices whose limits are attributes': [
      cutLayer((m, packed) =>
        THIRDS.map(([from, to], i) =>
          m.node('Slice', [packed], [NAMES[i] ?? ''], {
            attributes: { starts: { integers: [from] }, ends: { integers: [to] }, axes: { integers: [2] } },
          }),
        ), { opset: 9, norm: spelt }), [N, N, N], 'slice',
    ],
  }; // prettier-ignore

  for (const [what, [original, widths, by]] of Object.entries(FORMS)) {
    it(what, async () => {
      const { report, nodes, ops, model } = await checkFused(original);
      expect(ops).to.not.include('Split').and.not.include('Slice');
      expect(report.fused[0]?.splits).to.deep.equal(widths);
      expect(nodes[0]?.integers('splits')).to.deep.equal(widths);
      expect(report.fused[0]?.rules.projection).to.equal(`matmul+add+${by}`);
      expect(nodes[0]?.inputs[1], 'the weight as it was stored').to.equal('w');
      expect([...model.graph.initializers.keys()]).to.not.include.members(['widths', 'axes']);
    });
  }

  it('a Gemm', async () => {
    const project = (m: ModelBuilder, h: string): readonly string[] =>
      split([N, N, N], { axis: { integer: 1 } })(
        m,
        m.node('Gemm', [h, weight(m, 'w', 0, [K, 3 * N])], ['p']),
      );
    const { ops } = await checkFused(layer({ dims: ['rows', K], project }), { inputs: [xTensor([6, K])] });
    expect(ops).to.deep.equal(['QKVGemm', ...REST]);
  });

  it('in parts beside another projection', async () => {
    const project = (m: ModelBuilder, h: string): string[] => {
      const q = m.node('MatMul', [h, weight(m, 'w_q', 3)], ['q']);
      const packed = m.node('MatMul', [h, weight(m, 'w', 0, [K, 2 * N])], ['packed']);
      m.node('Split', [packed], ['k', 'v'], { attributes: LAST });
      return [q, 'k', 'v'];
    };
    const { report, nodes } = await checkFused(layer({ project }));
    expect(report.fused[0]?.splits).to.deep.equal([N, N, N]);
    expect(nodes[0]?.outputs).to.deep.equal(['q', '', 'k', 'v']);
  });

  it('a piece that nobody reads has no name, but the first always has one', async () => {
    const pieces = (...names: readonly [string, string]): Uint8Array => {
      const cut: Cut = (m, packed) => {
        const widths = m.integers('widths', [4], [N, N, 4, 4]);
        m.node('Split', [packed, widths], [names[0], 'k', names[1], 'v'], { attributes: LAST });
        return ['k'];
      };
      return cutLayer(cut, { after: (m) => m.output('v') });
    };
    // ONNX Runtime's Split needs its outputs' names: it crashes without.
    const { nodes } = await checkFused(pieces('', ''), { reference: pieces('a', 'b') });
    expect(nodes[0]?.outputs).to.deep.equal(['h_node/QKVGemm.y', '', 'k', '', 'v']);
  });

  it('of int8 weights', async () => {
    await checkFused(cutLayer(split([N, N, N])), { options: { dtype: 'int8' }, bound: 2e-2 });
  });

  const unknownRank = (cut: Cut): Uint8Array => {
    const m = new ModelBuilder();
    m.input('x');
    const h = m.node('LayerNormalization', ['x', gammaOf(m)], ['h']);
    m.output(attend(m, cutBy(cut)(m, h)));
    return m.finish();
  };

  const KEPT: Record<string, [Uint8Array, string]> = {
    'a Split on another axis': [
      cutLayer((m, packed) => {
        m.node('Split', [packed, m.integers('rows', [3], [2, 2, 1])], NAMES, { attributes: { axis: { integer: 1 } } });
        return ['q', 'k'];
      }), 'Split',
    ],
    'a Split on a positive axis of unknown rank': [unknownRank(split([N, N, N], { axis: { integer: 2 } })), 'Split'],
    'a packed value that others read': [
      cutLayer(split([N, N, N]), { after: (m) => m.output(m.node('Neg', ['packed'], ['less'])) }), 'Split',
    ],
    'a packed value that is a graph output': [cutLayer(split([N, N, N]), { after: (m) => void m.output('packed') }), 'Split'],
    'a Split whose widths callers choose': [
      cutLayer((m, packed) => {
        m.node('Split', [packed, m.input('widths', [3], DataType.int64)], NAMES, { attributes: LAST });
        return NAMES;
      }), 'Split',
    ],
    'Slices that overlap': [cutLayer(slices([[0, N], [4, N + 4], [2 * N, 3 * N]])), 'Slice'],
    'Slices that leave columns out': [cutLayer(slices([[0, N], [N, 2 * N]])), 'Slice'],
    'a Slice that takes every second column': [cutLayer(slices([[0, 2 * N], [N, 3 * N]], -1, 2)), 'Slice'],
    'a Slice on another axis': [cutLayer(slices([[0, 2], [2, 4]], 1)), 'Slice'],
    'a Slice of all columns': [cutLayer(slices([[0, 3 * N]])), 'Slice'],
  }; // prettier-ignore
  for (const [what, [original, op]] of Object.entries(KEPT)) {
    it(`${what}: stays`, async () => {
      const kept = what.includes('callers choose') ? fused(original) : await checkFused(original);
      expect(kept.ops).to.include(op);
      expect(kept.nodes[0]?.outputs).to.deep.equal(['packed']);
    });
  }
});
