import { expect } from 'chai';
import { type ModelBuilder, uniform } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { toFloat32 } from '../ts/rewrite/weights/convert.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { gammaOf, K, layer, N, weight, weightValues, xTensor } from './support/layers.js';
import { spell } from './support/norms.js';
import { runModel } from './support/run.js';

const { float, float16, bfloat16, int64 } = DataType;
const REST = ['Transpose', 'MatMul', 'Transpose', 'MatMul'];

const cast = (m: ModelBuilder, from: string, to: number, name: string): string =>
  m.node('Cast', [from], [name], { attributes: { to: { integer: to } } });

/** Layer of 16-bit activations: `norm` takes and gives them; float32 at the graph's ends. */
function low(
  norm: (m: ModelBuilder, x: string) => string,
  after: (m: ModelBuilder, h: string) => void = () => undefined,
  opset = 17,
  type: number = float16,
): Uint8Array {
  return layer({
    opset,
    irVersion: 10,
    norm: (m, x) => norm(m, cast(m, x, type, 'x_low')),
    project: (m, h) =>
      ['q', 'k', 'v'].map((name, i) => {
        const w = m.floats(`w_${name}`, [K, N], weightValues(K * N, i), type);
        return cast(m, m.node('MatMul', [h, w], [`${name}_low`]), float, name);
      }),
    after,
  });
}

/** The original rounds the normalised value and the product to 11 bits each; then Q K V multiply. */
const HALF = { bound: 4e-3 };
const scale = (m: ModelBuilder, type: number = float): string =>
  m.floats('gamma', [K], uniform(K, 0.4, 3, 1), type);

