import { expect } from 'chai';
import { ModelBuilder } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { checkFused, checkRefused, checkUntouched } from './support/fused.js';
import { attend, betaOf, gammaOf, K, layer, N, threeMatMul, xTensor } from './support/layers.js';

/** Writes a LayerNormalization, or another norm of one node, with these attributes. */
const one =
  (opType: string, attributes: Record<string, { float: number } | { integer: number }>, shift = false) =>
  (m: ModelBuilder, x: string): string =>
    m.node(opType, shift ? [x, gammaOf(m), betaOf(m)] : [x, gammaOf(m)], ['h'], { attributes });

describe('LayerNormalization', () => {
  it('becomes one node with its operands, epsilon and outputs', async () => {
    const { report, nodes, ops, model } = await checkFused(layer());
    expect(ops).to.deep.equal(['QKVGemm', 'Transpose', 'MatMul', 'Transpose', 'MatMul']);
    expect(nodes[0]?.inputs).to.deep.equal(['x', 'h_node/QKVGemm.weight', 'gamma', 'beta']);
    expect(nodes[0]?.outputs).to.deep.equal(['q', '', 'k', 'v']);
    expect(nodes[0]?.attributes.get('norm_type')?.string).to.equal('layer_norm');
    expect(nodes[0]?.float('epsilon', 0)).to.equal(Math.fround(1e-5));
    expect(nodes[0]?.integers('splits')).to.deep.equal([N, N, N]);
    expect(report.refused).to.deep.equal([]);
    expect(report.fused).to.deep.equal([
      {
        node: 'h_node/QKVGemm',
        norm: 'h_node',
        targets: ['qkv'],
        rules: { norm: 'layer-normalization', projection: 'matmul' },
        replaced: ['h_node', 'q_node', 'k_node', 'v_node'],
        normType: 'layer_norm',
        epsilon: Math.fround(1e-5),
        k: K,
        n: 3 * N,
        splits: [N, N, N],
        emitNorm: false,
        weightType: 'float32',
        position: 0,
      },
    ]);
    expect(report.functions).to.deep.equal(['com.deepspeed:QKVGemm']);
    expect([...model.graph.initializers.keys()]).to.have.members(['gamma', 'beta', 'h_node/QKVGemm.weight']);
  });

  it('without a shift gets one of zeros', async () => {
    const { nodes } = await checkFused(layer({ norm: one('LayerNormalization', {}) }));
    expect(nodes[0]?.inputs[3]).to.equal('h_node/QKVGemm.beta');
  });

  it('its default epsilon is 1e-5, another one is kept', async () => {
    const standard = await checkFused(layer({ norm: one('LayerNormalization', {}) }));
    expect(standard.report.fused[0]?.epsilon).to.equal(Math.fround(1e-5));
    const large = await checkFused(layer({ norm: one('LayerNormalization', { epsilon: { float: 0.5 } }) }));
    expect(large.report.fused[0]?.epsilon).to.equal(0.5);
  });

  it('a positive axis serves where the rank says that it is the last', async () => {
    await checkFused(layer({ norm: one('LayerNormalization', { axis: { integer: 2 } }, true) }));
  });

  for (const dims of [[K], [5, K], [2, 3, 4, K], [0, 5, K], [1, 1, K]]) {
    it(`of shape [${dims.join(', ')}]`, async () => {
      await checkFused(layer({ dims }), { inputs: [xTensor(dims)] });
    });
  }

  it('an unused statistic does no harm', async () => {
    const norm = (m: ModelBuilder, x: string): string =>
      m.node('LayerNormalization', [x, gammaOf(m), betaOf(m)], ['h', 'mean', 'inverse']);
    expect((await checkFused(layer({ norm }))).nodes[0]?.outputs).to.not.include('mean');
  });

  for (const [what, attributes, reason] of [
    [
      'an axis before the last',
      { axis: { integer: 1 } },
      'axis is 1 of 3 dimensions, expected the last (-1)',
    ],
    ['axis -2', { axis: { integer: -2 } }, 'axis is -2 of 3 dimensions, expected the last (-1)'],
    ['axis 0', { axis: { integer: 0 } }, 'axis is 0 of 3 dimensions, expected the last (-1)'],
    [
      '16-bit statistics',
      { stash_type: { integer: DataType.float16 } },
      'stash_type is 10, expected 1 (float32 statistics)',
    ],
    ['a negative epsilon', { epsilon: { float: -0.5 } }, 'epsilon is -0.5, expected a number >= 0'],
    ['an epsilon that is no number', { epsilon: { float: NaN } }, 'epsilon is NaN, expected a number >= 0'],
  ] as const) {
    it(`refuses ${what}`, () => {
      checkRefused(layer({ norm: one('LayerNormalization', attributes) }), reason);
    });
  }

  it('refuses a positive axis where the rank is not known', () => {
    const m = new ModelBuilder();
    m.input('x');
    const h = one('LayerNormalization', { axis: { integer: 2 } })(m, 'x');
    m.output(attend(m, threeMatMul(m, h)));
    checkRefused(m.finish(), 'axis is 2, rank unknown, expected the last (-1)');
  });

  for (const [what, gamma, reason] of [
    ['one element', (m: ModelBuilder) => m.floats('g', [1], [2]), "the scale 'g' has 1 elements, the weights have K = 12"],
    ['two dimensions', (m: ModelBuilder) => m.floats('g', [1, K], new Float32Array(K)), "the scale 'g' has shape [1, 12], expected one dimension [K]"],
    ['no dimension', (m: ModelBuilder) => m.floats('g', [], [2]), "the scale 'g' has shape [], expected one dimension [K]"],
    ['double elements', (m: ModelBuilder) => m.tensor('g', DataType.double, [K], new Uint8Array(8 * K)), "the scale 'g' is double, expected float32, float16 or bfloat16"],
    ['a graph input', (m: ModelBuilder) => m.input('g', [K]), "the scale is not constant: 'g' is a graph input"],
    ['a computed value', (m: ModelBuilder) => m.node('Neg', [gammaOf(m)], ['g']), "the scale is not constant: 'g' is computed by Neg 'g_node'"],
  ] as const) {
    it(`refuses a scale of ${what}`, () => {
      checkRefused(layer({ norm: (m, x) => m.node('LayerNormalization', [x, gamma(m)], ['h']) }), reason);
    });
  } // prettier-ignore

  it('refuses a shift that is computed, and one of another length', () => {
    const shift = (make: (m: ModelBuilder) => string): Uint8Array =>
      layer({ norm: (m, x) => m.node('LayerNormalization', [x, gammaOf(m), make(m)], ['h']) });
    checkRefused(
      shift((m) => m.input('b', [K])),
      "the shift is not constant: 'b' is a graph input",
    );
    checkRefused(
      shift((m) => m.floats('b', [1], [2])),
      "the shift 'b' has 1 elements, the weights have K = 12",
    );
  });

  it('refuses a statistic that is read, or is a graph output', () => {
    const norm = (m: ModelBuilder, x: string): string =>
      m.node('LayerNormalization', [x, gammaOf(m), betaOf(m)], ['h', 'mean', 'inverse']);
    const reason = (name: string): string =>
      `output '${name}' (a statistic) is used, and the fused op does not give it`;
    checkRefused(layer({ norm, after: (m) => m.output('inverse') }), reason('inverse'));
    checkRefused(layer({ norm, after: (m) => m.output(m.node('Neg', ['mean'], ['less'])) }), reason('mean'));
  });

  it('is left alone where the op type is of another domain', () => {
    const bytes = layer({
      opsets: { 'com.example': 1 },
      norm: (m, x) => m.node('LayerNormalization', [x, gammaOf(m)], ['h'], { domain: 'com.example' }),
    });
    checkUntouched(bytes);
  });
});

