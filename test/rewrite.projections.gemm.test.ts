import { expect } from 'chai';
import { type ModelBuilder, uniform } from '../models/builder.js';
import type { AttributeValue } from '../ts/onnx/node.js';
import { checkFused, checkRefused, type Fused } from './support/fused.js';
import { K, layer, N, weight, xTensor, type Layer } from './support/layers.js';
import { spell } from './support/norms.js';

interface Form {
  attributes?: Record<string, AttributeValue>;
  weightDims?: readonly number[];
  /** Shape of C; absent: no C. */
  c?: readonly number[];
  /** The norm's output is made two-dimensional first, for each Gemm or for all. */
  reshape?: 'each' | 'once';
  reshapeTo?: readonly number[];
}

const NAMES = ['q', 'k', 'v'];
const ROWS = 6;

/** Three Gemm behind a norm of x [6, K]; with `reshape`, of x [2, 3, K]. */
function gemms(form: Form, settings: Layer = {}): Uint8Array {
  const { attributes = {}, weightDims = [K, N], c, reshape, reshapeTo = [-1, K] } = form;
  const project = (m: ModelBuilder, h: string): string[] => {
    if (reshape) m.integers('flat', [2], reshapeTo);
    const once = reshape === 'once' ? m.node('Reshape', [h, 'flat'], ['h_flat']) : h;
    const results = NAMES.map((name, i) => {
      const a = reshape === 'each' ? m.node('Reshape', [h, 'flat'], [`h_${name}`]) : once;
      const inputs = [a, weight(m, `w_${name}`, i, weightDims)];
      const count = c?.reduce((x, y) => x * y, 1) ?? 0;
      if (c) inputs.push(m.floats(`c_${name}`, c, uniform(count, 0.9, 60 + i)));
      return m.node('Gemm', inputs, [name], { attributes });
    });
    if (!reshape) return results;
    m.integers('back', [3], [2, -1, N]);
    return results.map((name) => m.node('Reshape', [name, 'back'], [`${name}_3`]));
  };
  return layer({ dims: reshape ? [2, 3, K] : ['rows', K], project, ...settings });
}

const flat = [xTensor([ROWS, K])];
const check = (form: Form): Promise<Fused> =>
  checkFused(gemms(form), { inputs: form.reshape ? [xTensor([2, 3, K])] : flat });

const transB = { transB: { integer: 1 } };

describe('gemm', () => {
  const FORMS: Record<string, Form> = {
    'without C': {},
    'with C [N]': { c: [N] },
    'with C [1, N]': { c: [1, N] },
    'transB': { attributes: transB, weightDims: [N, K], c: [N] },
    'alpha': { attributes: { alpha: { float: 0.375 } }, c: [N] },
    'negative alpha, transB': { attributes: { ...transB, alpha: { float: -2 } }, weightDims: [N, K] },
    'alpha 0': { attributes: { alpha: { float: 0 } }, c: [N] },
    'beta': { attributes: { beta: { float: -0.5 } }, c: [N] },
    'beta 0 switches C off': { attributes: { beta: { float: 0 } }, c: [N] },
    'beta 0 switches a C of any shape off': { attributes: { beta: { float: 0 } }, c: [ROWS, 1] },
    'alpha and beta': { attributes: { alpha: { float: 3 }, beta: { float: 0.25 } }, c: [1, N] },
  }; // prettier-ignore
  for (const [what, form] of Object.entries(FORMS)) {
    it(what, async () => {
      const { report, nodes, ops } = await check(form);
      expect(ops).to.deep.equal(['QKVGemm', 'Transpose', 'MatMul', 'Transpose', 'MatMul']);
      expect(report.fused[0]?.rules.projection).to.equal('gemm');
      expect(report.fused[0]?.replaced).to.deep.equal(['h_node', 'q_node', 'k_node', 'v_node']);
      expect(nodes[0]?.outputs).to.deep.equal(['q', '', 'k', 'v']);
      expect(nodes[0]?.integer('transposed', 9)).to.equal(form.weightDims ? 1 : 0);
      const off = form.attributes?.beta !== undefined && 'float' in form.attributes.beta && form.attributes.beta.float === 0;
      expect(nodes[0]?.inputs.length, 'a bias').to.equal(form.c && !off ? 5 : 4);
    }); // prettier-ignore
  }

  it('a single one keeps weight and C as they are stored', async () => {
    const project = (m: ModelBuilder, h: string): string[] => [
      m.node('Gemm', [h, weight(m, 'w', 0, [N, K]), m.floats('c', [N], uniform(N, 1, 5))], ['q'], { attributes: transB }),
    ]; // prettier-ignore
    const { nodes } = await checkFused(layer({ dims: ['rows', K], project }), { inputs: flat });
    expect(nodes[0]?.inputs).to.deep.equal(['x', 'w', 'gamma', 'beta', 'c']);
  });

  it('beside a MatMul: weights of one layout', async () => {
    const project = (m: ModelBuilder, h: string): string[] => [
      m.node('Gemm', [h, weight(m, 'w_q', 0, [N, K])], ['q'], { attributes: transB }),
      m.node('MatMul', [h, weight(m, 'w_k', 1)], ['k']),
    ];
    const { report, nodes } = await checkFused(layer({ dims: ['rows', K], project }), { inputs: flat });
    expect(report.fused[0]?.rules.projection).to.equal('gemm, matmul');
    expect(nodes[0]?.integer('transposed', 9)).to.equal(0);
  });

  for (const [what, form, reason] of [
    [
      'transA',
      { attributes: { transA: { integer: 1 } }, weightDims: [ROWS, N] },
      'Gemm has transA=1, expected 0',
    ],
    ['C [1], which fits every N', { c: [1] }, 'C has shape [1], expected [N] = [8]'],
    ['a scalar C', { c: [] }, 'C has shape [], expected [N] = [8]'],
    ['C of a value for each row', { c: [ROWS, 1] }, 'C has shape [6, 1], expected [N] = [8]'],
    ['C of a value for each element', { c: [ROWS, N] }, 'C has shape [6, 8], expected [N] = [8]'],
  ] as const) {
    it(`refuses ${what}`, () => {
      checkRefused(gemms(form), reason, 'q_node');
    });
  }

  it('refuses a C that is computed, and a weight that is a graph input', () => {
    const computed = (m: ModelBuilder, h: string): string[] => {
      const c = m.node('Neg', [m.floats('b', [N], uniform(N, 1, 5))], ['c']);
      return NAMES.map((name, i) => m.node('Gemm', [h, weight(m, `w_${name}`, i), c], [name]));
    };
    checkRefused(
      layer({ dims: ['rows', K], project: computed }),
      "C is not constant: 'c' is computed by Neg 'c_node'",
      'q_node',
    );
    const given = (m: ModelBuilder, h: string): string[] =>
      NAMES.map((name) => m.node('Gemm', [h, m.input(`w_${name}`, [K, N])], [name]));
    checkRefused(
      layer({ dims: ['rows', K], project: given }),
      "the weight is not constant: 'w_q' is a graph input",
      'q_node',
    );
  });
});