describe('norms of one node in float32 between 16-bit values', () => {
  for (const [opType, opset] of [['LayerNormalization', 17], ['SimplifiedLayerNormalization', 17], ['RMSNormalization', 23]] as const) {
    const norm = (m: ModelBuilder, x: string): string =>
      cast(m, m.node(opType, [cast(m, x, float, 'x_f'), scale(m)], ['h']), float16, 'h_low');

    it(`${opType}: both Casts are taken in`, async () => {
      const { nodes, ops } = await checkFused(low(norm, undefined, opset), HALF);
      expect(nodes[0]?.inputs[0]).to.equal('x_low');
      expect(nodes[0]?.inputs[2]).to.equal('gamma');
      expect(ops.filter((op) => op === 'Cast')).to.have.length(4);
    });

    it(`${opType}: a Cast of x that others read stays for them`, async () => {
      const { nodes, ops } = await checkFused(low(norm, (m) => m.output(m.node('Neg', ['x_f'], ['less'])), opset), HALF);
      expect(nodes[0]?.inputs[0]).to.equal('x_low');
      expect(ops.filter((op) => op === 'Cast')).to.have.length(5);
    });

    it(`${opType}: read in float32 too, it stays in float32, and the node's results are cast`, async () => {
      const original = low(norm, (m) => m.output(m.node('Neg', ['h'], ['less'])), opset);
      const { nodes, model, report } = await checkFused(original, HALF);
      expect(nodes[0]?.inputs[0]).to.equal('x_f');
      expect(nodes[0]?.outputs[1]).to.equal('h');
      expect(report.fused[0]).to.include({ weightType: 'float16', emitNorm: true });
      for (const [i, name] of ['q', 'k', 'v'].entries()) {
        const maker = model.graph.nodes.find(({ outputs }) => outputs.includes(`${name}_low`));
        expect(maker?.opType).to.equal('Cast');
        expect(maker?.inputs[0]).to.equal(nodes[0]?.outputs[i === 0 ? 0 : i + 1]);
      }
      // What is read in float32 never was of 16 bits: it comes out as exact as from the original.
      const reader = low((m, x) => norm(m, x), (m) => m.output(m.node('Neg', ['h'], ['less'])), opset);
      const [expected, actual] = [await runModel(reader, [xTensor()]), await runModel(fused(reader).bytes, [xTensor()])];
      expect(worstDifference(expected.slice(-1), actual.slice(-1))).to.be.below(1e-6);
    });

    it(`${opType}: in float32, of a float32 x, behind which only a Cast stands`, async () => {
      const mixed = layer({
        opset,
        irVersion: 10,
        norm: (m, x) => cast(m, m.node(opType, [x, scale(m, float)], ['h']), float16, 'h_low'),
        project: (m, h) =>
          ['q', 'k', 'v'].map((name, i) => {
            const product = m.node('MatMul', [h, m.floats(`w_${name}`, [K, N], weightValues(K * N, i), float16)], [`${name}_low`]);
            return cast(m, m.node('Add', [product, m.floats(`b_${name}`, [N], weightValues(N, 7 + i), float16)], [`${name}_sum`]), float, name);
          }),
      });
      const { nodes, ops, report } = await checkFused(mixed, HALF);
      expect(nodes[0]?.inputs[0]).to.equal('x');
      expect(report.fused[0]).to.include({ weightType: 'float16', emitNorm: false });
      // The norm's Cast is gone; each result is rounded once, behind the bias.
      expect(ops.filter((op) => op === 'Cast' || op === 'Add')).to.have.length(6);
    });

    it(`${opType}: refused where weights in the Cast's type are missing, or the norm's result goes to a third type`, () => {
      const going = (to: number, weights: number): Uint8Array =>
        layer({
          opset,
          irVersion: 10,
          norm: (m, x) => cast(m, m.node(opType, [x, scale(m, float)], ['h']), to, 'h_low'),
          project: (m, h) => ['q', 'k'].map((name, i) => cast(m, m.node('MatMul', [h, m.floats(`w_${name}`, [K, N], weightValues(K * N, i), weights)], [`${name}_low`]), float, name)),
        });
      checkRefused(going(DataType.double, float), "its output 'h' feeds no MatMul or Gemm with constant weights");
      checkRefused(going(bfloat16, float16), "the norm's input is bfloat16, the weight 'w_q' float16", 'q_low_node');
    });

    it(`${opType}: one node for float32's projections or for the Cast's, whichever are more`, async () => {
      const both = layer({
        opset,
        irVersion: 10,
        norm: (m, x) => m.node(opType, [x, scale(m, float)], ['h']),
        project: (m, h) => {
          const low = cast(m, h, float16, 'h_low');
          const [q, k] = ['q', 'k'].map((name, i) => cast(m, m.node('MatMul', [low, m.floats(`w_${name}`, [K, N], weightValues(K * N, i), float16)], [`${name}_low`]), float, name));
          return [q ?? '', k ?? '', m.node('MatMul', [h, weight(m, 'w_v', 2)], ['v'])];
        },
      });
      const { report } = await checkFused(both, HALF);
      expect(report.fused[0]?.splits).to.deep.equal([N, N]);
      expect(report.refused.map(({ node, reason }) => [node, reason])).to.deep.equal([
        ['v_node', "the weight 'w_v' is float32, 'w_q' float16, behind a Cast of the norm: one node has one type of weights"],
      ]);
    });
  } // prettier-ignore

  it('a result that has the type of a float32 scale, and is cast to x\'s type', async () => {
    const norm = (m: ModelBuilder, x: string): string =>
      cast(m, m.node('SimplifiedLayerNormalization', [x, scale(m)], ['h']), float16, 'h_low');
    const { nodes, ops } = await checkFused(low(norm), HALF);
    expect(nodes[0]?.inputs[0]).to.equal('x_low');
    expect(ops).to.deep.equal(['Cast', 'QKVGemm', 'Cast', 'Cast', 'Cast', ...REST]);
  }); // prettier-ignore
});

