import { expect } from 'chai';
import { uniform, type ModelBuilder } from '../models/builder.js';
import type { AttributeValue } from '../ts/onnx/node.js';
import { checkFused, checkRefused } from './support/fused.js';
import { K, layer, N, weight } from './support/layers.js';

const NAMES = ['q', 'k', 'v'];
const opsets = { 'com.microsoft': 1 };

/** Three FusedMatMul by [K, N], or by [N, K] where `transB`. */
const project =
  (
    attributes: Record<string, AttributeValue>,
    after: (m: ModelBuilder, name: string) => string = (_, name) => name,
  ) =>
  (m: ModelBuilder, h: string): string[] =>
    NAMES.map((name, i) => {
      const dims = attributes.transB ? [N, K] : [K, N];
      const inputs = [h, weight(m, `w_${name}`, i, dims)];
      return after(m, m.node('FusedMatMul', inputs, [name], { domain: 'com.microsoft', attributes }));
    });

const fusedLayer = (attributes: Record<string, AttributeValue>): Uint8Array =>
  layer({ project: project(attributes), opsets });

describe('FusedMatMul of ONNX Runtime', () => {
  const FORMS: Record<string, Record<string, AttributeValue>> = {
    'as it is': {},
    'with a factor': { alpha: { float: -0.25 } },
    'with a transposed weight': { transB: { integer: 1 } },
    'with both': { transB: { integer: 1 }, alpha: { float: 3 } },
  };
  for (const [what, attributes] of Object.entries(FORMS))
    it(what, async () => {
      const { report, ops } = await checkFused(fusedLayer(attributes));
      expect(report.fused[0]?.rules.projection).to.equal('fused-matmul');
      expect(ops).to.not.include('FusedMatMul');
    });

  it('with a bias behind it, which the factor leaves alone', async () => {
    const bias = (m: ModelBuilder, name: string): string =>
      m.node('Add', [name, m.floats(`b_${name}`, [N], uniform(N, 1, 5))], [`${name}_b`]);
    const model = layer({ project: project({ alpha: { float: 0.5 } }, bias), opsets });
    const { report } = await checkFused(model);
    expect(report.fused[0]?.rules.projection).to.equal('fused-matmul+add');
  });

  it('without a norm, as target linear', async () => {
    const model = layer({ norm: (m, x) => m.node('Identity', [x], ['h']), project: project({ alpha: { float: 0.5 } }), opsets }); // prettier-ignore
    const { report } = await checkFused(model, { options: { targets: ['linear'] } });
    expect(report.fused[0]?.normType).to.equal('none');
  });

  it('a product of computed values is attention', async () => {
    const attend = (m: ModelBuilder, h: string): string[] => {
      const [q = '', k = '', v = ''] = project({})(m, h);
      m.output(m.node('FusedMatMul', [q, k], ['scores_2'], { domain: 'com.microsoft', attributes: { transB: { integer: 1 }, alpha: { float: 0.3 } } }));
      return [q, k, v];
    }; // prettier-ignore
    const { report } = await checkFused(layer({ project: attend, opsets }));
    expect(report.fused[0]?.splits).to.deep.equal([N, N, N]);
  });

  for (const name of ['transA', 'transBatchA', 'transBatchB'])
    it(`${name}: refused`, () => {
      checkRefused(fusedLayer({ [name]: { integer: 1 } }), `FusedMatMul has ${name}=1, expected 0`, 'q_node');
    });

  it('a weight of three dimensions: refused', () => {
    const batched = (m: ModelBuilder, h: string): string[] =>
      NAMES.map((name, i) => m.node('FusedMatMul', [h, weight(m, `w_${name}`, i, [2, K, N])], [name], { domain: 'com.microsoft' })); // prettier-ignore
    const reason = `the weight 'w_q' has shape [2, ${K}, ${N}], expected two dimensions`;
    checkRefused(layer({ project: batched, opsets }), reason, 'q_node');
  });
});
