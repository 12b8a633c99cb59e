import { expect } from 'chai';
import { type ModelBuilder, uniform } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { checkFused, checkRefused } from './support/fused.js';
import { K, layer, N, threeMatMul, weight, weightValues } from './support/layers.js';

const NAMES = ['q', 'k', 'v'];
type Project = (m: ModelBuilder, h: string) => string[];

/** Three projections, each written by `one`. */
const three =
  (one: (m: ModelBuilder, h: string, name: string, i: number) => string): Project =>
  (m, h) =>
    NAMES.map((name, i) => one(m, h, name, i));

const bias = (m: ModelBuilder, name: string, dims: readonly number[], seed = 1): string =>
  m.floats(name, dims, uniform(dims.reduce((a, b) => a * b, 1), 0.8, seed + 40)); // prettier-ignore

const matMul = (m: ModelBuilder, h: string, w: string, name: string): string =>
  m.node('MatMul', [h, w], [name]);

const REST = ['Transpose', 'MatMul', 'Transpose', 'MatMul'];

describe('matmul', () => {
  for (const order of ['product first', 'bias first']) {
    it(`with an Add, ${order}`, async () => {
      const project = three((m, h, name, i) => {
        const operands = [matMul(m, h, weight(m, `w_${name}`, i), `${name}0`), bias(m, `b_${name}`, [N], i)];
        return m.node('Add', order === 'product first' ? operands : operands.reverse(), [name]);
      });
      const { report, nodes, ops } = await checkFused(layer({ project }));
      expect(ops).to.deep.equal(['QKVGemm', ...REST]);
      expect(report.fused[0]?.rules.projection).to.equal('matmul+add');
      expect(nodes[0]?.outputs).to.deep.equal(['q', '', 'k', 'v']);
      expect(nodes[0]?.inputs[4]).to.equal('h_node/QKVGemm.bias');
    });
  }

  it('a bias on one of three: the others get zeros', async () => {
    const project: Project = (m, h) => {
      const [q = '', k = '', v = ''] = threeMatMul(m, h);
      return [q, m.node('Add', [k, bias(m, 'b', [N])], ['k_b']), v];
    };
    const { report, nodes } = await checkFused(layer({ project }));
    expect(report.fused[0]?.rules.projection).to.equal('matmul, matmul+add');
    expect(nodes[0]?.outputs).to.deep.equal(['q', '', 'k_b', 'v']);
  });

  for (const dims of [[], [1], [1, N], [1, 1, N], [5, N], [1, 1, 1, N]]) {
    it(`an addend of shape [${dims.join(', ')}] stays outside`, async () => {
      const project: Project = (m, h) => {
        const [q = '', k = '', v = ''] = threeMatMul(m, h);
        return [m.node('Add', [q, bias(m, 'b', dims)], ['q_b']), k, v];
      };
      // With four dimensions the sum is no operand for the product of rank 3, so that it only is an output.
      const original = layer({ project: dims.length < 4 ? project : threeMatMul, after: (m) => {
        if (dims.length === 4) m.output(m.node('Add', ['q', bias(m, 'b', dims)], ['q_b']));
      } }); // prettier-ignore
      const { ops, nodes } = await checkFused(original);
      expect(ops.filter((op) => op === 'Add')).to.have.length(1);
      expect(nodes[0]?.outputs[0]).to.equal('q');
    });
  }

  it('N = 1: an addend of [1] is the bias, one of [5] is not', async () => {
    for (const [length, adds] of [[1, 0], [5, 1]] as const) {
      const project: Project = (m, h) => {
        const q = matMul(m, h, weight(m, 'w_1', 0, [K, 1]), 'q0');
        const k = matMul(m, h, weight(m, 'w_2', 1), 'k');
        return [m.node('Add', [q, bias(m, 'b', [length])], ['q']), k];
      };
      const { ops } = await checkFused(layer({ project }));
      expect(ops.filter((op) => op === 'Add')).to.have.length(adds);
    } // prettier-ignore
  });

  it('an addend that callers give, or that is computed, stays outside', async () => {
    const project: Project = (m, h) => {
      const [q = '', k = '', v = ''] = threeMatMul(m, h);
      const computed = m.node('Neg', [bias(m, 'b', [N])], ['minus_b']);
      return [m.node('Add', [q, computed], ['q_b']), k, v];
    };
    const { ops } = await checkFused(layer({ project }));
    expect(ops).to.include('Add');
  });

  it('two projections are enough, and so is one', async () => {
    for (const count of [1, 2]) {
      // All three are there; what is not given on leads nowhere.
      const project: Project = (m, h) => threeMatMul(m, h).slice(0, count);
      const { report } = await checkFused(layer({ project }));
      expect(report.fused[0]?.splits).to.deep.equal(Array<number>(count).fill(N));
    }
  });

  it('different numbers of columns (grouped queries)', async () => {
    const project: Project = (m, h) =>
      [8, 4, 4].map((n, i) => matMul(m, h, weight(m, `w${i}`, i, [K, n]), NAMES[i] ?? ''));
    const { report, nodes } = await checkFused(layer({ project }));
    expect(report.fused[0]?.splits).to.deep.equal([8, 4, 4]);
    expect(nodes[0]?.integers('splits')).to.deep.equal([8, 4, 4]);
  });

  for (const n of [1, 7, 33]) {
    it(`N = ${n} each`, async () => {
      const project = three((m, h, name, i) => matMul(m, h, weight(m, `w_${name}`, i, [K, n]), name));
      await checkFused(layer({ project }));
    });
  }

  it('four projections of one norm that meet', async () => {
    const project: Project = (m, h) => {
      const four = [...NAMES, 'g'].map((name, i) => matMul(m, h, weight(m, `w_${name}`, i), name));
      const gated = m.node('Mul', [four[2] ?? '', four[3] ?? ''], ['gated']);
      return [...four.slice(0, 2), gated];
    };
    const { report } = await checkFused(layer({ project }));
    expect(report.fused[0]?.splits).to.deep.equal([N, N, N, N]);
  });

  it('packed, cut by heads: one output under its name, weight and bias as they were stored', async () => {
    const project: Project = (m, h) => {
      const product = matMul(m, h, weight(m, 'w', 0, [K, 3 * N]), 'packed0');
      const packed = m.node('Add', [product, bias(m, 'b', [3 * N])], ['packed']);
      const heads = m.node('Reshape', [packed, m.integers('heads', [4], [0, 0, N, 3])], ['by_head']);
      return NAMES.map((name, i) =>
        m.node('Gather', [heads, m.integers(`i${i}`, [], [i])], [name], { attributes: { axis: { integer: 3 } } }),
      );
    }; // prettier-ignore
    const { report, nodes, ops } = await checkFused(layer({ project }));
    expect(ops).to.deep.equal(['QKVGemm', 'Reshape', 'Gather', 'Gather', 'Gather', ...REST]);
    expect(nodes[0]?.inputs).to.deep.equal(['x', 'w', 'gamma', 'beta', 'b']);
    expect(nodes[0]?.outputs).to.deep.equal(['packed']);
    expect(report.fused[0]?.splits).to.deep.equal([3 * N]);
  });

  it('a projection that meets a weight first stays, and reads the norm', async () => {
    const after = (m: ModelBuilder, h: string): void => {
      const up = m.node('Relu', [matMul(m, h, weight(m, 'w_up', 7, [K, 20]), 'up')], ['act']);
      m.output(matMul(m, up, weight(m, 'w_down', 8, [20, K]), 'down'));
    };
    const { report, ops } = await checkFused(layer({ after }));
    expect(report.fused[0]?.emitNorm).to.equal(true);
    expect(report.fused[0]?.replaced).to.not.include('up_node');
    expect(ops.filter((op) => op === 'MatMul')).to.have.length(4);
  });
});

