import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { ModelBuilder, uniform } from '../models/builder.js';
import { FUNCTION_DOMAIN as domain, functionOf } from '../models/functions.js';
import { fuseFile } from '../ts/fuse_file.js';
import { Graph } from '../ts/onnx/graph.js';
import { DataType } from '../ts/onnx/tensor.js';
import { concat } from '../ts/onnx/wire.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import {
  attentionBody,
  BodyBuilder,
  borrowingBody,
  choice,
  flag,
  outerWeights,
  Prefixed,
  yes,
} from './support/branches.js';
import { testFolder } from './support/command.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { attend, betaOf, gammaOf, K, layerNorm, N, threeMatMul, weight, xTensor } from './support/layers.js';
import { spell } from './support/norms.js';

const { bool, int64 } = DataType;

const bodies = (bytes: Uint8Array): Graph[] => {
  const [holder] = fused(bytes, { count: 2 }).model.graph.nodes.filter(({ graphs }) => graphs.length > 0);
  return holder?.graphs.map((graph) => new Graph(graph)) ?? [];
};

describe('layers in the branches of an If', () => {
  for (const value of [true, false]) {
    it(`with weights of their own: ${value}`, async () => {
      const original = choice(attentionBody('a_'), attentionBody('b_'));
      const { report, model } = await checkFused(original, { count: 2, inputs: [xTensor(), flag(value)] });
      expect(report.fused.map(({ scope, node }) => [scope, node])).to.deep.equal([
        ["then_branch of If 'chosen_node'", 'a_h_node/QKVGemm'],
        ["else_branch of If 'chosen_node'", 'b_h_node/QKVGemm'],
      ]);
      expect([...model.graph.initializers.keys()]).to.deep.equal([]);
      expect(bodies(original).map(({ initializers }) => [...initializers.keys()])).to.deep.equal([
        ['a_gamma', 'a_beta', 'a_h_node/QKVGemm.weight'],
        ['b_gamma', 'b_beta', 'b_h_node/QKVGemm.weight'],
      ]);
      expect(report.opsBefore).to.include({ If: 1, LayerNormalization: 2, MatMul: 10 });
      expect(report.opsAfter).to.include({ If: 1, 'com.deepspeed.QKVGemm': 2, MatMul: 4 });
    });

    it(`with the outer graph's weights: packed once, there, and the originals go: ${value}`, async () => {
      const original = choice(borrowingBody('a_'), borrowingBody('b_'), outerWeights);
      const { model, nodes } = await checkFused(original, { count: 2, inputs: [xTensor(), flag(value)] });
      expect([...model.graph.initializers.keys()]).to.deep.equal([
        'gamma',
        'beta',
        'a_h_node/QKVGemm.weight',
      ]);
      expect(nodes.map(({ inputs }) => inputs)).to.deep.equal([
        ['x', 'a_h_node/QKVGemm.weight', 'gamma', 'beta'],
        ['x', 'a_h_node/QKVGemm.weight', 'gamma', 'beta'],
      ]);
    });
  }

  it("that read an outer initialiser which another graph reads, too: it stays", async () => {
    const other = new ModelBuilder();
    other.output(other.node('MatMul', ['x', 'w_k'], ['n']));
    const original = choice(borrowingBody('a_'), other, outerWeights);
    for (const value of [true, false]) {
      const { model } = await checkFused(original, { inputs: [xTensor(), flag(value)] });
      expect([...model.graph.initializers.keys()]).to.have.members(['gamma', 'beta', 'w_k', 'a_h_node/QKVGemm.weight']);
    }
  }); // prettier-ignore

  it('whose weights stand behind a Transpose outside, which goes as well', async () => {
    const original = choice(borrowingBody('a_', ['w_q', 'w_k', 't_v']), borrowingBody('b_'), (m) => {
      outerWeights(m);
      weight(m, 's_v', 2, [N, K]);
      m.node('Transpose', ['s_v'], ['t_v']);
    });
    const { ops, model } = await checkFused(original, { count: 2, inputs: [xTensor(), flag(true)] });
    expect(ops).to.deep.equal(['If']);
    expect([...model.graph.initializers.keys()]).to.have.members(['gamma', 'beta', 'a_h_node/QKVGemm.weight', 'b_h_node/QKVGemm.weight']);
  }); // prettier-ignore

  it('an inner initialiser hides an outer one of the same name', () => {
    const inner = borrowingBody('a_');
    inner.tensor('w_k', DataType.float, [K, N], new Uint8Array(uniform(K * N, 0.5, 77).buffer));
    const { nodes, model } = fused(choice(inner, borrowingBody('b_'), outerWeights), { count: 2, sound: false });
    // Not the same weights, so not the same matrix; the hidden one serves the other branch.
    expect(nodes.map(({ inputs }) => inputs[1])).to.deep.equal(['a_h_node/QKVGemm.weight', 'b_h_node/QKVGemm.weight']);
    const [a, b] = [nodes[0], nodes[1]].map((node) => {
      const name = node?.inputs[1] ?? '';
      const holder = model.graph.nodes.find(({ graphs }) => graphs.length > 0);
      const all = [model.graph, ...(holder?.graphs.map((bytes) => new Graph(bytes)) ?? [])];
      return all.map((graph) => graph.initializers.get(name)).find((tensor) => tensor)?.bytes();
    });
    const row = (bytes: Uint8Array | undefined): Float32Array => new Float32Array((bytes ?? new Uint8Array()).slice().buffer);
    expect(row(a).slice(0, N)).to.deep.equal(row(b).slice(0, N));
    expect(row(a).slice(N, 2 * N)).to.not.deep.equal(row(b).slice(N, 2 * N));
  }); // prettier-ignore

  it('one layer outside and one inside with the same weights: one matrix', async () => {
    const original = choice(borrowingBody('a_', undefined, 'y0'), attentionBody('b_'), (m) => {
      outerWeights(m);
      const h = m.node('LayerNormalization', ['x', 'gamma', 'beta'], ['h']);
      const [q = '', k = '', v = ''] = ['q', 'k', 'v'].map((name) => m.node('MatMul', [h, `w_${name}`], [name]));
      const swapped = m.node('Transpose', [attend(m, [q, k, v])], ['swapped'], { attributes: { perm: { integers: [0, 2, 1] } } });
      m.node('MatMul', [swapped, weight(m, 'w_o', 9, [N, K])], ['y0']);
    });
    const { report, nodes } = await checkFused(original, { count: 3, inputs: [xTensor(), flag(true)] });
    expect(report.fused.map(({ scope }) => scope ?? 'main')).to.deep.equal([
      'main', "then_branch of If 'chosen_node'", "else_branch of If 'chosen_node'",
    ]);
    expect(new Set(nodes.map(({ inputs }) => inputs[1])).size).to.equal(2);
  }); // prettier-ignore

  it('refused with the branch: a weight that is computed outside, and an input of the graph', () => {
    const computed = choice(borrowingBody('a_', ['s', 's', 's']), attentionBody('b_'), (m) => {
      outerWeights(m);
      m.node('Mul', [m.input('factor', [1]), 'w_q'], ['s']);
    });
    const { report } = fused(computed);
    expect(report.refused.map(({ node, scope, reason }) => [node, scope, reason])).to.deep.equal([
      ['a_h_node', "then_branch of If 'chosen_node'", "the weight is not constant: 's' is computed by Mul 's_node'"],
    ]);
    const overridable = choice(borrowingBody('a_'), attentionBody('b_'), (m) => {
      outerWeights(m);
      m.input('gamma', [K]);
    });
    expect(fused(overridable).report.refused.map(({ reason }) => reason)).to.deep.equal([
      "the scale is not constant: 'gamma' is a graph input with a default: callers may override it",
    ]);
  }); // prettier-ignore

  it('whose rows are moved before the projections, one of which leads to no attention', async () => {
    const turned = (prefix: string): ModelBuilder => {
      const m = new Prefixed(prefix);
      const rows = m.node('Transpose', [layerNorm(m, 'x')], ['moved'], { attributes: { perm: { integers: [1, 0, 2] } } });
      const y = attend(m, threeMatMul(m, rows));
      const up = m.node('ReduceMax', [m.node('MatMul', [rows, weight(m, 'w_up', 7)], ['up'])], ['most']);
      m.output(m.node('Add', [y, up], ['both']));
      return m;
    };
    const { nodes } = await checkFused(choice(turned('a_'), turned('b_')), { count: 2, inputs: [xTensor(), flag(false)] });
    expect(nodes.map(({ inputs, outputs }) => [inputs[0], outputs[1]])).to.deep.equal(
      ['a_', 'b_'].map((prefix) => [`${prefix}moved/QKVGemm`, `${prefix}moved`]),
    );
  }); // prettier-ignore

  it('refused: a value inside a norm that a graph within reads', () => {
    const inner = new Prefixed('in_');
    inner.output(inner.node('Neg', ['out_variance'], ['n']));
    const outer = new Prefixed('out_');
    const h = spell(outer, 'x', false);
    outer.output(attend(outer, threeMatMul(outer, h)));
    outer.node('If', ['condition'], ['deep'], { graphs: { then_branch: inner, else_branch: inner } });
    outer.output('out_deep');
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    m.input('condition', [], bool);
    m.node('If', ['condition'], ['a', 'b'], { graphs: { then_branch: outer, else_branch: outer } });
    m.output('a');
    const { report } = fuseBytes(m.finish());
    expect(report.fused).to.deep.equal([]);
    expect(report.refused[0]?.reason).to.equal("intermediate value 'out_variance' is also read by If 'out_deep_node'");
  }); // prettier-ignore

  it('a cycle and a value produced twice in a branch are errors that name them', () => {
    const cyclic = new ModelBuilder();
    cyclic.node('Neg', ['b'], ['a']);
    cyclic.output(cyclic.node('Neg', ['a'], ['b']));
    expect(() => fuseBytes(choice(cyclic, attentionBody('b_')))).to.throw(/cycle: node 'a_node'/);
    const twice = new ModelBuilder();
    twice.node('Neg', ['x'], ['a']);
    twice.output(twice.node('Neg', ['x'], ['a']));
    expect(() => fuseBytes(choice(twice, attentionBody('b_')))).to.throw(/Value 'a' is produced twice/);
  });

  it('nested If: the innermost graph reads weights of the outermost', async () => {
    const middle = new Prefixed('m_');
    middle.node('If', ['condition'], ['r'], { graphs: { then_branch: borrowingBody('a_'), else_branch: attentionBody('b_') } });
    middle.output('m_r');
    const original = choice(middle, attentionBody('c_'), outerWeights);
    const { report, model } = await checkFused(original, { count: 3, inputs: [xTensor(), flag(true)] });
    expect(report.fused[0]?.scope).to.equal("then_branch of If 'm_r_node', in then_branch of If 'chosen_node'");
    expect([...model.graph.initializers.keys()]).to.have.members(['gamma', 'beta', 'a_h_node/QKVGemm.weight']);
  }); // prettier-ignore

  it('--skip finds nodes in them', () => {
    const { report } = fuseBytes(choice(attentionBody('a_'), attentionBody('b_')), { skip: ['b_h_node'] });
    expect(report.fused.map(({ node }) => node)).to.deep.equal(['a_h_node/QKVGemm']);
    expect(report.refused.map(({ node }) => node)).to.deep.equal(['b_h_node']);
  });

  it('what is not fused stays byte for byte', () => {
    const plain = new ModelBuilder();
    plain.output(plain.node('Neg', ['x'], ['n']));
    checkRefused(choice(plain, borrowingBody('a_', ['x', 'x', 'x']), outerWeights), "the weight is not constant: 'x' is a graph input");
  }); // prettier-ignore
});

