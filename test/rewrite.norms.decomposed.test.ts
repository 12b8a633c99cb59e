import { expect } from 'chai';
import type { ModelBuilder } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { checkFused, checkRefused } from './support/fused.js';
import { gammaOf, K, layer, N, weightValues, type Layer } from './support/layers.js';
import { LOW, spell, type Spelling } from './support/norms.js';

const SPELLINGS: Record<string, Spelling> = {
  'as written by default': {},
  'Mul by itself': { square: 'mul' },
  'Reciprocal': { divide: 'reciprocal' },
  'Reciprocal as the first factor': { divide: 'reciprocal swapped' },
  '1 / sqrt': { divide: 'one over' },
  'power -0.5': { divide: 'power' },
  'power 0.5': { root: 'power' },
  'power 0.5, Reciprocal': { root: 'power', divide: 'reciprocal' },
  'epsilon from a Constant node': { epsilon: 'constant' },
  'epsilon as the first operand': { epsilon: 'first' },
  'epsilon of shape [1]': { epsilon: 'scalar of rank 1' },
  'a large epsilon': { epsilonValue: 0.25 },
  'scale and shift as first operands': { gamma: 'first', beta: 'first' },
  'no scale': { gamma: false },
  'no shift': { beta: false },
  'neither scale nor shift': { gamma: false, beta: false },
  'axes as an initialiser': { axes: 'initialiser' },
  'axes from a Constant node': { axes: 'constant' },
}; // prettier-ignore

const castTo = (m: ModelBuilder, from: string, to: number, name: string): string =>
  m.node('Cast', [from], [name], { attributes: { to: { integer: to } } });

/** float16 activations around a norm: x and what comes of it are float32 at the graph's ends. */
function lowLayer(type: number, norm: (m: ModelBuilder, x: string) => string): Uint8Array {
  return layer({
    opset: 13,
    norm: (m, x) => norm(m, castTo(m, x, type, 'x_low')),
    project: (m, h) =>
      ['q', 'k', 'v'].map((name, i) => {
        const w = m.floats(`w_${name}`, [K, N], weightValues(K * N, i), type);
        return castTo(m, m.node('MatMul', [h, w], [`${name}_low`]), DataType.float, name);
      }),
  });
}

/** The original rounds the normalised value, its scaled and its shifted form and the product to 11 bits each; then Q K V multiply. */
const HALF_BOUND = 4e-3;

const spelling =
  (s: Spelling) =>
  (rms: boolean): Layer => ({ norm: (m, x) => spell(m, x, rms, s) });
const exposing = (name: string) => (rms: boolean): Layer => ({
  norm: (m, x) => spell(m, x, rms),
  after: (m) => m.output(name),
}); // prettier-ignore
const reading = (name: string) => (rms: boolean): Layer => ({
  norm: (m, x) => spell(m, x, rms),
  after: (m) => m.output(m.node('Neg', [name], ['negative'])),
}); // prettier-ignore
/** The normalised value goes through another type before it is scaled. */
const castTwice = (to: number) => (rms: boolean): Layer => ({
  norm: (m, x) => {
    const h = spell(m, x, rms, { gamma: false, beta: false });
    return m.node('Mul', [castTo(m, castTo(m, h, to, 'there'), DataType.float, 'back'), gammaOf(m)], ['h']);
  },
}); // prettier-ignore
const castOnce = (to: number) => (rms: boolean): Layer => ({
  norm: (m, x) => castTo(m, spell(m, x, rms), to, 'h'),
  project: (m, h) =>
    ['q', 'k', 'v'].map((name, i) => {
      const w = m.floats(`w_${name}`, [K, N], weightValues(K * N, i), to);
      return castTo(m, m.node('MatMul', [h, w], [`${name}_low`]), DataType.float, name);
    }),
}); // prettier-ignore
const spread = (rms: boolean): Layer => ({ dims: [2, 5, 1], norm: (m, x) => spell(m, x, rms) });
const same = (reason: string) => (): string => reason;

