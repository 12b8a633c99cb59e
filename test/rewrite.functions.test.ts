import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { ModelBuilder, uniform } from '../models/builder.js';
import { FUNCTION_DOMAIN as domain, functionOf, type FunctionSettings } from '../models/functions.js';
import { encodeAttribute, encodeNode } from '../ts/onnx/node.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { BodyBuilder } from './support/branches.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { attend, K, layerNorm, N, threeMatMul, weightValues, xTensor } from './support/layers.js';
import { spell } from './support/norms.js';

type Norm = (m: ModelBuilder, x: string) => string;

/** An attention layer as a function y = Block(x). */
function block(
  name: string,
  { norm = layerNorm, project = threeMatMul, ...settings }: Partial<FunctionSettings> & { norm?: Norm; project?: (m: ModelBuilder, h: string) => readonly string[] } = {},
): Uint8Array {
  const m = new BodyBuilder();
  const y = attend(m, project(m, norm(m, 'x')));
  return functionOf(name, m, { inputs: ['x'], outputs: [y], ...settings });
} // prettier-ignore

interface Calling {
  opset?: number;
  irVersion?: number;
  dims?: readonly (number | string)[] | null;
  /** Functions called, by name; each call reads `x`. */
  calls?: readonly string[];
  more?: (m: ModelBuilder) => void;
}

function calling(functions: readonly Uint8Array[], options: Calling = {}): Uint8Array {
  const { opset = 17, irVersion = 8, calls = ['Block'], dims = ['batch', 'sequence', K] } = options;
  const m = new ModelBuilder({ '': opset, [domain]: 1 }, irVersion);
  m.input('x', dims ?? undefined);
  calls.forEach((name, i) => m.output(m.node(name, ['x'], [`out${i}`], { domain })));
  options.more?.(m);
  for (const bytes of functions) m.function(bytes);
  return m.finish();
}

/** A fused node's function, which has its own imports. */
const importsOf = (model: ReturnType<typeof fused>['model'], name: string): Map<string, number> =>
  new Map(model.functionBodies.find((body) => body.name === name)?.opsets);

