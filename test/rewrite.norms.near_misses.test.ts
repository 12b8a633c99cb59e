import { expect } from 'chai';
import { ModelBuilder, uniform } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { checkFused, checkRefused, checkUntouched } from './support/fused.js';
import { attend, K, layer, layerNorm, threeMatMul } from './support/layers.js';
import { spell } from './support/norms.js';

const LAST = { attributes: { axes: { integers: [-1] } } };

/** x divided by the root of its mean of squares; each step may be written in another way. */
interface Steps {
  squares?: (m: ModelBuilder, squares: string) => string;
  sum?: (m: ModelBuilder, mean: string) => string;
  root?: (m: ModelBuilder, sum: string) => string;
  divide?: (m: ModelBuilder, x: string, root: string) => string;
}

const spelt = (steps: Steps): Uint8Array =>
  layer({
    opset: 13,
    norm: (m, x) => {
      const squares = m.node('Mul', [x, x], ['squares']);
      const mean = m.node('ReduceMean', [(steps.squares ?? ((_, name) => name))(m, squares)], ['mean'], LAST);
      const epsilon = (): string => m.floats('epsilon', [], [1e-3]);
      const sum = steps.sum?.(m, mean) ?? m.node('Add', [mean, epsilon()], ['sum']);
      const root = steps.root?.(m, sum) ?? m.node('Sqrt', [sum], ['root']);
      return steps.divide?.(m, x, root) ?? m.node('Div', [x, root], ['h']);
    },
  });

describe('what looks like a norm and is none that a rule knows', () => {
  const MISSES: Record<string, [Steps, string, string]> = {
    'an epsilon that is computed': [
      { sum: (m, mean) => m.node('Add', [mean, m.node('Neg', [m.floats('e', [], [-1e-3])], ['epsilon'])], ['sum']) },
      "epsilon is not constant: 'epsilon' is computed by Neg 'epsilon_node'",
      'sum_node',
    ],
    'an epsilon for each row': [
      { sum: (m, mean) => m.node('Add', [mean, m.floats('e', [5, 1], uniform(5, 0.1, 1, 1))], ['sum']) },
      "epsilon 'e' has shape [5, 1], expected one number",
      'sum_node',
    ],
    'a Max in place of the Add': [
      { sum: (m, mean) => m.node('Max', [mean, m.floats('e', [], [1e-3])], ['sum']) },
      'the mean of squares is read by Max, expected Add of epsilon',
      'sum_node',
    ],
    'an Abs before the root': [
      { root: (m, sum) => m.node('Sqrt', [m.node('Abs', [sum], ['abs'])], ['root']) },
      'the mean of squares and epsilon is read by Abs, expected Sqrt or Pow by 0.5 or -0.5',
      'abs_node',
    ],
    'a root that is not divided by': [
      { divide: (m, x, root) => m.node('Sub', [x, root], ['h']) },
      'the deviation is read by Sub, expected a division of what was squared',
      'h_node',
    ],
    'squares that are rounded, and a Max': [
      {
        sum: (m, mean) => m.node('Max', [mean, m.floats('e', [], [1e-3])], ['sum']),
        squares: (m, squares) =>
          m.node('Cast', [m.node('Cast', [squares], ['low'], { attributes: { to: { integer: DataType.float16 } } })], ['back'], { attributes: { to: { integer: DataType.float } } }),
      },
      'the squares go through Cast, expected their ReduceMean right behind',
      'low_node',
    ],
  }; // prettier-ignore
  for (const [what, [steps, reason, at]] of Object.entries(MISSES)) {
    it(`${what}: the report says at which step`, () => {
      checkRefused(spelt(steps), reason, at);
    });
  }

  it('is not reported again where a rule has found it or said why not', async () => {
    await checkFused(spelt({}));
    checkRefused(
      layer({ opset: 13, norm: (m, x) => spell(m, x, false, { keepdims: 0 }) }),
      'ReduceMean has keepdims=0, expected 1',
    );
  });

  it('a mean of squares without a root is none (a loss, an energy)', () => {
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    const mean = m.node('ReduceMean', [m.node('Mul', ['x', 'x'], ['squares'])], ['mean'], LAST);
    m.output(m.node('Add', [mean, m.floats('e', [], [1])], ['energy']));
    checkUntouched(m.finish());
  });

  it('beside a layer that is fused, it is told of that one alone', async () => {
    const m = new ModelBuilder({ '': 17 });
    m.input('x', ['batch', 'sequence', K]);
    m.output(attend(m, threeMatMul(m, layerNorm(m, 'x'))));
    const mean = m.node('ReduceMean', [m.node('Mul', ['x', 'x'], ['squares'])], ['mean'], LAST);
    m.output(m.node('Sqrt', [mean], ['root']));
    const { report } = await checkFused(m.finish());
    expect(report.refused.map(({ node, reason, at }) => [node, reason, at])).to.deep.equal([
      ['mean_node', 'the mean of squares is read by Sqrt, expected Add of epsilon', 'root_node'],
    ]);
  });
});