/** What is refused, how it comes about, and the reason. */
const REFUSALS: [string, (rms: boolean) => Layer, (rms: boolean) => string][] = [
  ['a negative epsilon', spelling({ epsilonValue: -0.5 }), same('epsilon is -0.5, expected a number >= 0')],
  ['an infinite epsilon', spelling({ epsilonValue: Infinity }), same('epsilon is Infinity, expected a number >= 0')],
  ['a radicand that is a graph output', exposing('radicand'), same("intermediate value 'radicand' is a graph output")],
  ['squares that are a graph output', exposing('squares'), same("intermediate value 'squares' is a graph output")],
  ['a deviation that is read elsewhere', reading('deviation'), same("intermediate value 'deviation' is also read by Neg 'negative_node'")],
  ['a variance that is read elsewhere', reading('variance'), same("intermediate value 'variance' is also read by Neg 'negative_node'")],
  ['a mean(x) that is read elsewhere', reading('mean'), same("intermediate value 'mean' is also read by Neg 'negative_node'")],
  ['a mean(x) that is a graph output', exposing('mean'), same("intermediate value 'mean' is a graph output")],
  ['a mean of squares over another axis', spelling({ varianceAxes: [-2] }), same('axis is -2, rank unknown, expected the last (-1)')],
  ['a mean of squares over two axes', spelling({ varianceAxes: [-2, -1] }), same('ReduceMean has axes [-2, -1], expected [-1]')],
  ['a mean of squares over all axes', spelling({ varianceAxes: [] }), same('ReduceMean has axes [], expected [-1]')],
  ['a mean of squares without keepdims', spelling({ keepdims: 0 }), same('ReduceMean has keepdims=0, expected 1')],
  ['a mean(x) over another axis', spelling({ meanAxes: [1] }), same('axis is 1 of 3 dimensions, expected the last (-1)')],
  ['an exponent that raises the rank', spelling({ powerDims: [1, 1, 1, 1] }), same('the mean is not of squares (Pow 2 or Mul by itself)')],
  ['a normalised value cut to integers', castTwice(DataType.int64), same("the normalised value is cast to int64, expected float32 or x's type")],
  ['a normalised value rounded to float16', castTwice(DataType.float16), same("the normalised value is cast to float16, expected float32 or x's type")],
  ['a result in another type than x', castOnce(DataType.double), same("x is float32 and the normalised value double; the fused op gives x's type")],
  ['rows of one element, spread by the scale', spread, same("the norm's input 'x' has 1 columns, the weights have K = 12")],
  ['a mean of cubes', spelling({ power: 3 }), same('the mean is not of squares (Pow 2 or Mul by itself)')],
]; // prettier-ignore

for (const [rms, name] of [
  [false, 'decomposed-layer-norm'],
  [true, 'decomposed-rms-norm'],
] as const) {
  describe(name, () => {
    const spelt = (spelling: Spelling): Uint8Array =>
      layer({
        opset: spelling.axes && spelling.axes !== 'attribute' ? 18 : 13,
        norm: (m, x) => spell(m, x, rms, spelling),
      });
    const all = rms ? SPELLINGS : { ...SPELLINGS, 'the difference written twice': { twice: true } };

    for (const [what, spelling] of Object.entries(all)) {
      it(what, async () => {
        const { report, nodes, ops, model } = await checkFused(spelt(spelling));
        expect(ops).to.deep.equal(['QKVGemm', 'Transpose', 'MatMul', 'Transpose', 'MatMul']);
        const [site] = report.fused;
        expect(site?.rules).to.deep.equal({ norm: name, projection: 'matmul' });
        expect(site?.node).to.equal('normalised_node/QKVGemm');
        expect(site?.normType).to.equal(rms ? 'rms_norm' : 'layer_norm');
        expect(site?.epsilon).to.be.closeTo(spelling.epsilonValue ?? 1e-5, 1e-12);
        expect(site?.emitNorm).to.equal(false);
        expect(report.refused).to.deep.equal([]);
        const [input, weight, gamma, beta] = nodes[0]?.inputs ?? [];
        expect([input, weight]).to.deep.equal(['x', 'normalised_node/QKVGemm.weight']);
        expect(gamma === 'gamma').to.equal(spelling.gamma !== false);
        if (!rms) expect(beta === 'beta').to.equal(spelling.beta !== false);
        // Two, one, epsilon and the axes went with the nodes that read them.
        expect([...model.graph.initializers.keys()]).to.have.members(
          (nodes[0]?.inputs ?? []).filter((operand) => operand !== '' && operand !== 'x'),
        );
        expect(site?.replaced).to.have.length(
          Object.values(report.opsBefore).reduce((a, b) => a + b, 0) - 4 - constants(spelling),
        );
      });
    }

    for (const cast of ['before scale', 'behind all'] as const) {
      it(`float16 cast to float32, and back ${cast}`, async () => {
        const original = (type: number): Uint8Array => lowLayer(type, (m, x) => spell(m, x, rms, { cast }));
        const { report, nodes } = await checkFused(original(LOW), { bound: HALF_BOUND });
        expect(report.fused[0]?.rules.norm).to.equal(name);
        expect(nodes[0]?.inputs[0], 'the Cast is gone').to.equal('x_low');
      });
    }

    it('an epsilon that raises the rank: no norm', () => {
      const reason = "epsilon 'epsilon' has shape [1, 1, 1, 1], expected one number";
      checkRefused(spelt({ epsilonDims: [1, 1, 1, 1] }), reason, 'radicand_node');
    });

    it('a scale of two dimensions ends the norm before it', () => {
      const norm = (m: ModelBuilder, x: string): string => {
        const h = spell(m, x, rms, { gamma: false, beta: false });
        return m.node('Mul', [h, m.floats('matrix', [5, K], weightValues(5 * K, 1))], ['h']);
      };
      checkRefused(
        layer({ opset: 13, norm }),
        "its output 'normalised' feeds no MatMul or Gemm with constant weights",
      );
    });

    for (const [what, change, reason] of REFUSALS) {
      if (rms && /mean\(x\)/.test(what)) continue;
      it(`refuses ${what}`, () => {
        checkRefused(layer({ opset: 13, ...change(rms) }), reason(rms));
      });
    }
  });
}

/** Constant nodes of a spelling: they are not replaced but left without a reader. */
function constants({ epsilon, axes }: Spelling): number {
  return (epsilon === 'constant' ? 1 : 0) + (axes === 'constant' ? 1 : 0);
}