describe('a layer in a model-local function', () => {
  it('becomes a node in it; its constants stay Constant nodes, and the function imports the op', async () => {
    const { report, model, nodes } = await checkFused(calling([block('Block')]));
    expect(report.fused[0]?.scope).to.equal('function com.example:Block');
    expect(model.functions).to.deep.equal(['com.example:Block', 'com.deepspeed:QKVGemm']);
    expect([...importsOf(model, 'Block')]).to.deep.equal([['', 17], ['com.deepspeed', 1]]);
    const ops = model.functionBodies[0]?.nodes.map(({ opType }) => opType);
    expect(ops).to.deep.equal(['Constant', 'Constant', 'Constant', 'QKVGemm', 'Transpose', 'MatMul', 'Transpose', 'MatMul']);
    expect(nodes[0]?.inputs[1]).to.equal('h_node/QKVGemm.weight');
    expect([...model.graph.initializers.keys()]).to.deep.equal([]);
  }); // prettier-ignore

  for (const [model, own] of [[17, 18], [18, 17], [20, 18], [13, 13], [21, 21]] as const) {
    it(`of opset ${own} in a model of opset ${model}`, async () => {
      const norm: Norm = (m, x) => {
        m.constant('unused', [], [0]);
        if (own >= 17) return layerNorm(m, x);
        return spell(m, x, true);
      };
      const original = calling([block('Block', { norm, opsets: { '': own } })], { opset: model, irVersion: model > 20 ? 10 : 8 });
      const { model: result } = await checkFused(original);
      expect(importsOf(result, 'Block').get('')).to.equal(own);
    });
  } // prettier-ignore

  it('called twice: both calls have it', async () => {
    const { report } = await checkFused(calling([block('Block')], { calls: ['Block', 'Block'] }));
    expect(report.fused).to.have.length(1);
  });

  it('called from another function, and from a subgraph', async () => {
    const outer = new BodyBuilder();
    outer.node('Block', ['x'], ['y'], { domain });
    const nested = functionOf('Outer', outer, { inputs: ['x'], outputs: ['y'], opsets: { [domain]: 1 } });
    await checkFused(calling([block('Block'), nested], { calls: ['Outer'] }));
    const branch = (op: string, name: string): ModelBuilder => {
      const b = new ModelBuilder();
      if (op === 'Block') b.node('Block', ['x'], [name], { domain });
      else b.node(op, ['x', 'x', 'start'], [name]);
      b.output(name);
      return b;
    };
    const original = calling([block('Block')], {
      calls: [],
      more: (m) => {
        m.input('condition', [], DataType.bool);
        m.output(m.node('If', ['condition'], ['z'], { graphs: { then_branch: branch('Block', 'a'), else_branch: branch('Block', 'b') } }));
      },
    });
    await checkFused(original, { inputs: [xTensor(), new ort.Tensor('bool', [true], [])] });
  }); // prettier-ignore

  it('in the branch of an If in it: the branch reads constants of the function', async () => {
    const body = new BodyBuilder();
    const names = ['q', 'k', 'v'];
    names.forEach((name, i) => body.constant(`w_${name}`, [K, N], weightValues(K * N, i)));
    body.constant('gamma', [K], uniform(K, 0.4, 3, 1));
    const inner = new ModelBuilder();
    const h = inner.node('LayerNormalization', ['x', 'gamma'], ['h']);
    inner.output(attend(inner, names.map((name) => inner.node('MatMul', [h, `w_${name}`], [name]))));
    const other = new ModelBuilder();
    other.output(other.node('MatMul', [other.node('Transpose', ['x'], ['t'], { attributes: { perm: { integers: [0, 2, 1] } } }), 'x'], ['other']));
    body.node('If', ['c'], ['z'], { graphs: { then_branch: inner, else_branch: other } });
    const bytes = functionOf('Block', body, { inputs: ['x', 'c'], outputs: ['z'] });
    const m = new ModelBuilder({ [domain]: 1 });
    m.input('x', ['batch', 'sequence', K]);
    m.input('condition', [], DataType.bool);
    m.output(m.node('Block', ['x', 'condition'], ['out'], { domain }));
    m.function(bytes);
    for (const value of [true, false]) {
      const { report, model } = await checkFused(m.finish(), { inputs: [xTensor(), new ort.Tensor('bool', [value], [])] });
      expect(report.fused[0]?.scope).to.equal("then_branch of If 'z_node', in function com.example:Block");
      const ops = model.functionBodies[0]?.nodes.map(({ opType }) => opType);
      expect(ops).to.deep.equal(['Constant', 'Constant', 'If']);
    }
  }); // prettier-ignore

  it('with rows that are moved before the projections', async () => {
    const project = (m: ModelBuilder, h: string): string[] =>
      threeMatMul(m, m.node('Transpose', [h], ['moved'], { attributes: { perm: { integers: [1, 0, 2] } } }));
    const { nodes } = await checkFused(calling([block('Block', { project })]));
    expect(nodes[0]?.inputs[0]).to.equal('moved');
  });

  it('with a CastLike to a type that calls give', async () => {
    const norm: Norm = (m, x) => m.node('CastLike', [spell(m, x, true), x], ['h']);
    const { model } = await checkFused(calling([block('Block', { norm })]));
    expect(model.functionBodies[0]?.nodes.map(({ opType }) => opType)).to.not.include('CastLike');
  });

  it('in int8 and bf16', async () => {
    await checkFused(calling([block('Block')]), { options: { dtype: 'int8' }, bound: 5e-2 });
    await checkFused(calling([block('Block')]), { options: { dtype: 'bf16' }, bound: 2e-2 });
  });

  it('and another one in the graph, of another kind: the function’s node has the body without an overload', async () => {
    const original = calling([block('Block')], {
      irVersion: 10,
      more: (m) => {
        const h = m.node('SimplifiedLayerNormalization', ['x', m.floats('g', [K], uniform(K, 0.4, 3, 1))], ['h0']);
        const [q = '', k = ''] = ['q0', 'k0'].map((name, i) => m.node('MatMul', [h, m.floats(`w_${name}`, [K, N], weightValues(K * N, i + 5))], [name]));
        const t = m.node('Transpose', [k], ['k0_t'], { attributes: { perm: { integers: [0, 2, 1] } } });
        m.output(m.node('MatMul', [q, t], ['y0']));
      },
    });
    const { report } = await checkFused(original, { count: 2 });
    expect(report.functions).to.deep.equal(['com.deepspeed:QKVGemm:v1', 'com.deepspeed:QKVGemm']);
  }); // prettier-ignore

  it('two kinds in functions: one is refused with the way out, and without bodies both are fused', async () => {
    const rms = block('Other', { norm: (m, x) => spell(m, x, true) });
    const original = calling([block('Block'), rms], { calls: ['Block', 'Other'] });
    const { report } = await checkFused(original, { count: 1 });
    expect(report.fused[0]?.scope).to.equal('function com.example:Block');
    expect(report.refused.map(({ scope, reason }) => [scope, /without function bodies \(--no-fallback\)/.test(reason)])).to.deep.equal([
      ['function com.example:Other', true],
    ]);
    fused(original, { options: { fallback: false }, count: 2 });
  }); // prettier-ignore
});

