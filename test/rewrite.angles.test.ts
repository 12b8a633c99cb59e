import { expect } from 'chai';
import { ModelBuilder } from '../models/builder.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { checkFused } from './support/fused.js';
import { K, N, weight, xTensor } from './support/layers.js';

const LINEAR = { targets: ['linear'] } as const;
const reason = (label: string): string =>
  `its result is an angle, of which ${label} is taken: rounded weights would turn it`;

/** x [2, 5, K] by frequencies [K, N], and what is taken of the result. */
function waves(take: (m: ModelBuilder, angles: string) => string): Uint8Array {
  const m = new ModelBuilder();
  const x = m.input('x', [2, 5, K]);
  const angles = m.node('MatMul', [x, weight(m, 'frequencies', 1)], ['angles']);
  m.output(take(m, angles));
  return m.finish();
}

/** Rotary embedding as onnxscript's fusions leave it: positions [M, 1] by inverse frequencies [1, N]. */
function rotary(): Uint8Array {
  const m = new ModelBuilder();
  const x = m.input('x', [5, K]);
  const positions = m.node('Reshape', [m.node('Range', [m.floats('from', [], [0]), m.floats('to', [], [4096]), m.input('step', [])], ['range']), m.integers('rows', [2], [-1, 1])], ['positions']);
  const angles = m.node('MatMul', [positions, weight(m, 'frequencies', 1, [1, N])], ['angles']);
  m.output(m.node('Sin', [angles], ['sine']));
  m.output(m.node('Cos', [angles], ['cosine']));
  m.output(m.node('MatMul', [x, weight(m, 'w', 2)], ['y']));
  return m.finish();
} // prettier-ignore

describe('products whose result is an angle', () => {
  it('stay as they are, and others do not', () => {
    const { report, model } = fuseBytes(rotary(), { ...LINEAR, dtype: 'bf16' });
    expect(report.fused.map(({ node }) => node)).to.deep.equal(['y_node/QKVGemm']);
    expect(report.refused.map(({ node, reason }) => [node, reason])).to.deep.equal([
      ['angles_node', reason('sine_node')],
    ]);
    expect(Buffer.from(model).includes('frequencies')).to.equal(true);
  });

  const REFUSED: Record<string, (m: ModelBuilder, angles: string) => string> = {
    'right behind': (m, angles) => m.node('Cos', [angles], ['y']),
    'behind a factor': (m, angles) =>
      m.node('Sin', [m.node('Mul', [angles, m.floats('turn', [], [6.28])], ['turned'])], ['y']),
    'behind Transpose and Concat (halves side by side)': (m, angles) => {
      const turned = m.node('Transpose', [angles], ['turned'], { attributes: { perm: { integers: [1, 0, 2] } } });
      const both = m.node('Concat', [turned, turned], ['both'], { attributes: { axis: { integer: -1 } } });
      return m.node('Cos', [both], ['y']);
    },
    'behind a bias, a phase': (m, angles) =>
      m.node('Sin', [m.node('Add', [angles, m.floats('phase', [N], Array<number>(N).fill(1))], ['b'])], ['y']),
  }; // prettier-ignore
  for (const [what, take] of Object.entries(REFUSED))
    it(`${what}: refused`, () => {
      const model = waves(take);
      const result = fuseBytes(model, LINEAR);
      expect(result.report.fused).to.deep.equal([]);
      expect(result.report.refused.map((refusal) => refusal.reason)).to.deep.equal([reason('y_node')]);
      expect(Buffer.compare(result.model, model)).to.equal(0);
    });

  it('what a wave is multiplied by is no angle, as in rotary attention', async () => {
    const wave = (m: ModelBuilder, q: string): string =>
      m.node(
        'Mul',
        [q, m.node('Cos', [m.floats('angle', [N], Array<number>(N).fill(0.3))], ['cosine'])],
        ['y'],
      );
    await checkFused(waves(wave), { options: LINEAR, inputs: [xTensor([2, 5, K])] });
  });

  it('behind a nonlinearity it is none', async () => {
    const m = new ModelBuilder();
    const x = m.input('x', [2, 5, K]);
    const y = m.node('MatMul', [x, weight(m, 'w', 1)], ['y']);
    m.output(m.node('Sin', [m.node('Relu', [y], ['positive'])], ['wave']));
    await checkFused(m.finish(), { options: LINEAR, inputs: [xTensor([2, 5, K])] });
  });
});
