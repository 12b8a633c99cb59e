/** LayerNorm and RMSNorm spelt out in arithmetic, in the ways that exporters write them. */
import type { ExternalPlace, ModelBuilder } from '../../models/builder.js';
import { DataType } from '../../ts/onnx/tensor.js';
import { betaOf, gammaOf } from './layers.js';

export interface Spelling {
  square?: 'pow' | 'mul';
  /** d / sqrt(v), d * (1 / sqrt(v)) with Reciprocal or Div, d * v^-0.5; `swapped`: the factor is the first operand. */
  divide?: 'div' | 'reciprocal' | 'reciprocal swapped' | 'one over' | 'power';
  root?: 'sqrt' | 'power';
  /** Where ReduceMean finds its axes; `attribute` up to opset 17, the others from 18 on. */
  axes?: 'attribute' | 'initialiser' | 'constant';
  epsilon?: 'initialiser' | 'constant' | 'first' | 'scalar of rank 1';
  epsilonValue?: number;
  gamma?: boolean | 'first';
  beta?: boolean | 'first';
  /** The squares are of a second x - mean(x). */
  twice?: boolean;
  /** x is cast to float32 first, and back: before the scale or behind it. */
  cast?: 'before scale' | 'behind all';
  /** What no norm over the last axis has: other axes, another power, constants with more dimensions than x. */
  meanAxes?: readonly number[];
  varianceAxes?: readonly number[];
  keepdims?: number;
  power?: number;
  powerDims?: readonly number[];
  epsilonDims?: readonly number[];
  /** Constants that lie in an external file, by name. */
  external?: Record<string, ExternalPlace>;
}

/** Element type that `cast` comes from. */
export const LOW = DataType.float16;

/** Writes the norm of `x`; returns its output. Values are named after what they are. */
export function spell(m: ModelBuilder, x: string, rms: boolean, s: Spelling = {}): string {
  const { axes = 'attribute', epsilonValue = 1e-5, cast } = s;
  const scalar = (name: string, value: number, dims: readonly number[] = []): string => {
    const place = s.external?.[name];
    return place ? m.external(name, dims, place) : m.floats(name, dims, [value]);
  };
  if (axes === 'initialiser') m.integers('axes', [1], [-1]);
  if (axes === 'constant')
    m.node('Constant', [], ['axes'], { attributes: { value_ints: { integers: [-1] } } });
  const mean = (of: string, name: string, over: readonly number[] = [-1], keepdims = 1): string =>
    axes === 'attribute'
      ? m.node('ReduceMean', [of], [name], {
          attributes: { axes: { integers: over }, keepdims: { integer: keepdims } },
        })
      : m.node('ReduceMean', [of, 'axes'], [name]);

  const input = cast ? m.node('Cast', [x], ['x_f'], { attributes: { to: { integer: DataType.float } } }) : x;
  const d = rms ? input : m.node('Sub', [input, mean(input, 'mean', s.meanAxes)], ['d']);
  const other = s.twice ? m.node('Sub', [input, mean(input, 'mean2')], ['d2']) : d;
  const squares =
    s.square === 'mul'
      ? m.node('Mul', [other, other], ['squares'])
      : m.node('Pow', [other, scalar('two', s.power ?? 2, s.powerDims)], ['squares']);
  const variance = mean(squares, 'variance', s.varianceAxes, s.keepdims);
  const epsilon =
    s.epsilon === 'constant'
      ? m.constant('epsilon', [], [epsilonValue])
      : scalar('epsilon', epsilonValue, s.epsilonDims ?? (s.epsilon === 'scalar of rank 1' ? [1] : []));
  const v = m.node('Add', s.epsilon === 'first' ? [epsilon, variance] : [variance, epsilon], ['radicand']);
  let h = divide(m, d, v, s, scalar);
  const back = (): string => m.node('Cast', [h], ['h_low'], { attributes: { to: { integer: LOW } } });
  const low = cast === 'before scale' ? LOW : DataType.float;
  if (cast === 'before scale') h = back();
  if (s.gamma !== false) {
    const gamma = gammaOf(m, low);
    h = m.node('Mul', s.gamma === 'first' ? [gamma, h] : [h, gamma], ['scaled']);
  }
  if (!rms && s.beta !== false) {
    const beta = betaOf(m, low);
    h = m.node('Add', s.beta === 'first' ? [beta, h] : [h, beta], ['shifted']);
  }
  return cast === 'behind all' ? back() : h;
}

function divide(
  m: ModelBuilder,
  d: string,
  v: string,
  { divide: how = 'div', root = 'sqrt' }: Spelling,
  scalar: (name: string, value: number) => string,
): string {
  if (how === 'power')
    return m.node('Mul', [d, m.node('Pow', [v, scalar('minus_half', -0.5)], ['inverse'])], ['normalised']);
  const deviation =
    root === 'power'
      ? m.node('Pow', [v, scalar('half', 0.5)], ['deviation'])
      : m.node('Sqrt', [v], ['deviation']);
  if (how === 'div') return m.node('Div', [d, deviation], ['normalised']);
  const inverse =
    how === 'one over'
      ? m.node('Div', [scalar('one', 1), deviation], ['inverse'])
      : m.node('Reciprocal', [deviation], ['inverse']);
  return m.node('Mul', how === 'reciprocal swapped' ? [inverse, d] : [d, inverse], ['normalised']);
}