describe('weights of projections', () => {
  const from = (make: (m: ModelBuilder, name: string, i: number) => string): Project =>
    three((m, h, name, i) => matMul(m, h, make(m, name, i), name));

  const FORMS: Record<string, Project> = {
    'from Constant nodes': from((m, name, i) => m.constant(`w_${name}`, [K, N], weightValues(K * N, i))),
    'behind Identity': from((m, name, i) => m.node('Identity', [weight(m, `s_${name}`, i)], [`w_${name}`])),
    'behind Transpose': from((m, name, i) =>
      m.node('Transpose', [weight(m, `s_${name}`, i, [N, K])], [`w_${name}`]),
    ),
    'behind Transpose with perm': from((m, name, i) =>
      m.node('Transpose', [weight(m, `s_${name}`, i, [N, K])], [`w_${name}`], {
        attributes: { perm: { integers: [1, 0] } },
      }),
    ),
    'behind two Transpose': from((m, name, i) => {
      const once = m.node('Transpose', [weight(m, `s_${name}`, i)], [`t_${name}`]);
      return m.node('Transpose', [once], [`w_${name}`]);
    }),
    'behind Cast from float16': from((m, name, i) => {
      const stored = m.floats(`s_${name}`, [K, N], weightValues(K * N, i), DataType.float16);
      return m.node('Cast', [stored], [`w_${name}`], { attributes: { to: { integer: DataType.float } } });
    }),
    'behind Cast and Transpose': from((m, name, i) => {
      const stored = m.floats(`s_${name}`, [N, K], weightValues(K * N, i), DataType.bfloat16);
      const cast = m.node('Cast', [stored], [`c_${name}`], {
        attributes: { to: { integer: DataType.float } },
      });
      return m.node('Transpose', [cast], [`w_${name}`]);
    }),
    'rounded by a Cast': from((m, name, i) => {
      const low = m.node('Cast', [weight(m, `s_${name}`, i)], [`c_${name}`], {
        attributes: { to: { integer: DataType.float16 } },
      });
      return m.node('Cast', [low], [`w_${name}`], { attributes: { to: { integer: DataType.float } } });
    }),
    'behind Cast from double': from((m, name, i) => {
      const values = new Float64Array(weightValues(K * N, i)).map((value) => value * 1.1);
      const stored = m.tensor(`s_${name}`, DataType.double, [K, N], new Uint8Array(values.buffer));
      return m.node('Cast', [stored], [`w_${name}`], { attributes: { to: { integer: DataType.float } } });
    }),
    'behind Reshape': from((m, name, i) =>
      m.node(
        'Reshape',
        [weight(m, `s_${name}`, i, [1, K, N]), m.integers(`to_${name}`, [2], [-1, N])],
        [`w_${name}`],
      ),
    ),
    'behind Reshape that keeps a dimension': from((m, name, i) =>
      m.node(
        'Reshape',
        [weight(m, `s_${name}`, i, [K, 2, N / 2]), m.integers(`to_${name}`, [2], [0, -1])],
        [`w_${name}`],
      ),
    ),
    'behind Transpose and Reshape': from((m, name, i) => {
      const turned = m.node('Transpose', [weight(m, `s_${name}`, i, [N, K])], [`t_${name}`]);
      return m.node('Reshape', [turned, m.integers(`to_${name}`, [2], [K, N])], [`w_${name}`]);
    }),
    'behind Squeeze and Transpose': from((m, name, i) => {
      const stored = weight(m, `s_${name}`, i, [N, K, 1]);
      const flat = m.node('Squeeze', [stored, m.integers(`a_${name}`, [1], [-1])], [`f_${name}`]);
      return m.node('Transpose', [flat], [`w_${name}`]);
    }),
    'behind Squeeze of all': from((m, name, i) =>
      m.node('Squeeze', [weight(m, `s_${name}`, i, [1, K, 1, N])], [`w_${name}`]),
    ),
    'behind Unsqueeze and Squeeze': from((m, name, i) => {
      const axes = m.integers(`a_${name}`, [2], [-1, 0]);
      const more = m.node('Unsqueeze', [weight(m, `s_${name}`, i), axes], [`u_${name}`]);
      return m.node('Squeeze', [more, axes], [`w_${name}`]);
    }),
    'behind Flatten': from((m, name, i) =>
      m.node('Flatten', [weight(m, `s_${name}`, i, [K, 2, N / 2])], [`w_${name}`]),
    ),
    'one of them behind Transpose': from((m, name, i) =>
      i === 1 ? m.node('Transpose', [weight(m, 's', i, [N, K])], ['w_k']) : weight(m, `w_${name}`, i),
    ),
    'of two types': from((m, name, i) => {
      if (i !== 1) return weight(m, `w_${name}`, i);
      const stored = m.floats('s', [K, N], weightValues(K * N, i), DataType.float16);
      return m.node('Cast', [stored], ['w_k'], { attributes: { to: { integer: DataType.float } } });
    }),
    'one for all three': from((m, _, i) => (i === 0 ? weight(m, 'w', 0) : 'w')),
  };
  for (const [what, project] of Object.entries(FORMS)) {
    it(what, async () => {
      const { ops, model, nodes } = await checkFused(layer({ project }));
      expect(ops).to.deep.equal(['QKVGemm', ...REST]);
      expect([...model.graph.initializers.keys()].sort()).to.deep.equal([
        'beta',
        'gamma',
        nodes[0]?.inputs[1],
      ]);
    });
  }

  it('all behind Transpose: stored as [N, K]', async () => {
    const { nodes, model } = await checkFused(layer({ project: FORMS['behind Transpose'] ?? threeMatMul }));
    expect(nodes[0]?.integer('transposed', 0)).to.equal(1);
    expect(model.graph.initializers.get(nodes[0]?.inputs[1] ?? '')?.dims).to.deep.equal([3 * N, K]);
  });

  it('a single one in other dimensions is written anew, not taken as it is stored', async () => {
    const project: Project = (m, h) => {
      const stored = weight(m, 's', 0, [1, K, N]);
      return [matMul(m, h, m.node('Reshape', [stored, m.integers('to', [2], [K, N])], ['w']), 'q')];
    };
    const { nodes, model } = await checkFused(layer({ project }));
    expect(nodes[0]?.inputs[1]).to.equal('h_node/QKVGemm.weight');
    expect(model.graph.initializers.get('h_node/QKVGemm.weight')?.dims).to.deep.equal([K, N]);
    expect(model.graph.initializers.has('s')).to.equal(false);
  });

  it('read by another node: kept for it', async () => {
    const after = (m: ModelBuilder): void => void m.output(m.node('Neg', ['w_k'], ['minus']));
    const { model } = await checkFused(layer({ after }));
    expect([...model.graph.initializers.keys()])
      .to.include('w_k')
      .and.not.include('w_q');
  });

  for (const [what, project, reason] of [
    ['a graph input', from((m, name) => m.input(`w_${name}`, [K, N])), "the weight is not constant: 'w_q' is a graph input"],
    ['computed', from((m, name, i) => m.node('Neg', [weight(m, `s_${name}`, i)], [`w_${name}`])), "the weight is not constant: 'w_q' is computed by Neg 'w_q_node'"],
    ['three-dimensional', from((m, name, i) => weight(m, `w_${name}`, i, [1, K, N])), "the weight 'w_q' has shape [1, 12, 8], expected two dimensions"],
    ['behind a Reshape that callers choose', from((m, name, i) => m.node('Reshape', [weight(m, `s_${name}`, i), m.input(`to_${name}`, [2], DataType.int64)], [`w_${name}`])), "the weight is not constant: 'w_q' is computed by Reshape 'w_q_node'"],
    ['behind an Unsqueeze', from((m, name, i) => m.node('Unsqueeze', [weight(m, `s_${name}`, i), m.integers(`a_${name}`, [1], [0])], [`w_${name}`])), "the weight 'w_q' has shape [1, 12, 8], expected two dimensions"],
    ['of one dimension', from((m, name, i) => weight(m, `w_${name}`, i, [K])), "the weight 'w_q' has shape [12], expected two dimensions"],
  ] as const) {
    it(`refuses weights that are ${what}`, () => {
      checkRefused(layer({ project }), reason, 'q_node');
    });
  } // prettier-ignore

  it('refuses a scale that fits no weight, and projections that lead to no attention', () => {
    const project: Project = (m, h) => {
      threeMatMul(m, h);
      return ['x'];
    };
    checkRefused(
      layer({ project, expose: false }),
      "none of its 3 projections leads to attention (they meet a constant weight or the graph's end first)",
      'q_node',
    );
  });

  it('the norm as the second operand of a product: refused', () => {
    const project: Project = (m, h) => {
      m.node('Transpose', [h], ['h_t'], { attributes: { perm: { integers: [0, 2, 1] } } });
      return NAMES.map((name, i) => m.node('MatMul', [weight(m, `w_${name}`, i, [N, K]), 'h_t'], [name]));
    };
    checkRefused(layer({ project }), "its output 'h' feeds no MatMul or Gemm with constant weights");
  });
});