describe('reshape+gemm', () => {
  it('one Reshape for each: the op keeps the leading dimensions, they are joined behind it', async () => {
    const { report, nodes, ops } = await checkFused(
      gemms({ reshape: 'each', c: [N] }, { dims: ['batch', 'rows', K] }), // what undoes the Reshape does not show
      { inputs: [xTensor([2, 3, K])] },
    );
    expect(report.fused[0]?.rules.projection).to.equal('reshape+gemm');
    expect(ops.slice(0, 4).sort()).to.deep.equal(['QKVGemm', 'Reshape', 'Reshape', 'Reshape']);
    expect(ops.filter((op) => op === 'Gemm')).to.deep.equal([]);
    expect(nodes[0]?.outputs).to.deep.equal(['q/QKVGemm', '', 'k/QKVGemm', 'v/QKVGemm']);
    expect(report.fused[0]?.emitNorm).to.equal(false);
  });

  for (const lead of [[0, 3], [1, 1], [2, 0]]) {
    it(`leading dimensions [${lead.join(', ')}]`, async () => {
      const project = (m: ModelBuilder, h: string): string[] => {
        m.integers('flat', [2], [-1, K]);
        return NAMES.map((name, i) =>
          m.node('Gemm', [m.node('Reshape', [h, 'flat'], [`h_${name}`]), weight(m, `w_${name}`, i)], [name]),
        );
      };
      // The products behind are of two dimensions.
      const m = layer({ dims: ['a', 'b', K], project, attendRank: 2 });
      await checkFused(m, { inputs: [xTensor([...lead, K])] });
    });
  } // prettier-ignore

  it('x of one dimension', async () => {
    const project = (m: ModelBuilder, h: string): string[] => {
      m.integers('flat', [2], [1, K]);
      return NAMES.map((name, i) =>
        m.node('Gemm', [m.node('Reshape', [h, 'flat'], [`h_${name}`]), weight(m, `w_${name}`, i)], [name]),
      );
    };
    await checkFused(layer({ dims: [K], project, attendRank: 2 }), { inputs: [xTensor([K])] });
  });

  it('one Reshape for several: the norm goes behind it', async () => {
    const { nodes } = await checkFused(gemms({ reshape: 'once' }), { inputs: [xTensor([2, 3, K])] });
    expect(nodes[0]?.inputs[0]).to.equal('h_flat');
  });

  it('refuses one Reshape for several where others read the norm, and one that is a graph output', () => {
    const reason = (name: string): string =>
      `'${name}', the value made two-dimensional, is also used elsewhere`;
    checkRefused(
      gemms({ reshape: 'once' }, { after: (m, h) => m.output(m.node('Neg', [h], ['less'])) }),
      reason('h_flat'),
      'h_flat_node',
    );
    checkRefused(
      gemms({ reshape: 'each' }, { after: (m) => NAMES.forEach((name) => m.output(`h_${name}`)) }),
      reason('h_q'),
      'h_q_node',
    );
  });

  it('refuses a Reshape that cuts rows', () => {
    const form: Form = { reshape: 'each', reshapeTo: [-1, K / 2], weightDims: [K / 2, N] };
    const norm = (m: ModelBuilder, x: string): string => spell(m, x, true, { gamma: false });
    checkRefused(gemms(form, { norm }), "the norm's input 'x' has 12 columns, the weights have K = 6");
    checkRefused(
      gemms(form, { norm, dims: [2, 3, 'depth'] }),
      'how long the rows before Reshape are is not known (K = 6 behind it)',
      'q_node',
    );
    checkRefused(
      gemms(form, { dims: [2, 3, 'depth'] }),
      "the scale 'gamma' has 12 elements, the weights have K = 6",
    );
  });
});
