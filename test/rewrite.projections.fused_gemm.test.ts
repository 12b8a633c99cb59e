import { expect } from 'chai';
import { uniform, type ModelBuilder } from '../models/builder.js';
import type { AttributeValue } from '../ts/onnx/node.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import type { Target } from '../ts/rewrite/options.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { K, layer, N, weight, xTensor } from './support/layers.js';

const NAMES = ['q', 'k', 'v'];
const opsets = { 'com.microsoft': 1 };
const domain = 'com.microsoft';
const inputs = [xTensor([6, K])];

/** A product with its bias as ONNX Runtime writes it. */
const product = (m: ModelBuilder, h: string, name: string, i: number, attributes: Record<string, AttributeValue>): string => {
  const dims = attributes.transB ? [N, K] : [K, N];
  const operands = [h, weight(m, `w_${name}`, i, dims), m.floats(`c_${name}`, [N], uniform(N, 0.9, 60 + i))];
  return m.node('FusedGemm', operands, [name], { domain, attributes });
}; // prettier-ignore

const three =
  (attributes: Record<string, AttributeValue>) =>
  (m: ModelBuilder, h: string): string[] =>
    NAMES.map((name, i) => product(m, h, name, i, attributes));
const gemms = (attributes: Record<string, AttributeValue>): Uint8Array =>
  layer({ dims: ['rows', K], project: three(attributes), opsets });

const RELU = { activation: { string: 'Relu' } };
const applies = (opType: string, activation: string): string =>
  `${opType} applies ${activation} to its product, which the fused op does not; in the model before ONNX Runtime's extended optimisations they are nodes of their own`;

describe('FusedGemm of ONNX Runtime', () => {
  for (const activation of ['Relu', 'LeakyRelu', 'Tanh'])
    it(`${activation}: refused, and named`, () => {
      checkRefused(gemms({ activation: { string: activation } }), applies('FusedGemm', activation), 'q_node');
    });
  it('whatever else it does: refused, and named', () => {
    const attributes = { ...RELU, transB: { integer: 1 }, alpha: { float: 0.5 } };
    checkRefused(gemms(attributes), applies('FusedGemm', 'Relu'), 'q_node');
    checkRefused(gemms({}), applies('FusedGemm', 'its activation'), 'q_node');
  });

  it('behind a Reshape: refused, and named', () => {
    const project = (m: ModelBuilder, h: string): string[] => {
      m.integers('flat', [2], [-1, K]);
      return NAMES.map((name, i) => product(m, m.node('Reshape', [h, 'flat'], [`h_${name}`]), name, i, RELU));
    };
    checkRefused(layer({ project, opsets, attendRank: 2 }), applies('FusedGemm', 'Relu'), 'q_node');
  });

  /** Q, K and V, and an MLP that begins with a FusedGemm. */
  const besideMlp = (): Uint8Array =>
    layer({
      dims: ['rows', K],
      opsets,
      project: (m, h) => NAMES.map((name, i) => m.node('MatMul', [h, weight(m, `w_${name}`, i)], [name])),
      after: (m, h) => {
        const up = product(m, h, 'up', 7, RELU);
        m.output(m.node('MatMul', [up, weight(m, 'w_down', 9, [N, K])], ['down']));
      },
    });
  const TARGETS: [readonly Target[], number, readonly string[]][] = [
    [['qkv'], 1, []],
    [['qkv', 'mlp'], 1, ['up_node']],
    [['mlp'], 0, ['h_node']],
    [['linear'], 2, ['up_node']],
    [['qkv', 'mlp', 'linear'], 2, ['up_node', 'up_node']],
  ];
  for (const [targets, count, refused] of TARGETS)
    it(`the first half of an MLP, targets ${targets.join(', ')}`, async () => {
      const { report } =
        count === 0
          ? fuseBytes(besideMlp(), { targets })
          : await checkFused(besideMlp(), { count, options: { targets }, inputs });
      const named = report.refused.filter(({ reason }) => reason === applies('FusedGemm', 'Relu'));
      expect([...new Set(named.map(({ node }) => node))]).to.deep.equal([
        ...new Set(refused.filter((node) => node !== 'h_node')),
      ]);
      expect(report.fused).to.have.length(count);
    });

  it('no path to attention: what lies behind it is another layer', () => {
    const model = layer({
      dims: ['rows', K],
      opsets,
      project: (m, h) => {
        const a = m.node('MatMul', [h, weight(m, 'w_a', 1)], ['a']);
        const operands = [a, weight(m, 'w_b', 2, [N, N]), m.floats('c_b', [N], uniform(N, 0.9, 3))];
        return [m.node('FusedGemm', operands, ['b'], { domain, attributes: RELU })];
      },
    });
    const { report } = fuseBytes(model);
    expect(report.refused.map(({ reason }) => reason)).to.deep.equal([
      "none of its 1 projections leads to attention (they meet a constant weight or the graph's end first)",
    ]);
  });
});

