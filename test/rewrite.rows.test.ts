import { expect } from 'chai';
import { uniform, type ModelBuilder } from '../models/builder.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import type { FuseOptions } from '../ts/rewrite/options.js';
import { withQkvGemm } from '../ts/session/index.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { K, layer, layerNorm, N, weight, xTensor, type Layer } from './support/layers.js';
import { spell } from './support/norms.js';
import { quiet, runModel } from './support/run.js';

type Move = (m: ModelBuilder, h: string) => string;

const transposed: Move = (m, h) =>
  m.node('Transpose', [h], ['moved'], { attributes: { perm: { integers: [1, 0, 2] } } });

const project = (m: ModelBuilder, h: string): string[] =>
  ['q', 'k', 'v'].map((name, i) => {
    const product = m.node('MatMul', [h, weight(m, `w_${name}`, i)], [`${name}_product`]);
    return m.node('Add', [product, m.floats(`b_${name}`, [N], uniform(N, 0.6, 40 + i))], [name]);
  });

/** A layer whose projections read what `move` makes of the norm's result. */
const moved = (move: Move, settings: Layer = {}): Uint8Array =>
  layer({ project: (m, h) => project(m, move(m, h)), ...settings });

const slice = (m: ModelBuilder, h: string, name: string, from: number, to: number, axis: number): string =>
  m.node(
    'Slice',
    [
      h,
      m.integers(`${name}_from`, [1], [from]),
      m.integers(`${name}_to`, [1], [to]),
      m.integers(`${name}_axis`, [1], [axis]),
    ],
    [name],
  );

/** Rows rolled by two, as in Swin's shifted windows. */
const rolled =
  (axis: number, last = -1): Move =>
  (m, h) =>
    m.node('Concat', [slice(m, h, 'tail', 2, 100, axis), slice(m, h, 'head', 0, 2, axis)], ['moved'], {
      attributes: { axis: { integer: last === -1 ? axis : last } },
    });

/** A target that is put together when the model runs: [2, 5, K] from the shape of x. */
const computedTarget = (m: ModelBuilder, last: number): string => {
  const shape = m.node('Shape', ['x'], ['x_shape']);
  const lead = m.node('Slice', [shape, m.integers('zero', [1], [0]), m.integers('two', [1], [2])], ['lead']);
  return m.node('Concat', [lead, m.integers('last', [1], [last])], ['target'], {
    attributes: { axis: { integer: 0 } },
  });
};

const LAST: Record<string, Move> = {
  'a Transpose of leading axes (batch_first of torch.nn.MultiheadAttention)': transposed,
  'a Reshape of leading dimensions': (m, h) => m.node('Reshape', [h, m.integers('target', [3], [5, 2, K])], ['moved']),
  'a Reshape to a shape that is computed, its last dimension constant': (m, h) =>
    m.node('Reshape', [h, computedTarget(m, K)], ['moved']),
  'a Reshape to a shape that is computed, its last dimension that of the weights behind it': (m, h) =>
    m.node('Reshape', [h, computedTarget(m, -1)], ['moved']),
  'windows: Reshape, Transpose, Reshape': (m, h) => {
    const split = m.node('Reshape', [h, m.integers('six', [4], [1, 2, 5, K])], ['split']);
    const turned = m.node('Transpose', [split], ['turned'], { attributes: { perm: { integers: [0, 2, 1, 3] } } });
    return m.node('Reshape', [turned, m.integers('target', [3], [-1, 2, K])], ['moved']);
  },
  'a roll: Slices and Concat': rolled(1),
  'a roll on a negative axis': rolled(-2),
  'a Pad of nothing': (m, h) => m.node('Pad', [h, m.integers('pads', [6], [0, 0, 0, 0, 0, 0])], ['moved']),
  'Identity and Transpose': (m, h) => transposed(m, m.node('Identity', [h], ['same'])),
}; // prettier-ignore

const { float, float16, bfloat16 } = DataType;
const cast = (m: ModelBuilder, from: string, to: number, name: string): string =>
  m.node('Cast', [from], [name], { attributes: { to: { integer: to } } });

/** A norm in float32 whose rows `move` moves and brings to 16 bits, for projections of that type; float32 behind them. */
const mixed = (move: Move, settings: Layer = {}, type: number = float16): Uint8Array =>
  layer({
    irVersion: 10,
    project: (m, h) => {
      const rows = move(m, h);
      return ['q', 'k', 'v'].map((name, i) => {
        const w = m.floats(`w_${name}`, [K, N], uniform(K * N, 0.5, 20 + i), type);
        return cast(m, m.node('MatMul', [rows, w], [`${name}_low`]), float, name);
      });
    },
    ...settings,
  });

/** The original rounds the normalised value and the product to 11 bits each; then Q K V multiply. */
const HALF = { bound: 4e-3 };

