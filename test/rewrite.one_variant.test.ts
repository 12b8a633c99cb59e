import { expect } from 'chai';
import { uniform, type ModelBuilder } from '../models/builder.js';
import { FUNCTION_DOMAIN as domain, functionOf } from '../models/functions.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import type { FuseOptions } from '../ts/rewrite/options.js';
import { BodyBuilder } from './support/branches.js';
import { checkFused, fused } from './support/fused.js';
import { attend, K, layer, N, threeMatMul, weight, type Layer } from './support/layers.js';

const MLP: FuseOptions = { targets: ['qkv', 'mlp'] };
const ONE = ['com.deepspeed:QKVGemm'];

/** The norm of a value, under names of its own. */
const secondNorm = (m: ModelBuilder, x: string, rms = false): string => {
  const gamma = m.floats('gamma_2', [K], uniform(K, 0.4, 13, 1));
  if (rms) return m.node('SimplifiedLayerNormalization', [x, gamma], ['h_2']);
  return m.node('LayerNormalization', [x, gamma, m.floats('beta_2', [K], uniform(K, 0.3, 14))], ['h_2']);
};

/** Attention behind one norm, and an MLP of one product behind another. */
const stack = (
  settings: Layer = {},
  up: (m: ModelBuilder, h: string) => string = (m, h) => m.node('MatMul', [h, weight(m, 'w_up', 7)], ['up']),
  rms = false,
): Uint8Array =>
  layer({
    after: (m) => m.output(m.node('Relu', [up(m, secondNorm(m, 'x', rms))], ['activated'])),
    ...settings,
  });

describe('one function body for nodes of several kinds', () => {
  it('attention and MLP: what one has not has no columns, and no overload is needed', async () => {
    const { report, nodes } = await checkFused(stack(), { options: MLP, count: 2 });
    expect(report.fused.map(({ splits }) => splits)).to.deep.equal([[N, N, N], [N]]);
    expect(report.functions).to.deep.equal(ONE);
    expect(report.requires).to.deep.equal({ irVersion: 8, onnxruntime: '1.22.0' });
    expect(nodes[1]?.integers('splits')).to.deep.equal([N, 0, 0]);
    expect(nodes[1]?.outputs).to.deep.equal(['up', '', '', '']);
  });

  for (const opset of [9, 12, 13, 18])
    it(`three products of one value and one of another, opset ${opset}`, async () => {
      const original = layer({
        opset,
        norm: (m, x) => m.node('Tanh', [x], ['h']),
        after: (m) => m.output(m.node('Relu', [m.node('MatMul', ['x', weight(m, 'w_up', 7)], ['up'])], ['r'])),
      });
      const { report, nodes } = await checkFused(original, { options: { targets: ['linear'] }, count: 2 });
      expect(report.functions).to.deep.equal(ONE);
      expect(nodes.map((node) => node.integers('splits'))).to.have.deep.members([[N, N, N], [N, 0, 0]]);
    }); // prettier-ignore

  it('a bias of zeros where others have one', async () => {
    const biased = (m: ModelBuilder, h: string): string => {
      const product = m.node('MatMul', [h, weight(m, 'w_up', 7)], ['product']);
      return m.node('Add', [product, m.floats('b_up', [N], uniform(N, 1, 4))], ['up']);
    };
    const { report, nodes, model } = await checkFused(stack({}, biased), { options: MLP, count: 2 });
    expect(report.functions).to.deep.equal(ONE);
    const zeros = model.graph.initializers.get(nodes[0]?.inputs[4] ?? '');
    expect(zeros?.dims).to.deep.equal([3 * N]);
    expect(zeros?.bytes().every((byte) => byte === 0)).to.equal(true);
  });

  it('int8, and with the norm as an output', async () => {
    const { report, nodes } = await checkFused(
      stack({
        after: (m, h) => [
          m.output(m.node('Neg', [h], ['less'])),
          m.output(m.node('Relu', [m.node('MatMul', [secondNorm(m, 'x'), weight(m, 'w_up', 7)], ['up'])], ['r'])),
        ],
      }),
      { options: { ...MLP, dtype: 'int8' }, count: 2, bound: 5e-2 },
    ); // prettier-ignore
    expect(report.functions).to.deep.equal(ONE);
    expect(nodes.map(({ outputs }) => outputs[1])).to.deep.equal(['h', '']);
  });

  it('where more than that differs, nothing changes: bodies of their own, without empty pieces', async () => {
    const { report, nodes } = await checkFused(stack({}, undefined, true), { options: MLP, count: 2 });
    expect(report.functions).to.have.length(2);
    expect(nodes[1]?.integers('splits')).to.deep.equal([N]);
    expect(nodes[1]?.outputs).to.deep.equal(['up']);
    const types = stack({}, (m, h) => m.node('Gemm', [m.node('Reshape', [h, m.integers('flat', [2], [-1, K])], ['f']), weight(m, 'w_up', 7, [N, K])], ['up'], { attributes: { transB: { integer: 1 } } }));
    expect(fuseBytes(types, MLP).report.functions).to.have.length(2);
  }); // prettier-ignore

  it('without function bodies nothing changes either', () => {
    const { nodes } = fused(stack(), { options: { ...MLP, fallback: false }, count: 2 });
    expect(nodes[1]?.integers('splits')).to.deep.equal([N]);
  });

  it('in functions, where one body is all that there is: more nodes are fused', async () => {
    const body = new BodyBuilder();
    const gamma = body.floats('gamma', [K], uniform(K, 0.4, 3, 1));
    const h = body.node(
      'LayerNormalization',
      ['a', gamma, body.floats('beta', [K], uniform(K, 0.3, 4))],
      ['h'],
    );
    const y = attend(body, threeMatMul(body, h));
    const up = body.node('MatMul', [secondNorm(body, 'a'), weight(body, 'w_up', 7)], ['up']);
    body.node('Relu', [up], ['activated']);
    const original = layer({
      opsets: { [domain]: 1 },
      dims: [2, 5, K],
      after: (m) => {
        m.node('Block', ['x'], ['f_y', 'f_up'], { domain });
        m.output('f_y');
        m.output('f_up');
        m.function(functionOf('Block', body, { inputs: ['a'], outputs: [y, 'activated'] }));
      },
    });
    const { report } = await checkFused(original, { options: MLP, count: 3 });
    expect(report.refused).to.deep.equal([]);
    expect(report.functions).to.deep.equal(ONE);
  });
});
