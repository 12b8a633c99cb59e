import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { ModelBuilder, uniform } from '../models/builder.js';
import { QkvGemmError } from '../ts/errors.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import type { Target } from '../ts/rewrite/options.js';
import { K, layer, layerNorm, N, threeMatMul, weight, xTensor } from './support/layers.js';
import { checkFused, checkRefused, fused, type Check } from './support/fused.js';

const asking = (...targets: Target[]): Check => ({ options: { targets } });

const matMul = (m: ModelBuilder, x: string, name: string, dims: readonly number[], seed: number): string =>
  m.node('MatMul', [x, weight(m, `w_${name}`, seed, dims)], [name]);
const add = (m: ModelBuilder, x: string, name: string, n: number): string =>
  m.node('Add', [x, m.floats(`b_${name}`, [n], uniform(n, 0.5, n + 70))], [`${name}_b`]);

/** Behind a norm: attention, and a gated MLP beside it. */
const parallel = (): Uint8Array =>
  layer({
    after: (m, h) => {
      const [gate, up] = ['gate', 'up'].map((name, i) => matMul(m, h, name, [K, 20], 30 + i)) as [string, string];
      const act = m.node('Mul', [m.node('Sigmoid', [gate], ['act']), up], ['gated']);
      m.output(add(m, matMul(m, act, 'down', [20, K], 33), 'down', K));
    },
  }); // prettier-ignore

describe('targets', () => {
  it('qkv, the default: the MLP beside attention reads the norm', async () => {
    for (const check of [{}, asking('qkv')]) {
      const { report } = await checkFused(parallel(), check);
      expect(report.fused[0]?.targets).to.deep.equal(['qkv']);
      expect(report.fused[0]?.splits).to.deep.equal([N, N, N]);
      expect(report.fused[0]?.emitNorm).to.equal(true);
    }
  });

  it('mlp: attention reads the norm', async () => {
    const { report, nodes } = await checkFused(parallel(), asking('mlp'));
    expect(report.fused[0]?.targets).to.deep.equal(['mlp']);
    expect(nodes[0]?.outputs).to.deep.equal(['gate', 'h', 'up']);
  });

  it('qkv and mlp: one node for both, and the norm is nobody else’s', async () => {
    const { report, nodes, ops } = await checkFused(parallel(), asking('mlp', 'qkv'));
    expect(report.fused[0]?.targets).to.deep.equal(['qkv', 'mlp']);
    expect(nodes[0]?.outputs).to.deep.equal(['q', '', 'k', 'v', 'gate', 'up']);
    expect(report.fused[0]?.emitNorm).to.equal(false);
    expect(ops.filter((op) => op === 'MatMul')).to.have.length(3);
  });

  it('linear alone: projections of one value together, and the norm stays', async () => {
    const { report, ops } = await checkFused(parallel(), { ...asking('linear'), count: 2 });
    expect(report.fused.map(({ splits }) => splits)).to.deep.equal([[N, N, N, 20, 20], [K]]);
    expect(report.fused.map(({ normType, rules }) => [normType, rules.norm])).to.deep.equal([
      ['none', 'none'],
      ['none', 'none'],
    ]);
    expect(report.fused.map(({ node }) => node)).to.deep.equal(['q_node/QKVGemm', 'down_node/QKVGemm']);
    expect(ops).to.include('LayerNormalization');
    // One body for both; without a norm there is a gap before the bias.
    expect(report.functions).to.deep.equal(['com.deepspeed:QKVGemm']);
    expect(report.requires.onnxruntime).to.equal('1.24.1');
  });

  it('all three: each projection once', async () => {
    const { report, nodes } = await checkFused(parallel(), { ...asking('qkv', 'mlp', 'linear'), count: 2 });
    expect(report.fused.map(({ targets }) => targets)).to.deep.equal([['qkv', 'mlp'], ['linear']]);
    expect(nodes[1]?.inputs).to.deep.equal(['gated', 'w_down', '', '', 'b_down']);
    expect(nodes[1]?.outputs).to.deep.equal(['down_b']);
    expect(nodes[1]?.attributes.get('norm_type')?.string).to.equal('none');
  });

  it('qkv and linear: the MLP’s projections read the norm that the first node gives', async () => {
    const { nodes } = await checkFused(parallel(), { ...asking('qkv', 'linear'), count: 3 });
    expect(nodes.map(({ inputs }) => inputs[0])).to.deep.equal(['x', 'h', 'gated']);
    expect(nodes[0]?.outputs[1]).to.equal('h');
  });

  for (const [dtype, bound] of [
    ['fp16', 3e-3],
    ['bf16', 3e-2],
    ['int8', 5e-2],
  ] as const) {
    it(`all three in ${dtype}`, async () => {
      await checkFused(parallel(), {
        options: { targets: ['qkv', 'mlp', 'linear'], dtype },
        count: 2,
        bound,
      });
    });
  }

  it('a norm that feeds an MLP alone is refused for qkv, and fused for mlp', async () => {
    const mlp = layer({
      project: (m, h) => [m.node('Relu', [matMul(m, h, 'up', [K, 20], 5)], ['act'])],
      expose: false,
      after: (m) => m.output(matMul(m, 'act', 'down', [20, K], 6)),
    });
    // What attend() makes of one value is a product of computed ones: it leads to attention.
    const { report } = fuseBytes(mlp);
    expect(report.fused).to.have.length(1);
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    const up = m.node('Relu', [matMul(m, layerNorm(m, 'x'), 'up', [K, 20], 5)], ['act']);
    m.output(matMul(m, up, 'down', [20, K], 6));
    const alone = m.finish();
    checkRefused(
      alone,
      "none of its 1 projections leads to attention (they meet a constant weight or the graph's end first)",
      'up_node',
    );
    await checkFused(alone, asking('mlp'));
  });

  it('mlp alone: a norm whose projections all lead to attention is refused', () => {
    const { report, model } = fuseBytes(layer(), { targets: ['mlp'] });
    expect(report.refused.map(({ reason, at }) => [reason, at])).to.deep.equal([
      ['its 3 projections lead to attention, which the targets leave out', 'q_node'],
    ]);
    expect(report.fused).to.deep.equal([]);
    expect(model.length).to.equal(report.bytesBefore);
  });

  it('what is no list of targets is an error that names them', () => {
    for (const targets of [[], ['attention'], 'qkv', null]) {
      expect(() => fuseBytes(layer(), { targets: targets as never }))
        .to.throw(QkvGemmError, 'expected a list of one or more of qkv, mlp, linear')
        .with.property('code', 'INVALID_ARGUMENT');
    }
  });
});

