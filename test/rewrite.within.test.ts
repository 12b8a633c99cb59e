import { expect } from 'chai';
import { ModelBuilder, uniform } from '../models/builder.js';
import { FUNCTION_DOMAIN as domain, functionOf } from '../models/functions.js';
import { Graph } from '../ts/onnx/graph.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import type { FuseOptions } from '../ts/rewrite/options.js';
import { BodyBuilder, choice, flag, Prefixed, yes } from './support/branches.js';
import { checkFused, checkRefused, type Check } from './support/fused.js';
import { attend, K, layerNorm, threeMatMul, weight, xTensor } from './support/layers.js';
import { spell } from './support/norms.js';

const { bool, float16, int64 } = DataType;

type Project = (m: ModelBuilder, h: string) => string[];
const turned = (m: ModelBuilder, h: string): string =>
  m.node('Transpose', [h], ['moved'], { attributes: { perm: { integers: [1, 0, 2] } } });

/** A branch that projects `h`, a value around it. */
function projecting(prefix: string, h = 'h', project: Project = threeMatMul): ModelBuilder {
  const m = new Prefixed(prefix);
  m.output(attend(m, project(m, h)));
  return m;
}

/** A branch that reads `h` otherwise. */
function reading(h = 'h'): ModelBuilder {
  const m = new Prefixed('r_');
  m.output(m.node('MatMul', [m.node('Transpose', [h], ['t'], { attributes: { perm: { integers: [0, 2, 1] } } }), h], ['g']));
  return m;
} // prettier-ignore

const norm = (m: ModelBuilder): void => void layerNorm(m, 'x');

/** Both ways through the If. */
async function bothWays(original: Uint8Array, check: Check): Promise<Awaited<ReturnType<typeof checkFused>>> {
  await checkFused(original, { ...check, inputs: [xTensor(), flag(false)] });
  return checkFused(original, { ...check, inputs: [xTensor(), flag(true)] });
}