describe('norms of one node that have no shift', () => {
  for (const [opType, rule, opset] of [
    ['SimplifiedLayerNormalization', 'simplified-layer-normalization', 17],
    ['RMSNormalization', 'rms-normalization', 23],
  ] as const) {
    it(opType, async () => {
      const norm = one(opType, { axis: { integer: -1 }, epsilon: { float: 1e-6 } });
      const { report, nodes, ops } = await checkFused(layer({ opset, norm, irVersion: 10 }));
      expect(ops).to.deep.equal(['QKVGemm', 'Transpose', 'MatMul', 'Transpose', 'MatMul']);
      expect(report.fused[0]?.rules.norm).to.equal(rule);
      expect(report.fused[0]?.normType).to.equal('rms_norm');
      expect(report.fused[0]?.epsilon).to.equal(Math.fround(1e-6));
      expect(nodes[0]?.inputs).to.deep.equal(['x', 'h_node/QKVGemm.weight', 'gamma']);
      expect(nodes[0]?.attributes.get('norm_type')?.string).to.equal('rms_norm');
    });

    it(`${opType}: refuses an axis before the last, and a scale that is a graph input`, () => {
      const opsetOf = { opset, irVersion: 10 };
      checkRefused(
        layer({ ...opsetOf, norm: one(opType, { axis: { integer: 1 } }) }),
        'axis is 1 of 3 dimensions, expected the last (-1)',
      );
      checkRefused(
        layer({ ...opsetOf, norm: (m, x) => m.node(opType, [x, m.input('g', [K])], ['h']) }),
        "the scale is not constant: 'g' is a graph input",
      );
    });

    it(`${opType}: its result has the scale's type, which need not be the input's`, () => {
      const mixed = layer({
        opset,
        irVersion: 10,
        type: DataType.float16,
        expose: false,
        norm: (m, x) => m.node(opType, [x, gammaOf(m)], ['h']),
      });
      checkRefused(mixed, "the norm's input is float16, the weight 'w_q' float32", 'q_node');
    });
  }
});
