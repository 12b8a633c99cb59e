import { expect } from 'chai';
import type { ModelBuilder } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { checkFused, checkRefused } from './support/fused.js';
import { gammaOf, K, layer, N, weight, weightValues } from './support/layers.js';
import { LOW, spell } from './support/norms.js';

/** `value.type_as(like)`, which torch's exporter leaves as CastLike where it does not optimise. */
const like = (m: ModelBuilder, value: string, other: string, name: string): string =>
  m.node('CastLike', [value, other], [name]);

const rmsNorm = (m: ModelBuilder, x: string): string => spell(m, x, true);
const AT = { dims: ['batch', 'sequence', K], opset: 18 } as const;
const spelling = { axes: 'initialiser' } as const;

describe('CastLike around norms and weights', () => {
  it('behind a norm, to the type that it has', async () => {
    const norm = (m: ModelBuilder, x: string): string => like(m, spell(m, x, true, spelling), x, 'h');
    const { ops, report } = await checkFused(layer({ ...AT, norm }));
    expect(ops).to.not.include('CastLike');
    expect(report.fused[0]?.rules.norm).to.equal('decomposed-rms-norm');
  });

  it('before a norm and behind it: statistics in float32 of a 16-bit value', async () => {
    const norm = (m: ModelBuilder, x: string): string => {
      const wide = like(m, x, m.floats('one', [], [1]), 'wide');
      const mean = m.node('ReduceMean', [m.node('Mul', [wide, wide], ['squares']), m.integers('axes', [1], [-1])], ['mean']);
      const root = m.node('Sqrt', [m.node('Add', [mean, m.floats('epsilon', [], [1e-5])], ['radicand'])], ['root']);
      const value = m.node('Mul', [m.node('Div', [wide, root], ['normalised']), gammaOf(m)], ['scaled']);
      return like(m, value, x, 'h');
    }; // prettier-ignore
    const project = (m: ModelBuilder, h: string): string[] =>
      ['q', 'k', 'v'].map((name, i) =>
        m.node('MatMul', [h, m.floats(`w_${name}`, [K, N], weightValues(K * N, i), LOW)], [name]),
      );
    // ONNX Runtime's CPU provider has no float16 kernels for some of these; it is compared in float32 elsewhere.
    const wideLayer = layer({
      ...AT,
      norm: (m, x) => norm(m, m.node('Cast', [x], ['low'], { attributes: { to: { integer: LOW } } })),
      project: (m, h) => project(m, h).map((name) => m.node('Cast', [name], [`${name}_f`], { attributes: { to: { integer: DataType.float } } })),
    }); // prettier-ignore
    const { ops } = await checkFused(wideLayer, { bound: 4e-3 });
    expect(ops).to.not.include('CastLike');
  });

  it('of a weight', async () => {
    const project = (m: ModelBuilder, h: string): string[] =>
      ['q', 'k', 'v'].map((name, i) =>
        m.node('MatMul', [h, like(m, weight(m, `w_${name}`, i), h, `${name}_w`)], [name]),
      );
    const { ops } = await checkFused(layer({ ...AT, norm: (m, x) => spell(m, x, true, spelling), project })); // prettier-ignore
    expect(ops).to.not.include('CastLike');
  });

  it('of a norm in float32 to 16 bits: the node stays in float32, its results are cast', async () => {
    const norm = (m: ModelBuilder, x: string): string =>
      like(m, spell(m, x, true, spelling), m.floats('low', [], [1], LOW), 'h');
    const project = (m: ModelBuilder, h: string): string[] =>
      ['q', 'k', 'v'].map((name, i) => {
        const w = m.floats(`w_${name}`, [K, N], weightValues(K * N, i), LOW);
        const product = m.node('MatMul', [h, w], [`${name}_low`]);
        return m.node('Cast', [product], [name], { attributes: { to: { integer: DataType.float } } });
      });
    const { ops, nodes } = await checkFused(layer({ ...AT, norm, project }), { bound: 4e-3 });
    expect(ops).to.not.include('CastLike');
    expect(nodes[0]?.inputs[0]).to.equal('x');
  });

  it('to another type: refused', () => {
    const norm = (m: ModelBuilder, x: string): string =>
      like(m, spell(m, x, true, spelling), m.integers('counts', [1], [1]), 'h');
    const project = (m: ModelBuilder, h: string): string[] =>
      ['q', 'k', 'v'].map((name, i) =>
        m.node('MatMul', [h, m.integers(`w_${name}`, [K, N], Array<number>(K * N).fill(i))], [name]),
      );
    checkRefused(
      layer({ ...AT, norm, project, expose: false }),
      "x is float32 and the normalised value int64; the fused op gives x's type",
      'h_node',
    );
  });

  it('to a type that is not known: the norm ends before it, and nothing is fused', () => {
    const norm = (m: ModelBuilder, x: string): string =>
      like(m, rmsNorm(m, x), m.node('Mystery', [x], ['other'], { domain: 'some.where' }), 'h');
    const model = layer({ norm, opsets: { 'some.where': 1 } });
    checkRefused(model, "its output 'scaled' feeds no MatMul or Gemm with constant weights", 'h_node');
  });

  it('of integers is no weight', () => {
    const project = (m: ModelBuilder, h: string): string[] =>
      ['q', 'k', 'v'].map((name, i) => m.node('MatMul', [h, like(m, m.integers(`w_${name}`, [K, N], Array<number>(K * N).fill(i)), h, `${name}_w`)], [name])); // prettier-ignore
    checkRefused(
      layer({ project }),
      "the weight is not constant: 'q_w' is computed by CastLike 'q_w_node'",
      'q_node',
    );
  });
});