describe('linear', () => {
  const one = (write: (m: ModelBuilder) => string, dims: readonly (number | string)[] = ['rows', K]): Uint8Array => {
    const m = new ModelBuilder();
    m.input('x', dims);
    m.output(write(m));
    return m.finish();
  }; // prettier-ignore
  const linear = asking('linear');

  it('Gemm behind a Reshape: the Reshape stays', async () => {
    const original = one(
      (m) => {
        const flat = m.node('Reshape', ['x', m.integers('flat', [2], [-1, K])], ['x_flat']);
        const c = m.floats('c', [N], uniform(N, 1, 5));
        return m.node('Gemm', [flat, weight(m, 'w', 1, [N, K]), c], ['y'], {
          attributes: { transB: { integer: 1 } },
        });
      },
      [2, 3, K],
    );
    const { nodes, ops } = await checkFused(original, { ...linear, inputs: [xTensor([2, 3, K])] });
    expect(ops).to.deep.equal(['Reshape', 'QKVGemm']);
    expect(nodes[0]?.inputs).to.deep.equal(['x_flat', 'w', '', '', 'c']);
    expect(nodes[0]?.integer('transposed', 0)).to.equal(1);
  });

  it('cut behind it: pieces are outputs', async () => {
    const original = one((m) => {
      const packed = matMul(m, 'x', 'packed', [K, 2 * N], 1);
      m.node('Split', [packed], ['a', 'b'], { attributes: { axis: { integer: 1 } } });
      return m.node('Mul', ['a', 'b'], ['y']);
    });
    const { nodes } = await checkFused(original, { ...linear, inputs: [xTensor([6, K])] });
    expect(nodes[0]?.outputs).to.deep.equal(['a', '', 'b']);
  });

  it('one vector, zero rows, and a weight that two products share', async () => {
    for (const dims of [[K], [0, K], [4, K]]) {
      const original = one((m) => {
        const y = m.node('MatMul', ['x', weight(m, 'w', 1, [K, K])], ['a']);
        return m.node('MatMul', [m.node('Tanh', [y], ['t']), 'w'], ['y']);
      }, dims);
      const { nodes, model } = await checkFused(original, {
        ...linear,
        inputs: [
          new ort.Tensor(
            'float32',
            uniform(
              dims.reduce((a, b) => a * b, 1),
              1,
              3,
            ),
            dims,
          ),
        ],
        count: 2,
      });
      expect(nodes.map(({ inputs }) => inputs[1])).to.deep.equal(['w', 'w']);
      expect([...model.graph.initializers.keys()]).to.deep.equal(['w']);
    }
  });

  it('the product of a constant and a constant weight stays, and so does one of two computed values', () => {
    const untouched = one((m) => {
      const c = m.node('MatMul', [m.floats('c', [1, K], uniform(K, 1, 3)), weight(m, 'w', 1)], ['cw']);
      const s = m.node('MatMul', ['x', m.node('Transpose', ['x'], ['x_t'])], ['s']);
      return m.node('Add', [m.node('MatMul', [s, 'x'], ['sx']), m.node('ReduceMean', [c], ['mean'])], ['y']);
    });
    const { report, model } = fuseBytes(untouched, { targets: ['linear'] });
    expect([report.fused, report.refused]).to.deep.equal([[], []]);
    expect(model).to.equal(untouched);
  });

  it('refuses weights of other types and ranks, naming the product', () => {
    const values = new Uint8Array(new Float64Array(K * N).fill(0.5).buffer);
    for (const [original, reason] of [
      [one((m) => m.node('MatMul', ['x', weight(m, 'w', 1, [1, K, N])], ['y'])), "the weight 'w' has shape [1, 12, 8], expected two dimensions"],
      [one((m) => m.node('MatMul', [m.node('Cast', ['x'], ['xd'], { attributes: { to: { integer: DataType.double } } }), m.tensor('w', DataType.double, [K, N], values)], ['y'])), "the weight 'w' is double, expected float32, float16 or bfloat16"],
      [one((m) => m.node('MatMul', ['x', m.node('Neg', [weight(m, 'w', 1)], ['less'])], ['y'])), "the weight is not constant: 'less' is computed by Neg 'less_node'"],
    ] as const) {
      const { report, model } = fuseBytes(original, { targets: ['linear'] });
      const [refusal] = report.refused;
      expect(report.refused).to.have.length(1);
      expect(refusal).to.include({ node: 'y_node', opType: 'MatMul', rule: 'matmul', reason });
      expect(model).to.equal(original);
    }
  }); // prettier-ignore

  it('a weight that callers may override stays', () => {
    const original = one((m) => m.node('MatMul', ['x', m.input('w', [K, N])], ['y']));
    const { report, model } = fuseBytes(original, { targets: ['linear'] });
    expect([report.fused, report.refused]).to.deep.equal([[], []]);
    expect(model).to.equal(original);
  });
});