describe('rows that are moved and cast to 16 bits between a norm in float32 and projections', () => {
  const castFirst: Move = (m, h) => transposed(m, cast(m, h, float16, 'low'));
  const FORMS: Record<string, Move> = {
    'a Cast, then a Transpose': castFirst,
    'a Transpose, then a Cast': (m, h) => cast(m, transposed(m, h), float16, 'low'),
    'a Cast between two Reshapes': (m, h) => {
      const flat = m.node('Reshape', [h, m.integers('flat', [2], [10, K])], ['rows']);
      return m.node('Reshape', [cast(m, flat, float16, 'low'), m.integers('target', [3], [5, 2, K])], ['moved']);
    },
    'a Cast for each piece of a roll': (m, h) => {
      const [tail, head] = [slice(m, h, 'tail', 2, 100, 1), slice(m, h, 'head', 0, 2, 1)];
      const low = [cast(m, tail, float16, 'tail_low'), cast(m, head, float16, 'head_low')];
      return m.node('Concat', low, ['moved'], { attributes: { axis: { integer: 1 } } });
    },
    'an Identity and a Cast': (m, h) => transposed(m, cast(m, m.node('Identity', [h], ['same']), float16, 'low')),
    'a Pad of nothing in 16 bits': (m, h) =>
      m.node('Pad', [cast(m, h, float16, 'low'), m.integers('pads', [6], [0, 0, 0, 0, 0, 0])], ['moved']),
  }; // prettier-ignore
  for (const [what, move] of Object.entries(FORMS))
    it(`${what}: rows are moved in float32, the results are cast`, async () => {
      const { ops, nodes, model } = await checkFused(mixed(move), HALF);
      expect(ops).to.not.include('LayerNormalization');
      expect(ops.filter((op) => op === 'Cast'), 'Casts').to.have.length(6);
      for (const name of ['q', 'k', 'v']) {
        const maker = model.graph.nodes.find(({ outputs }) => outputs.includes(`${name}_low`));
        expect(maker?.opType).to.equal('Cast');
        expect(nodes[0]?.outputs).to.include(maker?.inputs[0]);
      }
    }); // prettier-ignore

  it('the model states 16 bits for what is moved: it no longer does', async () => {
    const stating: Move = (m, h) => {
      for (const name of ['low', 'moved']) m.valueInfo(name, [2, 5, K], float16);
      return castFirst(m, h);
    };
    const { model } = await checkFused(mixed(stating, { dims: [2, 5, K] }), HALF);
    expect([...model.graph.valueInfos.keys()]).to.not.include.members(['low']);
    expect(model.graph.valueInfos.has('moved')).to.equal(false);
  });

  it('others that read the moved rows get them normalised and cast, under the same name', async () => {
    const up = (m: ModelBuilder): string => {
      const w = m.floats('w_up', [K, N], uniform(K * N, 0.5, 9), float16);
      return m.output(cast(m, m.node('MatMul', ['moved', w], ['up_low']), float, 'up'));
    };
    const { report, model } = await checkFused(mixed(castFirst, { after: up }), HALF);
    expect(report.fused[0]?.emitNorm).to.equal(true);
    const maker = model.graph.nodes.find(({ outputs }) => outputs.includes('moved'));
    expect(maker?.opType).to.equal('Cast');
  });

  it('a Cast that is to stay keeps the rest from being fused', () => {
    const { report } = fuseBytes(mixed(castFirst), { skip: ['low_node'] });
    expect(report.fused).to.deep.equal([]);
    expect(report.refused.map(({ reason, at }) => [reason, at])).to.deep.equal([
      ['a Cast of its rows is to stay as it is (skip)', 'low_node'],
    ]);
  });

  it('who asks for the shape of the cast rows asks what the norm read', async () => {
    const asking = (m: ModelBuilder): string => m.output(m.node('Shape', ['low'], ['shape']), [3], DataType.int64);
    const { model } = await checkFused(mixed(castFirst, { after: asking }), HALF);
    expect(model.graph.nodes.find((node) => node.is('Shape'))?.inputs).to.deep.equal(['x']);
  }); // prettier-ignore

  it('bfloat16: the same with the library and without', async () => {
    const toBfloat16: Move = (m, h) => transposed(m, cast(m, h, bfloat16, 'low'));
    const { bytes, nodes, report } = fused(mixed(toBfloat16, {}, bfloat16));
    expect(nodes[0]?.inputs[0]).to.equal('moved');
    expect(report.fused[0]?.weightType).to.equal('bfloat16');
    const [kernel, body] = [await runModel(bytes, [xTensor()], withQkvGemm(quiet)), await runModel(bytes, [xTensor()])];
    // ONNX Runtime has no product of bfloat16 on the CPU to compare with. Both round Q, K and V to 8 bits before they multiply.
    expect(worstDifference(body, kernel)).to.be.below(3 * 2 ** -8);
  }); // prettier-ignore

  it('a norm of float16 rows in float32, between Casts, of which only the first is next to it', async () => {
    const norm = (m: ModelBuilder, x: string): string =>
      layerNorm(m, cast(m, cast(m, x, float16, 'x_low'), float, 'x_f'));
    const { nodes } = await checkFused(mixed(castFirst, { norm }), HALF);
    expect(nodes[0]?.inputs[0]).to.equal('moved');
  });

  const REFUSED: Record<string, [Move, Layer, string]> = {
    'the cast rows as a graph output': [
      castFirst,
      { after: (m) => void m.output('low', undefined, float16) },
      "its rows are moved before the projections, and 'low' is also a graph output",
    ],
    'the cast rows as a residual': [
      castFirst,
      { after: (m) => m.output(m.node('Neg', ['low'], ['less']), undefined, float16) },
      "its rows are moved before the projections, and 'low' is also read by Neg 'less_node'",
    ],
    'a Pad with a value of 16 bits': [
      (m, h) => m.node('Pad', [cast(m, h, float16, 'low'), m.integers('pads', [6], [0, 0, 0, 0, 0, 0]), m.floats('zero', [], [0], float16)], ['moved']),
      {},
      "its output 'h' feeds no MatMul or Gemm with constant weights",
    ],
    'a Cast back to float32 between them': [
      (m, h) => transposed(m, cast(m, cast(m, cast(m, h, float16, 'low'), float, 'wide'), float16, 'again')),
      {},
      "its output 'h' feeds no MatMul or Gemm with constant weights",
    ],
  }; // prettier-ignore
  for (const [what, [move, settings, reason]] of Object.entries(REFUSED))
    it(`${what}: refused`, () => {
      checkRefused(mixed(move, settings), reason);
    });
});