describe('a layer in the body of a Loop', () => {
  /** x = x + attention(x) W, three times; the body's x has no stated shape where `dims` is undefined. */
  function repeated(dims: readonly (number | string)[] | undefined, own: boolean): Uint8Array {
    const body = new Prefixed('l_');
    body.input('i', [], int64);
    body.input('go', [], bool);
    body.input('state', dims);
    body.output(body.node('Identity', ['go'], ['go_on']), [], bool);
    const h = own
      ? layerNorm(body, 'state')
      : body.node('LayerNormalization', ['state', 'gamma', 'beta'], ['h']);
    const names = ['q', 'k', 'v'];
    const values = own
      ? threeMatMul(body, h)
      : names.map((name) => body.node('MatMul', [h, `w_${name}`], [name]));
    const swapped = body.node('Transpose', [attend(body, values)], ['swapped'], {
      attributes: { perm: { integers: [0, 2, 1] } },
    });
    const up = body.node('MatMul', [swapped, 'w_o'], ['up']);
    body.output(body.node('Add', [up, 'state'], ['next']), dims);
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    weight(m, 'w_o', 9, [N, K]);
    if (!own) outerWeights(m);
    m.output(m.node('Loop', [m.integers('trips', [], [3]), yes(m), 'x'], ['y'], { graphs: { body } }));
    return m.finish();
  }

  for (const dims of [undefined, ['batch', 'sequence', K]]) {
    for (const own of [true, false]) {
      it(`weights ${own ? 'in the body' : 'outside'}, shape ${dims ? 'stated' : 'unknown'}`, async () => {
        const { report, model } = await checkFused(repeated(dims, own), { bound: 1e-4 });
        expect(report.fused[0]).to.include({ scope: "body of Loop 'y_node'", k: K });
        const packed = model.graph.initializers.has('l_h_node/QKVGemm.weight');
        expect(packed).to.equal(!own);
      });
    }
  }

  it('int8 weights in it, without the library as with it', async () => {
    await checkFused(repeated(['batch', 'sequence', K], true), { options: { dtype: 'int8' }, bound: 5e-2 });
  });

  it('refused: an input of the body as a weight, and a scale that the Loop carries', () => {
    const body = new Prefixed('l_');
    body.input('i', [], int64);
    body.input('go', [], bool);
    body.input('w', [K, K]);
    body.output(body.node('Identity', ['go'], ['go_on']), [], bool);
    const h = body.node('LayerNormalization', ['x', 'gamma', 'beta'], ['h']);
    const y = body.node('MatMul', [h, 'w'], ['y']);
    body.node('MatMul', [body.node('Transpose', [y], ['t'], { attributes: { perm: { integers: [0, 2, 1] } } }), y], ['s']);
    body.output(body.node('Identity', ['w'], ['w_next']), [K, K]);
    const m = new ModelBuilder();
    m.input('x', [2, 5, K]);
    outerWeights(m);
    m.floats('w_0', [K, K], uniform(K * K, 1, 3));
    m.output(m.node('Loop', [m.integers('trips', [], [2]), yes(m), 'w_0'], ['w_last'], { graphs: { body } }));
    checkRefused(m.finish(), "the weight is not constant: 'w' is an input of the body of Loop 'w_last_node'");
  }); // prettier-ignore
});

