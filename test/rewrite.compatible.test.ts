import { expect } from 'chai';
import { ModelBuilder, uniform } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { K, layer, N, weight, xTensor } from './support/layers.js';
import { inputOf, layerOf } from './support/quantized.js';

/** A product with int8 weights behind DequantizeLinear: one scale, or one for each block of rows (opset 21). */
function integers(m: ModelBuilder, h: string, name: string, { k = K, n = N, block = 0 } = {}): string {
  const seed = name.length + (name.codePointAt(0) ?? 0);
  const q = m.tensor(`w_${name}`, DataType.int8, [k, n], new Uint8Array(Int8Array.from(uniform(k * n, 127, seed)).buffer));
  const dims = block > 0 ? [k / block, n] : [];
  const s = m.floats(`s_${name}`, dims, uniform(block > 0 ? (k / block) * n : 1, 1 / 512, seed + 1, 1 / 128));
  const attributes = block > 0 ? { axis: { integer: 0 }, block_size: { integer: block } } : {};
  return m.node('MatMul', [h, m.node('DequantizeLinear', [q, s], [`d_${name}`], { attributes })], [name]);
} // prettier-ignore

const floats = (m: ModelBuilder, h: string, name: string, seed: number): string =>
  m.node('MatMul', [h, weight(m, `w_${name}`, seed)], [name]);

/** An MLP beside attention, of these projections. */
const mlp =
  (project: (m: ModelBuilder, h: string, name: string, seed: number) => string, count = 3) =>
  (m: ModelBuilder, h: string): void => {
    for (let i = 0; i < count; i++) {
      const up = m.node('Relu', [project(m, h, `up${i}`, 40 + i)], [`act${i}`]);
      m.output(m.node('MatMul', [up, weight(m, `down${i}`, 50 + i, [N, K])], [`y${i}`]));
    }
  };

const reasons = ({ report }: { report: ReturnType<typeof fuseBytes>['report'] }): unknown[] =>
  report.refused.map(({ node, reason }) => [node, reason]);
const both = { options: { targets: ['qkv', 'mlp'] as const } };

describe('projections of one norm that do not all go together', () => {
  it('those that lead to attention come first, though others are more', async () => {
    const original = layer({ project: (m, h) => [integers(m, h, 'q'), integers(m, h, 'k')], after: mlp(floats) });
    const result = await checkFused(original, both);
    expect(result.report.fused[0]).to.deep.include({ targets: ['qkv'], splits: [N, N], weightType: 'int8', emitNorm: true });
    expect(reasons(result)).to.deep.equal([0, 1, 2].map((i) => [
      `up${i}_node`,
      `the weight 'w_up${i}' is no integer, 'd_q' and those of its node are: one node has one type of weights`,
    ]));
  }); // prettier-ignore

  it('what is not asked for is not refused', () => {
    const original = layer({ after: mlp((m, h, name) => integers(m, h, name)) });
    expect(fused(original).report.refused).to.deep.equal([]);
    expect(fused(original, both).report.refused).to.have.length(3);
  });

  it('a weight that no rule takes is said, and the others are fused', async () => {
    const project = (m: ModelBuilder, h: string): string[] => [
      floats(m, h, 'q', 1),
      floats(m, h, 'k', 2),
      m.node('MatMul', [h, weight(m, 'w_v', 3, [1, K, N])], ['v']),
    ];
    const result = await checkFused(layer({ project }));
    expect(result.report.fused[0]?.splits).to.deep.equal([N, N]);
    expect(reasons(result)).to.deep.equal([
      ['v_node', "the weight 'w_v' has shape [1, 12, 8], expected two dimensions"],
    ]);
  });

  it('blocks without a common length keep one projection out', async () => {
    const project = (m: ModelBuilder, h: string): string[] => [
      integers(m, h, 'q', { k: 48, block: 16 }),
      integers(m, h, 'k', { k: 48, block: 16 }),
      integers(m, h, 'v', { k: 48, block: 12 }),
    ];
    const original = layerOf(48, project, { opset: 21, irVersion: 10 });
    const result = await checkFused(original, { inputs: inputOf(48) });
    expect(result.report.fused[0]?.replaced).to.include.members(['q_node', 'k_node']);
    expect(result.report.fused[0]?.replaced).to.not.include('v_node');
    expect(reasons(result)).to.deep.equal([
      ['v_node', 'blocks of 16, 16, 12 rows have no common divisor of 8 or more'],
    ]);
  });

  it('two norms are never made of one: what is left over stays', async () => {
    const original = layer({
      project: (m, h) => [integers(m, h, 'q'), floats(m, h, 'k', 2), floats(m, h, 'v', 3)],
    });
    // ONNX Runtime multiplies by what is left over, integers, with activations rounded to 8 bits.
    const { report, ops } = await checkFused(original, { bound: 2e-2 });
    expect(report.fused).to.have.length(1);
    expect(ops.filter((op) => op === 'QKVGemm')).to.have.length(1);
  });

  it('linear: integers and floats of one value become a node each', async () => {
    const m = new ModelBuilder();
    m.input('x', ['rows', K]);
    m.output(integers(m, 'x', 'a'));
    m.output(floats(m, 'x', 'b', 3));
    const { report } = await checkFused(m.finish(), {
      options: { targets: ['linear'] },
      count: 2,
      inputs: [xTensor([6, K])],
    });
    expect(report.fused.map(({ weightType }) => weightType)).to.deep.equal(['int8', 'float32']);
  });

  it('none that fits: the norm is refused as a whole', () => {
    const project = (m: ModelBuilder, h: string): string[] =>
      ['q', 'k'].map((name, i) => m.node('MatMul', [h, weight(m, `w_${name}`, i, [1, K, N])], [name]));
    checkRefused(
      layer({ project }),
      "the weight 'w_q' has shape [1, 12, 8], expected two dimensions",
      'q_node',
    );
    const short = (m: ModelBuilder, x: string): string =>
      m.node('LayerNormalization', [x, m.floats('g', [1], [2])], ['h']);
    checkRefused(layer({ norm: short }), "the scale 'g' has 1 elements, the weights have K = 12");
  });
});