describe('other products with an activation in them', () => {
  const FORMS: Record<string, [Record<string, AttributeValue>, string]> = {
    FusedMatMulActivation: [{ activation: { string: 'Sigmoid' } }, 'Sigmoid'],
    GemmFastGelu: [{}, 'FastGelu'],
  };
  for (const [opType, [attributes, activation]] of Object.entries(FORMS)) {
    const model = layer({
      dims: ['rows', K],
      opsets,
      project: (m, h) =>
        NAMES.map((name, i) =>
          m.node(opType, [h, weight(m, `w_${name}`, i)], [name], { domain, attributes }),
        ),
    });
    it(`${opType}: refused, and named`, () => {
      checkRefused(model, applies(opType, activation), 'q_node');
    });
    it(`${opType}: the same with the target linear`, () => {
      const { report } = fuseBytes(model, { targets: ['linear'] });
      expect(report.refused.map(({ node, reason }) => [node, reason])).to.deep.equal(
        NAMES.map((name) => [`${name}_node`, applies(opType, activation)]),
      );
    });
  }
});

describe('TransposeMatMul, the former name of FusedMatMul', () => {
  const project =
    (attributes: Record<string, AttributeValue>) =>
    (m: ModelBuilder, h: string): string[] =>
      NAMES.map((name, i) =>
        m.node('TransposeMatMul', [h, weight(m, `w_${name}`, i, [N, K])], [name], { domain, attributes }),
      );
  it('is fused as that', async () => {
    const model = layer({
      project: project({ transB: { integer: 1 }, alpha: { float: 0.5 } }),
      opsets,
    });
    const { report } = await checkFused(model);
    expect(report.fused[0]?.rules.projection).to.equal('fused-matmul');
  });
  it('transA: refused', () => {
    const model = layer({ project: project({ transA: { integer: 1 } }), opsets });
    checkRefused(model, 'TransposeMatMul has transA=1, expected 0', 'q_node');
  });
});

describe('FusedMatMul by integers behind DequantizeLinear', () => {
  for (const transB of [0, 1])
    it(`with a factor, transB ${transB}`, async () => {
      const project = (m: ModelBuilder, h: string): string[] =>
        NAMES.map((name, i) => {
          const dims = transB ? [N, K] : [K, N];
          const values = Int8Array.from(uniform(N * K, 120, 70 + i));
          const q = m.tensor(`q_${name}`, 3, dims, new Uint8Array(values.buffer));
          const scale = m.floats(`s_${name}`, [N], uniform(N, 0.002, 80 + i, 0.005));
          const w = m.node('DequantizeLinear', [q, scale], [`w_${name}`], { attributes: { axis: { integer: 1 - transB } } });
          return m.node('FusedMatMul', [h, w], [name], { domain, attributes: { transB: { integer: transB }, alpha: { float: 0.5 } } });
        }); // prettier-ignore
      const { nodes } = await checkFused(layer({ project, opsets }));
      const { report } = fused(layer({ project, opsets }));
      expect(report.fused[0]).to.include({ weightType: 'int8' });
      expect(report.fused[0]?.rules.projection).to.equal('dequantize+fused-matmul');
      expect(nodes[0]?.integer('transposed', 9)).to.equal(transB);
    });
});