describe('a layer in the body of a Scan', () => {
  it('over rows of a sequence', async () => {
    const body = new Prefixed('s_');
    body.input('part', [5, K]);
    const h = layerNorm(body, 'part');
    body.output(attend(body, threeMatMul(body, h), 2), [N, 5]);
    const m = new ModelBuilder();
    m.input('x', [2, 5, K]);
    const attributes = { num_scan_inputs: { integer: 1 } };
    m.output(m.node('Scan', ['x'], ['y'], { attributes, graphs: { body } }));
    const { report } = await checkFused(m.finish());
    expect(report.fused[0]?.scope).to.equal("body of Scan 'y_node'");
  });
});

describe('a layer in the body of a SequenceMap', () => {
  /** Of the two rows of x [2, 5, K]; the weights lie in the body or outside. */
  function mapped(
    body: ModelBuilder,
    more: (m: ModelBuilder) => void = () => undefined,
    opsets: Record<string, number> = {},
  ): Uint8Array {
    const m = new ModelBuilder(opsets);
    m.input('x', [2, 5, K]);
    more(m);
    const split = { axis: { integer: 0 }, keepdims: { integer: 1 } };
    m.node('SplitToSequence', ['x', m.integers('one', [], [1])], ['parts'], { attributes: split });
    m.node('SequenceMap', ['parts'], ['results'], { graphs: { body } });
    m.output(m.node('ConcatFromSequence', ['results'], ['joined'], { attributes: { axis: { integer: 0 } } }));
    return m.finish();
  }

  const reason =
    "it is in the body of SequenceMap 'results_node', of which ONNX Runtime makes a Loop that states no types; the fused op needs them";
  const own = (): ModelBuilder => {
    const body = new Prefixed('s_');
    body.input('part', [1, 5, K]);
    body.output(attend(body, threeMatMul(body, layerNorm(body, 'part'))), [1, N, 5]);
    return body;
  };

  it('refused, whether its weights lie in it or outside', () => {
    checkRefused(mapped(own()), reason, 'results_node');
    const borrowing = borrowingBody('s_', undefined, 'part');
    borrowing.input('part', [1, 5, K]);
    checkRefused(mapped(borrowing, outerWeights), reason, 'results_node');
  });

  it('refused with the target linear, and of an If in it', () => {
    const linear = fuseBytes(mapped(own()), { targets: ['linear'] });
    expect(linear.report.fused).to.deep.equal([]);
    expect(new Set(linear.report.refused.map((refusal) => refusal.reason))).to.deep.equal(new Set([reason]));
    const outer = new ModelBuilder();
    outer.input('part', [1, 5, K]);
    const graphs = { then_branch: attentionBody('a_', 'part'), else_branch: attentionBody('b_', 'part') };
    outer.output(outer.node('If', ['condition'], ['c'], { graphs }), undefined);
    const { report } = fuseBytes(mapped(outer, (m) => void m.input('condition', [], bool)));
    expect(report.refused.map((refusal) => refusal.reason)).to.deep.equal([reason, reason]);
  });

  it('refused in a function that is called there', () => {
    const block = new BodyBuilder();
    const y = attend(block, threeMatMul(block, layerNorm(block, 'x')));
    const body = new ModelBuilder();
    body.input('part', [1, 5, K]);
    body.output(body.node('Block', ['part'], ['out'], { domain }), [1, N, 5]);
    const original = mapped(
      body,
      (m) => m.function(functionOf('Block', block, { inputs: ['x'], outputs: [y] })),
      { [domain]: 1 },
    );
    checkRefused(original, reason, 'results_node');
  });

  it('refused: projections in it of a norm outside', () => {
    const body = new Prefixed('s_');
    body.input('part', [1, 5, K]);
    const most = body.node('ReduceMax', ['part'], ['most']);
    body.output(body.node('Add', [attend(body, threeMatMul(body, 'h')), most], ['sum']), undefined);
    checkRefused(
      mapped(body, (m) => void layerNorm(m, 'x')),
      reason,
      'results_node',
    );
  });

  it('the same layer outside is fused, and the body stays', async () => {
    const body = new Prefixed('s_');
    body.input('part', [1, 5, K]);
    body.output(body.node('Neg', ['part'], ['less']), undefined);
    const { ops } = await checkFused(
      mapped(body, (m) => void m.output(attend(m, threeMatMul(m, layerNorm(m, 'x'))))),
    );
    expect(ops).to.include('SequenceMap');
  });
});

describe('weights of branches that lie in a file', () => {
  const folder = testFolder();

  for (const saveAsExternalData of [false, true]) {
    it(`are streamed${saveAsExternalData ? ', and all others leave the model' : ''}`, async () => {
      const location = 'weights.bin';
      const names = ['w_q', 'w_k', 'w_v'];
      const original = choice(borrowingBody('a_'), borrowingBody('b_'), (m) => {
        gammaOf(m);
        betaOf(m);
        names.forEach((name, i) => m.external(name, [K, N], { location, offset: i * 4 * K * N }));
      });
      const [input, output] = ['model.onnx', 'fused.onnx'].map((name) => path.join(folder(), name)) as [string, string];
      fs.writeFileSync(input, original);
      const data = names.map((_, i) => new Uint8Array(uniform(K * N, 0.5, 20 + i).buffer));
      fs.writeFileSync(path.join(folder(), location), concat(data));
      const { report, differences, data: written } = await fuseFile(input, output, { check: true, saveAsExternalData });
      expect(report.fused).to.have.length(2);
      expect(written?.bytes).to.equal(4 * 3 * K * N);
      expect(differences?.[0]?.maxError).to.be.below(2e-5);
    });
  } // prettier-ignore
});