describe('rows that are moved between norm and projections', () => {
  for (const [what, move] of Object.entries(LAST)) {
    it(`${what}: the norm goes behind`, async () => {
      const { ops, nodes } = await checkFused(moved(move));
      expect(ops).to.not.include('LayerNormalization');
      expect(nodes[0]?.inputs[0]).to.equal('moved');
    });
  }

  it('who asks for the shape of the norm asks what it read', async () => {
    const { model } = await checkFused(
      moved(transposed, { after: (m, h) => m.output(m.node('Shape', [h], ['shape']), [3], DataType.int64) }),
    );
    expect(model.graph.nodes.find((node) => node.is('Shape'))?.inputs).to.deep.equal(['x']);
  });

  it('RMSNorm spelt out in arithmetic', async () => {
    const { report } = await checkFused(moved(transposed, { norm: (m, x) => spell(m, x, true) }));
    expect(report.fused[0]?.rules.norm).to.equal('decomposed-rms-norm');
  });

  it('SkipLayerNormalization whose sum others read: they, and what moves rows, read the Add in its place', async () => {
    const norm = (m: ModelBuilder, x: string): string => {
      const inputs = [x, m.floats('skip', [2, 5, K], uniform(10 * K, 0.5, 50)), m.floats('gamma', [K], uniform(K, 0.4, 3, 1))];
      m.node('SkipLayerNormalization', inputs, ['h', '', '', 'sum'], { domain: 'com.microsoft', attributes: { epsilon: { float: 1e-5 } } });
      return 'h';
    }; // prettier-ignore
    const { ops, model } = await checkFused(
      moved(transposed, {
        norm,
        opsets: { 'com.microsoft': 1 },
        dims: [2, 5, K],
        after: (m) => m.output('sum'),
      }),
    );
    expect(ops.slice(0, 3)).to.deep.equal(['Add', 'Transpose', 'QKVGemm']);
    expect(model.graph.nodes[1]?.inputs).to.deep.equal(['sum']);
  });

  it('a packed projection with the Split behind it', async () => {
    const packed = (m: ModelBuilder, h: string): string[] => {
      const product = m.node('MatMul', [transposed(m, h), weight(m, 'w', 0, [K, 3 * N])], ['packed']);
      m.node('Split', [product], ['q', 'k', 'v'], { attributes: { axis: { integer: -1 } } });
      return ['q', 'k', 'v'];
    };
    const { report } = await checkFused(layer({ project: packed }));
    expect(report.fused[0]?.splits).to.deep.equal([N, N, N]);
  });

  describe('others that read the moved rows get them normalised from the node, under the same name', () => {
    /** Up is no projection of attention. */
    const up = (m: ModelBuilder): string =>
      m.output(m.node('MatMul', ['moved', weight(m, 'w_up', 7)], ['up']));
    const READERS: Record<string, [Uint8Array, FuseOptions]> = {
      'a projection that leads to no attention': [moved(transposed, { after: up }), {}],
      'one that stands before the others': [
        layer({
          project: (m, h) => {
            const rows = transposed(m, h);
            up(m);
            return project(m, rows);
          },
        }),
        {},
      ],
      'a projection that is to stay as it is': [moved(transposed), { skip: ['q_product_node'] }],
      'one that becomes a node of its own': [moved(transposed, { after: up }), { targets: ['qkv', 'linear'] }],
    }; // prettier-ignore
    for (const [what, [model, options]] of Object.entries(READERS))
      it(what, async () => {
        const count = options.targets ? 2 : 1;
        const { nodes, report } = await checkFused(model, { count, options });
        expect(report.fused[0]?.emitNorm).to.equal(true);
        expect(nodes[0]?.inputs[0]).to.equal('moved/QKVGemm');
        expect(nodes[0]?.outputs[1]).to.equal('moved');
      });

    it('but who asks for their shape alone does not need them', async () => {
      const shape = (m: ModelBuilder): string =>
        m.output(m.node('Shape', ['moved'], ['shape']), [3], DataType.int64);
      const alone = await checkFused(moved(transposed, { after: (m) => void shape(m) }));
      expect(alone.report.fused[0]?.emitNorm).to.equal(false);
      const both = await checkFused(moved(transposed, { after: (m) => [shape(m), up(m)] }));
      const reader = both.model.graph.nodes.find((node) => node.is('Shape'));
      expect(reader?.inputs).to.deep.equal(['moved/QKVGemm']);
    });
  });

  const feeds = (name: string): string =>
    `its output '${name}' feeds no MatMul or Gemm with constant weights`;
  const REFUSED: Record<string, [Uint8Array, string]> = {
    'the norm as a residual, too': [
      moved(transposed, { after: (m, h) => m.output(m.node('Neg', [h], ['less'])) }),
      "its rows are moved before the projections, and 'h' is also read by Neg 'less_node'",
    ],
    'the norm as a graph output': [
      moved(transposed, { after: (m, h) => void m.output(h) }),
      "its rows are moved before the projections, and 'h' is also a graph output",
    ],
    'what is moved, read by others': [
      moved(transposed, { after: (m) => m.output(m.node('Neg', ['moved'], ['less'])) }),
      "its rows are moved before the projections, and 'moved' is also read by Neg 'less_node'",
    ],
    'two ways to projections': [
      layer({
        project: (m, h) => {
          const other = m.node('Transpose', [h], ['other'], { attributes: { perm: { integers: [1, 0, 2] } } });
          const [q = '', k = ''] = project(m, transposed(m, h));
          return [q, k, m.node('MatMul', [other, weight(m, 'w_o', 5)], ['o'])];
        },
      }),
      "its rows are moved in two ways before projections: 'other' and 'moved'",
    ],
    'a Transpose of the last axis': [
      moved((m, h) => m.node('Transpose', [h], ['moved'], { attributes: { perm: { integers: [0, 2, 1] } } }), { dims: [2, K, K] }),
      feeds('h'),
    ],
    'a Transpose that turns all axes': [moved((m, h) => m.node('Transpose', [h], ['moved']), { dims: [K, 5, K] }), feeds('h')],
    'a Reshape that cuts rows before another': [
      moved((m, h) => {
        const cut = m.node('Reshape', [h, m.integers('half', [3], [2, 10, K / 2])], ['cut']);
        return m.node('Reshape', [cut, m.integers('target', [3], [2, 5, K])], ['moved']);
      }),
      feeds('h'),
    ],
    'rows weighed by a mask': [
      moved((m, h) => transposed(m, m.node('Mul', [h, m.floats('mask', [5, 1], uniform(5, 1, 9))], ['masked']))),
      feeds('h'),
    ],
    'rows of zeros added': [
      moved((m, h) => m.node('Pad', [h, m.integers('pads', [6], [0, 0, 0, 0, 1, 0])], ['moved'])),
      feeds('h'),
    ],
    'a roll along the last axis': [moved(rolled(-1, 2)), feeds('h')],
    'a Slice on a positive axis of unknown rank': [
      (() => {
        const norm = (m: ModelBuilder, x: string): string => layerNorm(m, m.node('Reshape', [x, m.input('shape', [3], DataType.int64)], ['reshaped']));
        return moved(rolled(1), { norm });
      })(),
      feeds('h'),
    ],
    'a Concat with other rows': [
      moved((m, h) => m.node('Concat', [h, m.floats('more', [2, 1, K], uniform(2 * K, 1, 9))], ['moved'], { attributes: { axis: { integer: 1 } } })),
      feeds('h'),
    ],
  }; // prettier-ignore
  for (const [what, [model, reason]] of Object.entries(REFUSED))
    it(`${what}: refused`, () => {
      checkRefused(model, reason);
    });
});
