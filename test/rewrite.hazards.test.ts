import { expect } from 'chai';
import { ModelBuilder } from '../models/builder.js';
import { QkvGemmError } from '../ts/errors.js';
import { DataType } from '../ts/onnx/tensor.js';
import { concat, integer, readFields, text } from '../ts/onnx/wire.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { attend, K, layer, layerNorm, N, weight, weightValues } from './support/layers.js';
import { spell } from './support/norms.js';

/** Opset that the one function of a model imports for ONNX's own operators. */
function bodyOpset(model: Uint8Array): number | undefined {
  const functions = readFields(model, 'model').filter((field) => field.number === 25);
  expect(functions).to.have.length(1);
  const imports = readFields(functions[0]?.value ?? new Uint8Array(), 'function')
    .filter((field) => field.number === 9)
    .map((field) => readFields(field.value, 'import'))
    .find((fields) => fields.every((field) => field.number !== 1 || text(field) === ''));
  const version = imports?.find((field) => field.number === 2);
  return version && integer(version);
}

/** A norm spelt out, in a model of any opset. */
const spelt = (opset: number, rms: boolean): Uint8Array =>
  layer({ opset, norm: (m, x) => spell(m, x, rms, { axes: opset < 18 ? 'attribute' : 'initialiser' }) });

describe('the function body', () => {
  // 11, 12, 13, 17 and 18 are the first opsets in which an operator of the body, or its Constant, takes other inputs.
  for (const opset of [7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]) {
    for (const rms of [false, true]) {
      it(`is in the model's opset: ${rms ? 'RMSNorm' : 'LayerNorm'}, opset ${opset}`, async () => {
        const { bytes } = await checkFused(spelt(opset, rms));
        expect(bodyOpset(bytes)).to.equal(opset);
      });
    }
  }

  it('of bfloat16 weights needs opset 13', async () => {
    const reason = 'the model is in opset 12, in which the function body cannot read bfloat16; 13 can';
    const { report } = fuseBytes(spelt(12, true), { dtype: 'bf16' });
    expect(report.fused).to.deep.equal([]);
    expect(report.refused.map((refusal) => refusal.reason)).to.deep.equal([reason]);
    fused(spelt(12, true), { options: { dtype: 'bf16', fallback: false } });
    // 2^-9 per weight; Q, K and V multiply.
    await checkFused(spelt(13, true), { options: { dtype: 'bf16' }, bound: 2e-2 });
  });
});

describe('models that say little', () => {
  for (const type of [DataType.float, DataType.float16]) {
    it(`an input of unknown rank, data type ${type}`, async () => {
      const m = new ModelBuilder();
      m.input('x');
      const cast = (from: string, to: number, name: string): string =>
        m.node('Cast', [from], [name], { attributes: { to: { integer: to } } });
      const x = type === DataType.float ? 'x' : cast('x', type, 'x_low');
      const h = spell(m, x, true, type === DataType.float ? {} : { cast: 'behind all' });
      // The first has a bias: its vector, float32, is the node's last input.
      const results = ['q', 'k', 'v'].map((name, i) => {
        const w = m.floats(`w_${name}`, [K, N], weightValues(K * N, i), type);
        const product = m.node('MatMul', [h, w], [`${name}_product`]);
        if (i > 0) return product;
        return m.node('Add', [product, m.floats('b', [N], weightValues(N, 9), type)], ['q_sum']);
      });
      m.output(attend(m, results.map((name) => cast(name, DataType.float, `${name}_f`)))); // prettier-ignore
      // float16: the original rounds the product and the sum to 11 bits each; then Q, K and V multiply.
      const { nodes, model } = await checkFused(m.finish(), { bound: type === DataType.float ? 2e-5 : 4e-3 });
      for (const name of nodes[0]?.outputs.filter((output) => output !== '') ?? [])
        expect(model.graph.valueInfos.get(name), name).to.deep.equal({ name, type, dims: undefined });
    });
  }

  it('an opset in which binary operators do not broadcast as NumPy does', () => {
    checkRefused(spelt(6, true), 'the model is in opset 6, expected 7 or newer');
  });

  it('a norm with a result of its scale’s type, where its input’s is unknown', () => {
    const original = (domain: string): Uint8Array =>
      layer({
        opset: 23,
        opsets: { other: 1 },
        norm: (m, x) => {
          const y = m.node('Identity', [x], ['unknown'], { domain });
          return m.node('RMSNormalization', [y, m.floats('g', [K], weightValues(K, 5))], ['h']);
        },
      });
    checkRefused(original('other'), "the element type of its input 'unknown' is not known");
    fused(original(''));
  });
});