describe('decomposed norms with Casts inside', () => {
  /** Statistics in float32 of 16-bit x; the factor is cast back before x is multiplied, or the deviation before x is divided. */
  const inner =
    (how: 'inverse' | 'deviation', back: number = float16) =>
    (m: ModelBuilder, x: string): string => {
      const squares = m.node('Pow', [cast(m, x, float, 'x_f'), m.floats('two', [], [2])], ['squares']);
      const mean = m.node('ReduceMean', [squares], ['variance'], {
        attributes: { axes: { integers: [-1] } },
      });
      const radicand = m.node('Add', [mean, m.floats('epsilon', [], [1e-3])], ['radicand']);
      const root = m.node('Sqrt', [radicand], ['root']);
      const factor = how === 'inverse' ? m.node('Reciprocal', [root], ['inverse']) : root;
      const narrow = cast(m, factor, back, 'factor');
      const h = m.node(how === 'inverse' ? 'Mul' : 'Div', [x, narrow], ['normalised']);
      return m.node('Mul', [h, scale(m, float16)], ['h']);
    };

  for (const how of ['inverse', 'deviation'] as const) {
    it(`the ${how} in x's type`, async () => {
      const { nodes, report } = await checkFused(low(inner(how)), { bound: 8e-3 });
      expect(report.fused[0]?.rules.norm).to.equal('decomposed-rms-norm');
      expect(nodes[0]?.inputs[0]).to.equal('x_low');
    });
  }

  it('refuses a deviation in a type that is not that of x', () => {
    const through = (m: ModelBuilder, x: string): string => {
      const mean = m.node('ReduceMean', [m.node('Mul', [x, x], ['squares'])], ['variance'], { attributes: { axes: { integers: [-1] } } });
      const radicand = m.node('Add', [mean, m.floats('epsilon', [], [1e-3])], ['radicand']);
      const root = cast(m, m.node('Sqrt', [radicand], ['root']), int64, 'root_i');
      return m.node('Div', [x, root], ['normalised']);
    };
    checkRefused(
      layer({ opset: 13, norm: through }),
      "the deviation is cast to int64, expected float32 or x's type",
      'root_i_node',
    );
  }); // prettier-ignore

  it('refuses squares of x rounded to fewer bits', () => {
    const norm = (m: ModelBuilder, x: string): string => {
      const rounded = cast(m, x, float16, 'x_low');
      const mean = m.node('ReduceMean', [m.node('Mul', [rounded, rounded], ['squares'])], ['variance_low'], { attributes: { axes: { integers: [-1] } } });
      const sum = m.node('Add', [mean, m.floats('epsilon', [], [1e-3], float16)], ['radicand']);
      return m.node('Div', [x, cast(m, m.node('Sqrt', [sum], ['root_low']), float, 'root')], ['normalised']);
    };
    checkRefused(
      layer({ opset: 13, norm }),
      "the squares are of 'x_low', not of the numerator 'x'",
      'squares_node',
    );
  }); // prettier-ignore
});

describe('norms spelt out in float32, cast to 16 bits behind', () => {
  const cases: [string, (m: ModelBuilder, x: string) => string, string][] = [
    ['of x in float32', (_, x) => x, 'x'],
    ['of x cast up from float16', (m, x) => cast(m, cast(m, x, float16, 'x_low'), float, 'x_f'), 'x_f'],
  ];
  for (const rms of [true, false])
    for (const [what, before, input] of cases)
      for (const both of [true, false]) {
        // A Cast before it and nobody else behind it: all of it is of 16 bits.
        if (input === 'x_f' && !both) continue;
        it(`${rms ? 'RMSNorm' : 'LayerNorm'} ${what}${both ? ', read in float32 too' : ''}`, async () => {
          const original = layer({
            opset: 13,
            norm: (m, x) => spell(m, before(m, x), rms),
            project: (m, h) => {
              const narrow = cast(m, h, float16, 'h_low');
              if (both) m.output(m.node('Neg', [h], ['less']));
              return ['q', 'k', 'v'].map((name, i) => {
                const w = m.floats(`w_${name}`, [K, N], weightValues(K * N, i), float16);
                return cast(m, m.node('MatMul', [narrow, w], [`${name}_low`]), float, name);
              });
            },
          });
          const { nodes, report } = await checkFused(original, HALF);
          expect(nodes[0]?.inputs[0]).to.equal(input);
          expect(report.fused[0]).to.include({ weightType: 'float16', emitNorm: both });
        });
      }
});