describe('what leads to attention', () => {
  it('a product with what is computed from constants is none', () => {
    const original = layer({
      after: (m, h) => {
        const up = matMul(m, h, 'up', [K, 20], 5);
        const w = m.node('Neg', [weight(m, 's', 6, [20, K])], ['w_down']);
        m.output(m.node('MatMul', [up, w], ['down']));
      },
    });
    const { report } = fused(original);
    expect(report.fused[0]?.splits).to.deep.equal([N, N, N]);
  });

  it('an attention operator is: Q, K, V that go nowhere else', () => {
    const m = new ModelBuilder({ 'com.microsoft': 1 });
    m.input('x', ['batch', 'sequence', K]);
    const h = layerNorm(m, 'x');
    const heads = { attributes: { num_heads: { integer: 2 } }, domain: 'com.microsoft' };
    m.output(m.node('MultiHeadAttention', threeMatMul(m, h), ['y'], heads));
    m.output(matMul(m, h, 'logits', [K, 30], 9));
    expect(fused(m.finish()).report.fused[0]?.splits).to.deep.equal([N, N, N]);
  });

  it('rotation, a norm of Q and K, and a cache before the product change nothing', async () => {
    const original = layer({
      project: (m, h) => {
        const [q = '', k = '', v = ''] = threeMatMul(m, h);
        const turned = [q, k].map((name) => {
          const cos = m.node('Mul', [name, m.floats(`cos_${name}`, [5, N], uniform(5 * N, 1, 3))], [`${name}_c`]);
          const scale = m.floats(`g_${name}`, [N], uniform(N, 0.4, 3, 1));
          return m.node('LayerNormalization', [cos, scale], [`${name}_n`]);
        });
        const all = m.node('Concat', [m.input('past', [2, 5, N]), turned[0] ?? ''], ['q_all'], { attributes: { axis: { integer: 2 } } });
        return [all, turned[1] ?? '', v];
      },
    }); // prettier-ignore
    const { report } = await checkFused(original, { inputs: [xTensor(), xTensor([2, 5, N])] });
    expect(report.fused[0]?.splits).to.deep.equal([N, N, N]);
  });

  it('two attentions behind one norm: the larger group is fused', async () => {
    const original = layer({
      after: (m, h) => {
        const [a, b] = ['a', 'b'].map((name, i) => matMul(m, h, name, [K, N], 40 + i)) as [string, string];
        const t = m.node('Transpose', [b], ['b_t'], { attributes: { perm: { integers: [0, 2, 1] } } });
        m.output(m.node('MatMul', [a, t], ['second']));
      },
    });
    const { report } = await checkFused(original);
    expect(report.fused[0]?.splits).to.deep.equal([N, N, N]);
  });
});