describe('models that are out of the ordinary', () => {
  it('a chain of 20000 Identity nodes behind a norm, to nowhere', () => {
    const original = layer({
      after: (m, h) => {
        for (let i = 0, value = h; i < 20000; i++) value = m.node('Identity', [value], [`i${i}`]);
      },
    });
    const { report, ops } = fused(original);
    expect(report.fused[0]?.emitNorm).to.equal(false);
    expect(ops).to.not.include('Identity');
  });

  it('20000 Identity nodes that read one norm', () => {
    const original = layer({
      after: (m, h) => {
        for (let i = 0; i < 20000; i++) m.node('Identity', [h], [`i${i}`]);
      },
    });
    const { report, ops } = fused(original);
    expect(report.fused[0]?.emitNorm).to.equal(false);
    expect(ops).to.not.include('Identity');
  });

  it('two graphs in one model', () => {
    const model = layer();
    const graph = readFields(model, 'model').find((field) => field.number === 7)?.span ?? new Uint8Array();
    expect(() => fuseBytes(concat([model, graph]))).to.throw(QkvGemmError, /more than one graph/);
  });

  it('a second projection that reads what was computed from the first', async () => {
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    const h = layerNorm(m, 'x');
    const q = m.node('MatMul', [h, weight(m, 'w_q', 0)], ['q']);
    const shifted = m.node('Add', [h, m.node('MatMul', [q, weight(m, 'w_back', 3, [N, K])], ['back'])], ['shifted']);
    const k = m.node('MatMul', [shifted, weight(m, 'w_k', 1)], ['k']);
    const v = m.node('MatMul', [h, weight(m, 'w_v', 2)], ['v']);
    m.output(attend(m, [q, k, v]));
    const { report, ops } = await checkFused(m.finish());
    expect(report.fused[0]?.splits).to.deep.equal([N, N]);
    expect(report.fused[0]?.emitNorm).to.equal(true);
    expect(ops.slice(0, 2)).to.deep.equal(['QKVGemm', 'MatMul']);
  }); // prettier-ignore

  it('one weight for several projections', async () => {
    const original = layer({
      project: (m, h) => {
        const w = weight(m, 'w', 0);
        return ['q', 'k', 'v'].map((name) => m.node('MatMul', [h, w], [name]));
      },
    });
    const { model } = await checkFused(original);
    expect(model.graph.initializers.has('w'), 'the shared weight has no reader left').to.equal(false);
  });
});

describe('a Cast of float32 to itself between two norms', () => {
  /** A norm, the Cast, attention behind it, and an MLP behind a second norm of the same value. */
  const twoNorms = (second: (m: ModelBuilder, x: string) => string, rms: boolean): Uint8Array =>
    layer({
      norm: (m, x) => {
        const attributes = { to: { integer: DataType.float } };
        const h = m.node('Cast', [spell(m, x, rms)], ['same'], { attributes });
        m.output(m.node('Relu', [m.node('MatMul', [second(m, h), weight(m, 'w_up', 7)], ['up'])], ['relu']));
        return h;
      },
    });
  const scale = (m: ModelBuilder): string => m.floats('gamma_2', [K], weightValues(K, 9));
  const SECOND: Record<string, (m: ModelBuilder, x: string) => string> = {
    LayerNormalization: (m, x) => m.node('LayerNormalization', [x, scale(m)], ['second']),
    SimplifiedLayerNormalization: (m, x) => m.node('SimplifiedLayerNormalization', [x, scale(m)], ['second']),
  };
  for (const [what, second] of Object.entries(SECOND))
    for (const rms of [false, true])
      it(`${rms ? 'RMSNorm' : 'LayerNorm'}, then ${what} and a Cast back: it reads what the first gives`, async () => {
        // The second has a Cast behind it as well, which is what makes the rule look for one before it.
        const cast = (m: ModelBuilder, x: string): string =>
          m.node('Cast', [second(m, x)], ['back'], { attributes: { to: { integer: DataType.float } } });
        const { nodes } = await checkFused(twoNorms(cast, rms), {
          count: 2,
          options: { targets: ['qkv', 'mlp'] },
        });
        expect(nodes[0]?.outputs[1]).to.equal('same');
        expect(nodes[1]?.inputs[0]).to.equal('same');
      });
});