describe('scales that are computed from constants', () => {
  /** gamma, stored as `stored`; the graph adds one in `type`, and multiplies in float32. */
  const onePlus =
    (stored: number, type: number, order: 'gamma first' | 'one first', spelt: boolean) =>
    (m: ModelBuilder, x: string): string => {
      const gamma = m.floats('gamma', [K], uniform(K, 0.4, 3), stored);
      const wide = stored === type ? gamma : cast(m, gamma, type, 'gamma_wide');
      const one = m.floats('one', [], [1], type);
      let g = m.node('Add', order === 'gamma first' ? [wide, one] : [one, wide], ['one_plus']);
      if (type !== float) g = cast(m, g, float, 'one_plus_f');
      if (!spelt) return m.node('SimplifiedLayerNormalization', [x, g], ['h']);
      return m.node('Mul', [spell(m, x, true, { gamma: false }), g], ['h']);
    };
  const values = (type: number): Float32Array => {
    const m = uniform(K, 0.4, 3);
    if (type === float) return m.map((value) => 1 + value);
    const view = new Uint16Array(m.length);
    const bits = new Uint32Array(m.buffer.slice(0));
    bits.forEach((u, i) => (view[i] = (u + 0x7fff + ((u >>> 16) & 1)) >>> 16));
    return toFloat32(new Uint8Array(view.buffer), bfloat16).map((value) => 1 + value);
  };

  for (const spelt of [true, false]) {
    const how = spelt ? 'of a decomposed norm' : 'of one node';
    for (const order of ['gamma first', 'one first'] as const) {
      it(`1 + gamma ${how}, ${order}`, async () => {
        const original = layer({ opset: 13, norm: onePlus(float, float, order, spelt) });
        const { model, nodes, ops } = await checkFused(original);
        expect(ops).to.deep.equal(['QKVGemm', ...REST]);
        const stored = model.graph.initializers.get(nodes[0]?.inputs[2] ?? '');
        expect(Float32Array.from(toFloat32(stored?.bytes() ?? new Uint8Array(), float))).to.deep.equal(
          values(float),
        );
        expect(model.graph.initializers.has('one')).to.equal(false);
      });
    }

    it(`1 + gamma ${how} of a bfloat16 gamma: the sum keeps float32's digits`, async () => {
      const wide = layer({ opset: 13, norm: onePlus(bfloat16, float, 'one first', spelt) });
      const { model, nodes } = await checkFused(wide);
      const stored = model.graph.initializers.get(nodes[0]?.inputs[2] ?? '');
      expect(Float32Array.from(toFloat32(stored?.bytes() ?? new Uint8Array(), float))).to.deep.equal(
        values(bfloat16),
      );
      // Where the graph adds in bfloat16, the fused node is closer to the true sum: 2^-9 is what the graph loses.
      const narrow = layer({ opset: 14, norm: onePlus(bfloat16, bfloat16, 'one first', spelt) });
      await checkFused(narrow, { reference: wide });
    });
  }

  it('a scale behind a Cast to fewer bits is rounded as the Cast does', async () => {
    const norm = (m: ModelBuilder, x: string): string => {
      const g = cast(m, cast(m, m.floats('gamma', [K], uniform(K, 0.4, 3, 1)), float16, 'g_low'), float, 'g');
      return m.node('LayerNormalization', [x, g], ['h']);
    };
    await checkFused(layer({ norm }));
  });

  it('refuses a sum of two vectors, and one with a number that callers choose', () => {
    const sum = (other: (m: ModelBuilder) => string): Uint8Array =>
      layer({
        norm: (m, x) => {
          const g = m.node('Add', [m.floats('gamma', [K], uniform(K, 0.4, 3)), other(m)], ['g']);
          return m.node('LayerNormalization', [x, g], ['h']);
        },
      });
    const reason = "the scale is not constant: 'g' is computed by Add 'g_node'";
    checkRefused(
      sum((m) => m.floats('more', [K], uniform(K, 0.4, 5))),
      reason,
    );
    checkRefused(
      sum((m) => m.input('one', [])),
      reason,
    );
  });

  it("a norm whose type is its scale's, behind ONNX Runtime's own operators, whose result has their input's", async () => {
    const behind =
      (domain: string) =>
      (m: ModelBuilder, x: string): string => {
        const g = m.node('Gelu', [x], ['g'], { domain });
        return m.node('SimplifiedLayerNormalization', [g, gammaOf(m)], ['h']);
      };
    await checkFused(layer({ norm: behind('com.microsoft'), opsets: { 'com.microsoft': 1 } }));
    checkRefused(
      layer({ norm: behind('some.where'), opsets: { 'some.where': 1 } }),
      "the element type of its input 'g' is not known",
    );
  });
});
