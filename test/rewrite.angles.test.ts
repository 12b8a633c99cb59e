import { expect } from 'chai';
import { ModelBuilder, uniform } from '../models/builder.js';
import { FUNCTION_DOMAIN as domain, functionOf } from '../models/functions.js';
import { DataType } from '../ts/onnx/tensor.js';
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

  const turning = (m: ModelBuilder): string => m.node('Sin', ['angles'], ['wave']);
  const product = (m: ModelBuilder, x: string, name: string): string =>
    m.node('MatMul', [x, m.constant('frequencies', [K, N], uniform(K * N, 1, 1))], [name]);
  const apart: Record<string, [string, () => Uint8Array]> = {
    'by the caller of the function that multiplies': ['wave_node', () => {
      const linear = new ModelBuilder();
      product(linear, 'a', 'b');
      const m = new ModelBuilder({ [domain]: 1 });
      m.input('x', [2, 5, K]);
      m.node('Linear', ['x'], ['angles'], { domain });
      m.output(turning(m));
      m.function(functionOf('Linear', linear, { inputs: ['a'], outputs: ['b'] }));
      return m.finish();
    }],
    'by a function that is called with it': ['wave_node', () => {
      const wave = new ModelBuilder();
      turning(wave);
      const m = new ModelBuilder({ [domain]: 1 });
      m.input('x', [2, 5, K]);
      m.output(m.node('Wave', [product(m, 'x', 'b')], ['y'], { domain }));
      m.function(functionOf('Wave', wave, { inputs: ['angles'], outputs: ['wave'] }));
      return m.finish();
    }],
    'in the branch of an If, of a product outside': ['wave_node', () => {
      const [then, other] = [new ModelBuilder(), new ModelBuilder()];
      then.output(turning(then));
      other.output(other.node('Neg', ['angles'], ['less']));
      const m = new ModelBuilder();
      product(m, m.input('x', [2, 5, K]), 'angles');
      const condition = m.input('condition', [], DataType.bool);
      m.output(m.node('If', [condition], ['y'], { graphs: { then_branch: then, else_branch: other } }));
      return m.finish();
    }],
    'behind a Loop in which the product is': ['wave_node', () => {
      const body = new ModelBuilder();
      body.input('i', [], DataType.int64);
      body.input('go', [], DataType.bool);
      body.output(body.node('Identity', ['go'], ['go_on']), [], DataType.bool);
      body.output(product(body, 'x', 'one'));
      const m = new ModelBuilder();
      m.input('x', [2, 5, K]);
      const trips = m.integers('trips', [], [2]);
      m.node('Loop', [trips, m.tensor('yes', DataType.bool, [], new Uint8Array([1]))], ['angles'], { graphs: { body } });
      m.output(turning(m));
      return m.finish();
    }],
    'in the next round of the Loop in which the product is': ['wave_node', () => {
      const body = new ModelBuilder();
      body.input('i', [], DataType.int64);
      body.input('go', [], DataType.bool);
      body.input('angles', [2, 5, N]);
      body.output(body.node('Identity', ['go'], ['go_on']), [], DataType.bool);
      body.output(product(body, 'x', 'next'), [2, 5, N]);
      body.output(turning(body), [2, 5, N]);
      const m = new ModelBuilder();
      m.input('x', [2, 5, K]);
      const start = m.floats('start', [2, 5, N], new Float32Array(10 * N));
      const yes = m.tensor('yes', DataType.bool, [], new Uint8Array([1]));
      m.node('Loop', [m.integers('trips', [], [2]), yes, start], ['last', 'waves'], { graphs: { body } });
      m.output('waves');
      return m.finish();
    }],
    'in the next round of the Scan in which the product is': ['wave_node', () => {
      const body = new ModelBuilder();
      body.input('angles', [5, N]);
      body.input('part', [5, K]);
      body.output(product(body, 'part', 'next'), [5, N]);
      body.output(turning(body), [5, N]);
      const m = new ModelBuilder();
      const x = m.input('x', [2, 5, K]);
      const start = m.floats('start', [5, N], new Float32Array(5 * N));
      m.node('Scan', [start, x], ['last', 'waves'], { attributes: { num_scan_inputs: { integer: 1 } }, graphs: { body } });
      m.output('waves');
      return m.finish();
    }],
    'in a SequenceMap, of a product outside': ['wave_node', () => {
      const body = new ModelBuilder();
      body.input('angles', [5, N]);
      body.output(turning(body), [5, N]);
      const m = new ModelBuilder();
      const products = m.node('SequenceConstruct', [product(m, m.input('x', [5, K]), 'one')], ['parts']);
      m.node('SequenceMap', [products], ['waves'], { graphs: { body } });
      m.output(m.node('ConcatFromSequence', ['waves'], ['y'], { attributes: { axis: { integer: 0 } } }));
      return m.finish();
    }],
  }; // prettier-ignore
  for (const [what, [label, build]] of Object.entries(apart))
    it(`of which the sine is taken ${what}: refused`, () => {
      const { report } = fuseBytes(build(), LINEAR);
      expect(report.fused).to.deep.equal([]);
      expect(report.refused.map((refusal) => refusal.reason)).to.deep.equal([reason(label)]);
    });

  it('what a Loop or Scan carries and never takes the sine of is none', async () => {
    const body = new ModelBuilder();
    body.input('state', [5, N]);
    body.input('part', [5, K]);
    body.output(body.node('Add', [product(body, 'part', 'one'), 'state'], ['next']), [5, N]);
    body.output(body.node('Sin', [body.node('Relu', ['state'], ['positive'])], ['wave']), [5, N]);
    const m = new ModelBuilder();
    const x = m.input('x', [2, 5, K]);
    const start = m.floats('start', [5, N], new Float32Array(5 * N));
    const attributes = { num_scan_inputs: { integer: 1 } };
    m.node('Scan', [start, x], ['last', 'waves'], { attributes, graphs: { body } });
    m.output('last');
    m.output('waves');
    await checkFused(m.finish(), { options: LINEAR });
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