describe('functions in which nothing is fused', () => {
  it('a weight and a scale that calls give', () => {
    const given = (more: Partial<Parameters<typeof block>[1]>, inputs: string[]): Uint8Array => {
      const m = new ModelBuilder({ [domain]: 1 });
      m.input('x', ['batch', 'sequence', K]);
      const name = inputs[1] ?? '';
      m.floats(name, name === 'gamma' ? [K] : [K, N], uniform(name === 'gamma' ? K : K * N, 1, 3));
      m.output(m.node('Block', ['x', name], ['out'], { domain }));
      m.function(block('Block', { inputs, ...more }));
      return m.finish();
    };
    const project = (m: ModelBuilder, h: string): string[] => ['q', 'k'].map((name) => m.node('MatMul', [h, 'w'], [name]));
    checkRefused(given({ project }, ['x', 'w']), "the weight is not constant: 'w' is an input of the function com.example:Block");
    const norm: Norm = (m, x) => m.node('LayerNormalization', [x, 'gamma'], ['h']);
    checkRefused(given({ norm }, ['x', 'gamma']), "the scale is not constant: 'gamma' is an input of the function com.example:Block");
  }); // prettier-ignore

  it('an epsilon that calls give', () => {
    const norm: Norm = (m, x) =>
      m.rawNode(
        encodeNode({
          opType: 'LayerNormalization',
          name: 'h_node',
          inputs: [x, m.constant('gamma', [K], uniform(K, 0.4, 3, 1))],
          outputs: ['h'],
          attributes: [encodeAttribute('epsilon', { float: 0 }, 'eps')],
        }),
        'h',
      );
    const m = new ModelBuilder({ [domain]: 1 });
    m.input('x', ['batch', 'sequence', K]);
    m.output(m.node('Block', ['x'], ['out'], { domain, attributes: { eps: { float: 0.5 } } }));
    m.function(block('Block', { norm, attributes: ['eps'] }));
    checkRefused(m.finish(), "its attribute 'epsilon' is one of the function's: callers choose it");
  });

  it('an axis that calls give in a norm spelt out, and a transposition of a weight', () => {
    const axes: Norm = (m, x) => {
      const mean = encodeNode({ opType: 'ReduceMean', inputs: ['s'], outputs: ['mean'], attributes: [encodeAttribute('axes', { integers: [] }, 'axes')] });
      m.node('Mul', [x, x], ['s']);
      const sum = m.node('Add', [m.rawNode(mean, 'mean'), m.constant('e', [], [1e-5])], ['sum']);
      return m.node('Div', [x, m.node('Sqrt', [sum], ['root'])], ['h']);
    };
    const turned = (m: ModelBuilder, h: string): string[] =>
      ['q', 'k'].map((name, i) => {
        const turn = encodeNode({ opType: 'Transpose', inputs: [m.constant(`s_${name}`, [K, K], uniform(K * K, 1, i))], outputs: [`w_${name}`], name: `t_${name}`, attributes: [encodeAttribute('perm', { integers: [] }, 'axes')] });
        return m.node('MatMul', [h, m.rawNode(turn, `w_${name}`)], [name]);
      });
    for (const form of [{ norm: axes }, { project: turned }]) {
      const m = new ModelBuilder({ '': 13, [domain]: 1 });
      m.input('x', ['batch', 'sequence', K]);
      m.output(m.node('Block', ['x'], ['out'], { domain, attributes: { axes: { integers: [1, 0] } } }));
      m.function(block('Block', { ...form, attributes: ['axes'] }));
      const { report } = fuseBytes(m.finish());
      expect(report.fused).to.deep.equal([]);
      const reasons = report.refused.map(({ reason }) => reason);
      expect(reasons).to.have.length('norm' in form ? 0 : 1);
      if (!('norm' in form)) expect(reasons[0]).to.equal("the weight is not constant: 'w_q' is computed by Transpose 't_q'");
    }
  }); // prettier-ignore

  it('an input whose rank no call states', () => {
    checkRefused(
      calling([block('Block')], { dims: null }),
      "how many dimensions its input 'x' has is not known; in a function, ONNX Runtime needs to know",
    );
  });

  it('calls that differ in rank', () => {
    const m = new ModelBuilder({ [domain]: 1 });
    m.input('x', ['batch', 'sequence', K]);
    m.input('z', ['more', 'batch', 'sequence', K]);
    const relu = functionOf('Block', (() => {
      const b = new BodyBuilder();
      const [q = '', k = ''] = threeMatMul(b, layerNorm(b, 'x'));
      b.node('Einsum', [q, k], ['y'], { attributes: { equation: { string: '...ij,...kj->...ik' } } });
      return b;
    })(), { inputs: ['x'], outputs: ['y'] });
    m.function(relu);
    m.output(m.node('Block', ['x'], ['a'], { domain }));
    m.output(m.node('Block', ['z'], ['b'], { domain }));
    checkRefused(m.finish(), "how many dimensions its input 'x' has is not known; in a function, ONNX Runtime needs to know");
  }); // prettier-ignore

  it('one that nobody calls', () => {
    const original = calling([block('Block'), block('Unused')]);
    const { report } = fuseBytes(original);
    expect(report.fused.map(({ scope }) => scope)).to.deep.equal(['function com.example:Block']);
  });

  it('functions that call themselves, and values that they do not have, are errors', () => {
    const self = new BodyBuilder();
    self.node('Block', ['x'], ['y'], { domain });
    const recursive = functionOf('Block', self, { inputs: ['x'], outputs: ['y'], opsets: { [domain]: 1 } });
    expect(() => fuseBytes(calling([recursive]))).to.throw(/'com.example:Block' calls itself/);
    const lost = new BodyBuilder();
    lost.node('Neg', ['nowhere'], ['y']);
    const broken = functionOf('Block', lost, { inputs: ['x'], outputs: ['y'] });
    expect(() => fuseBytes(calling([broken]))).to.throw(/'y_node' reads the value 'nowhere'/);
  });
});