describe('projections in the branches of an If, of a norm outside', () => {
  const SPELT: Record<string, [(m: ModelBuilder) => void, string]> = {
    'one node': [norm, 'layer-normalization'],
    'LayerNorm in arithmetic': [(m) => void spell(m, 'x', false), 'decomposed-layer-norm'],
    'RMSNorm in arithmetic': [(m) => void spell(m, 'x', true), 'decomposed-rms-norm'],
  };
  for (const [what, [write, rule]] of Object.entries(SPELT))
    it(`${what}: each branch normalises by itself, and the norm goes`, async () => {
      const h = what === 'one node' ? 'h' : rule === 'decomposed-rms-norm' ? 'scaled' : 'shifted';
      const original = choice(projecting('a_', h), projecting('b_', h), write);
      const { report, ops, nodes, model } = await bothWays(original, { count: 2 });
      expect(ops).to.deep.equal(['If']);
      expect(report.refused).to.deep.equal([]);
      expect(report.fused.map(({ scope, norm: of, rules, emitNorm }) => [scope, of !== undefined, rules.norm, emitNorm])).to.deep.equal([
        ["then_branch of If 'chosen_node'", true, rule, false],
        ["else_branch of If 'chosen_node'", true, rule, false],
      ]);
      expect(nodes.map(({ inputs }) => inputs[0])).to.deep.equal(['x', 'x']);
      expect([...model.graph.valueInfos.keys()]).to.deep.equal([]);
    }); // prettier-ignore

  it('the norm stays where the other branch reads it, or a node outside', async () => {
    const other = await bothWays(choice(projecting('a_'), reading(), norm), {});
    expect(other.ops).to.deep.equal(['LayerNormalization', 'If']);
    const outside = choice(projecting('a_'), projecting('b_'), (m) => {
      norm(m);
      m.output(m.node('Neg', ['h'], ['less']));
    });
    const { ops, report } = await bothWays(outside, { count: 2 });
    expect(ops).to.deep.equal(['LayerNormalization', 'Neg', 'If']);
    expect(report.fused.map(({ emitNorm }) => emitNorm)).to.deep.equal([false, false]);
  });

  it('who asks in a branch for its shape asks what it read', async () => {
    const asking = projecting('a_', 'h', (m, h) => {
      const [q = '', ...others] = threeMatMul(m, h);
      const scale = m.node('ReduceMax', [m.node('Cast', [m.node('Shape', [h], ['shape'])], ['sizes'], { attributes: { to: { integer: 1 } } })], ['most']);
      return [m.node('Mul', [q, m.node('Squeeze', [scale], ['size'])], ['q_sized']), ...others];
    }); // prettier-ignore
    const { ops } = await bothWays(choice(asking, projecting('b_'), norm), { count: 2 });
    expect(ops).to.deep.equal(['If']);
  });

  it('projections outside as well: a node each, and no result of the norm where nobody else reads it', async () => {
    const original = choice(projecting('a_'), projecting('b_'), (m) => {
      norm(m);
      m.output(attend(m, threeMatMul(m, 'h')));
    });
    const { report, ops } = await bothWays(original, { count: 3 });
    expect(ops).to.not.include('LayerNormalization');
    expect(report.fused.map(({ emitNorm }) => emitNorm)).to.deep.equal([false, false, false]);
    const read = choice(projecting('a_'), reading(), (m) => {
      norm(m);
      m.output(attend(m, threeMatMul(m, 'h')));
    });
    const kept = await bothWays(read, { count: 2 });
    expect(kept.ops).to.not.include('LayerNormalization');
    expect(kept.report.fused.map(({ emitNorm }) => emitNorm)).to.deep.equal([true, false]);
  });

  it('behind an Identity outside, which goes as well, and in an If within an If', async () => {
    const middle = new Prefixed('m_');
    const graphs = { then_branch: projecting('a_', 'same'), else_branch: projecting('b_', 'same') };
    middle.node('If', ['condition'], ['r'], { graphs });
    middle.output('m_r');
    const original = choice(middle, projecting('c_', 'same'), (m) => {
      norm(m);
      m.node('Identity', ['h'], ['same']);
    });
    const { ops, report } = await bothWays(original, { count: 3 });
    expect(ops).to.deep.equal(['If']);
    expect(report.fused[0]?.scope).to.equal(
      "then_branch of If 'm_r_node', in then_branch of If 'chosen_node'",
    );
  });

  it('rows that are moved in the branch', async () => {
    const project: Project = (m, h) => threeMatMul(m, turned(m, h));
    const original = choice(projecting('a_', 'h', project), projecting('b_', 'h', project), norm);
    const { ops, nodes } = await bothWays(original, { count: 2 });
    expect(ops).to.deep.equal(['If']);
    expect(nodes.map(({ inputs }) => inputs[0])).to.deep.equal(['a_moved', 'b_moved']);
  });

  it('a norm in float32, its result cast to 16 bits outside and inside', async () => {
    const to16 = (m: ModelBuilder, h: string, name: string): string =>
      m.node('Cast', [h], [name], { attributes: { to: { integer: float16 } } });
    const low = (m: ModelBuilder, h: string): string[] => {
      const made = ['q', 'k', 'v'].map((name, i) => m.node('MatMul', [h, m.floats(`w_${name}`, [K, K], uniform(K * K, 0.5, i), float16)], [name]));
      return made.map((name) => m.node('Cast', [name], [`${name}_f`], { attributes: { to: { integer: 1 } } }));
    }; // prettier-ignore
    const inside: Project = (m, h) => low(m, to16(m, h, 'low'));
    const original = choice(projecting('a_', 'low', low), projecting('b_', 'h', inside), (m) => {
      norm(m);
      to16(m, 'h', 'low');
    });
    // Both round to float16: the original the norm's result, the node its own.
    const { ops, model } = await bothWays(original, { count: 2, bound: 4e-3 });
    expect(ops).to.deep.equal(['If']);
    const inner = model.graph.nodes[0]?.graphs.map((bytes) => new Graph(bytes).nodes.map(({ opType }) => opType));
    for (const types of inner ?? []) expect(types.slice(0, 4)).to.deep.equal(['QKVGemm', 'Cast', 'Cast', 'Cast']);
  }); // prettier-ignore

  it('int8 and the other targets', async () => {
    const withUp: Project = (m, h) => {
      const [q = '', k = '', v = ''] = threeMatMul(m, h);
      const most = m.node('ReduceMax', [m.node('MatMul', [h, weight(m, 'w_up', 7)], ['up'])], ['most']);
      return [m.node('Add', [q, most], ['q_up']), k, v];
    };
    const original = choice(projecting('a_', 'h', withUp), projecting('b_', 'h', withUp), norm);
    const { ops, report } = await bothWays(original, { count: 2, options: { targets: ['qkv', 'mlp'], dtype: 'int8' }, bound: 5e-2 });
    expect(ops).to.deep.equal(['If']);
    expect(report.fused[0]?.splits).to.have.length(4);
  }); // prettier-ignore

  it('in a function', async () => {
    const body = new BodyBuilder();
    layerNorm(body, 'x');
    body.node('If', ['condition'], ['chosen'], { graphs: { then_branch: projecting('a_'), else_branch: projecting('b_') } });
    const m = new ModelBuilder({ [domain]: 1 });
    m.input('x', [2, 5, K]);
    m.input('condition', [], bool);
    m.output(m.node('Block', ['x', 'condition'], ['y'], { domain }));
    m.function(functionOf('Block', body, { inputs: ['x', 'condition'], outputs: ['chosen'] }));
    const { report, model } = await bothWays(m.finish(), { count: 2 });
    expect(report.fused[0]?.scope).to.equal("then_branch of If 'chosen_node', in function com.example:Block");
    const block = model.functionBodies.find(({ name }) => name === 'Block');
    expect(block?.nodes.map(({ opType }) => opType)).to.not.include('LayerNormalization');
  }); // prettier-ignore

  const THEN = "its projections stand in the then_branch of If 'chosen_node'";
  it('refused: a sum that the norm makes by itself', () => {
    const skip = (m: ModelBuilder): void => {
      const inputs = ['x', m.floats('skip', [2, 5, K], uniform(10 * K, 0.5, 50)), m.floats('gamma', [K], uniform(K, 0.4, 3, 1))];
      m.node('SkipLayerNormalization', inputs, ['h'], { domain: 'com.microsoft' });
    }; // prettier-ignore
    const original = choice(projecting('a_'), projecting('b_'), skip, { 'com.microsoft': 1 });
    checkRefused(original, `${THEN}, and the sum that it makes does not; the target linear fuses them without it`, 'a_q_node');
  }); // prettier-ignore

  it("refused: the name of the norm's input means another value in the branch", () => {
    const hiding = (prefix: string): ModelBuilder => {
      const m = projecting(prefix);
      m.floats('z', [K], uniform(K, 1, 2));
      m.node('Neg', ['z'], ['unread']);
      return m;
    };
    /** Without the prefix: the name is to be that outside. */
    const hidden = (m: ModelBuilder): ModelBuilder => {
      m.tensor('z', DataType.float, [K], new Uint8Array(uniform(K, 1, 2).buffer));
      return m;
    };
    const original = choice(hidden(hiding('a_')), hidden(hiding('b_')), (m) => void layerNorm(m, m.node('Neg', ['x'], ['z'])));
    checkRefused(original, `${THEN}, where its input 'z' is another value of that name`, 'a_q_node');
  }); // prettier-ignore

  it('a branch that hides the result reads none of it', () => {
    const hiding = projecting('a_');
    hiding.tensor('h', DataType.float, [2, 5, K], new Uint8Array(uniform(10 * K, 1, 2).buffer));
    const { report } = fuseBytes(choice(hiding, projecting('b_'), norm));
    expect(report.fused.map(({ scope }) => scope)).to.deep.equal(["else_branch of If 'chosen_node'"]);
  });

  it('what keeps projections from being fused is said of the norm, with the node inside', () => {
    const computed: Project = (m, h) => {
      const w = m.node('Transpose', ['x'], ['w'], { attributes: { perm: { integers: [0, 2, 1] } } });
      return ['q', 'k', 'v'].map((name) => m.node('MatMul', [h, w], [name]));
    };
    const original = choice(projecting('a_', 'h', computed), projecting('b_', 'h', computed), norm);
    checkRefused(
      original,
      "the weight is not constant: 'a_w' is computed by Transpose 'a_w_node'",
      'a_q_node',
    );
    const skipped = fuseBytes(choice(projecting('a_'), projecting('b_'), norm), { skip: ['h_node'] });
    expect(skipped.report.refused.map(({ reason }) => reason)).to.deep.equal([
      'it is to stay as it is (skip)',
    ]);
  });
});

describe('projections in the body of a Loop, of a norm outside', () => {
  function repeated(more: (m: ModelBuilder) => void = () => undefined): Uint8Array {
    const body = new Prefixed('l_');
    body.input('i', [], int64);
    body.input('go', [], bool);
    body.input('state', [2, 8, 8]);
    body.output(body.node('Identity', ['go'], ['go_on']), [], bool);
    const y = attend(body, threeMatMul(body, 'h'));
    const square = body.node('Concat', [y, y], ['both'], { attributes: { axis: { integer: -1 } } });
    const mixed = body.node('MatMul', ['state', square], ['mixed']);
    body.output(body.node('Slice', [mixed, body.integers('l_from', [1], [0]), body.integers('l_to', [1], [8]), body.integers('l_axis', [1], [2])], ['next']), [2, 8, 8]);
    const m = new ModelBuilder();
    m.input('x', [2, 5, K]);
    norm(m);
    more(m);
    const start = m.floats('start', [2, 8, 8], uniform(128, 1, 5));
    m.output(m.node('Loop', [m.integers('trips', [], [2]), yes(m), start], ['looped'], { graphs: { body } }));
    return m.finish();
  } // prettier-ignore
  const reason =
    "its projections stand in the body of Loop 'looped_node', where Loop would normalise the same rows again in every round; the target linear fuses them without it";

  it('refused, with the reason; linear fuses them', async () => {
    checkRefused(repeated(), reason, 'l_q_node');
    const options: FuseOptions = { targets: ['qkv', 'linear'] };
    const { report } = await checkFused(repeated(), { options, bound: 1e-4 });
    expect(report.fused[0]).to.include({ normType: 'none', scope: "body of Loop 'looped_node'" });
  });

  it('said of a projection where others of the norm are fused', async () => {
    const original = repeated((m) => void m.output(attend(m, threeMatMul(m, 'h'))));
    const { report } = await checkFused(original, { bound: 1e-4 });
    expect(report.fused[0]?.emitNorm).to.equal(true);
    expect(report.refused.map(({ node, scope, reason: why }) => [node, scope, why])).to.deep.equal([
      ['l_q_node', "body of Loop 'looped_node'", reason],
    ]);
  }); // prettier-ignore
});
