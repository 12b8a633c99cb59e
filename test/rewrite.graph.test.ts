import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { ModelBuilder } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import { attend, gammaOf, K, layer, layerNorm, N, threeMatMul, weight, xTensor } from './support/layers.js';
import { spell } from './support/norms.js';

/** A body that gives an outer value on, negated. */
function body(outer: string, name = 'inner', isLoop = false): ModelBuilder {
  const b = new ModelBuilder();
  if (isLoop) {
    b.input('i', [], DataType.int64);
    b.input('go', [], DataType.bool);
    b.output(b.node('Identity', ['go'], ['go_on']), [], DataType.bool);
  }
  b.node('Neg', [outer], [name]);
  b.output(name);
  return b;
}

const yes = (m: ModelBuilder): string => m.tensor('yes', DataType.bool, [], new Uint8Array([1]));
const no = new ort.Tensor('bool', [false], []);

/** An If whose branches read `outer`; its condition is a graph input. */
function branch(m: ModelBuilder, outer: string, inner = 'inner'): void {
  m.input('condition', [], DataType.bool);
  const graphs = { then_branch: body(outer, inner), else_branch: body(outer, `${inner}_2`) };
  m.output(m.node('If', ['condition'], ['chosen'], { graphs }));
}

describe('subgraphs', () => {
  const inputs = [xTensor(), no];

  it('that read the norm from outside get it as an output of the node', async () => {
    const { report, nodes } = await checkFused(layer({ after: branch }), { inputs });
    expect(report.fused[0]?.emitNorm).to.equal(true);
    expect(nodes[0]?.outputs).to.deep.equal(['q', 'h', 'k', 'v']);
  });

  it('the body of a Loop as well', async () => {
    const after = (m: ModelBuilder, h: string): void => {
      const trips = m.integers('trips', [], [2]);
      m.output(m.node('Loop', [trips, yes(m)], ['repeated'], { graphs: { body: body(h, 'inner', true) } }));
    };
    const { report } = await checkFused(layer({ after }));
    expect(report.fused[0]?.emitNorm).to.equal(true);
  });

  it('that read a weight, a scale, a projection or its input do no harm', async () => {
    for (const outer of ['w_q', 'gamma', 'q', 'x']) {
      const { model, report } = await checkFused(layer({ after: (m) => branch(m, outer) }), { inputs });
      expect(model.graph.initializers.has('w_q'), outer).to.equal(outer === 'w_q');
      expect(report.fused[0]?.emitNorm).to.equal(false);
    }
  });

  it('that read a product before its bias keep the Add out of the node', async () => {
    const project = (m: ModelBuilder, h: string): string[] => {
      const [q = '', k = '', v = ''] = threeMatMul(m, h);
      return [m.node('Add', [q, m.floats('b', [N], new Float32Array(N).fill(1))], ['q_b']), k, v];
    };
    const { ops } = await checkFused(layer({ project, after: (m) => branch(m, 'q') }), { inputs });
    expect(ops).to.include('Add');
  });

  it('that read a value inside a decomposed norm: refused', () => {
    const norm = (m: ModelBuilder, x: string): string => spell(m, x, false);
    checkRefused(
      layer({ norm, after: (m) => branch(m, 'variance') }),
      "intermediate value 'variance' is also read by If 'chosen_node'",
    );
  });

  it('names in them are not taken anew', async () => {
    for (const name of ['h_node/QKVGemm', 'h_node/QKVGemm.weight']) {
      const { report, nodes } = await checkFused(layer({ after: (m, h) => branch(m, h, name) }), { inputs });
      expect([report.fused[0]?.node, nodes[0]?.inputs[1]]).to.not.include(name);
    }
  });
});

describe('names', () => {
  it('that the model has are not taken anew', async () => {
    const after = (m: ModelBuilder, h: string): void => {
      const taken = weight(m, 'h_node/QKVGemm.weight', 9);
      m.output(m.node('MatMul', [h, taken], ['other'], { name: 'h_node/QKVGemm' }));
    };
    const { report, nodes, model } = await checkFused(layer({ after }));
    expect(report.fused[0]?.node).to.equal('h_node/QKVGemm_1');
    expect(nodes[0]?.inputs[1]).to.equal('h_node/QKVGemm_1.weight');
    expect(model.graph.initializers.has('h_node/QKVGemm.weight')).to.equal(true);
  });

  it('of values that only value infos mention count as taken', () => {
    const after = (m: ModelBuilder): void => m.valueInfo('h_node/QKVGemm.weight', [1, 2, 3]);
    const { nodes } = fused(layer({ after }), { sound: false });
    expect(nodes[0]?.inputs[1]).to.equal('h_node/QKVGemm.weight_1');
  });

  it('nodes without names: values give theirs', async () => {
    const norm = (m: ModelBuilder, x: string): string =>
      m.node('LayerNormalization', [x, gammaOf(m)], ['h'], { name: '' });
    const project = (m: ModelBuilder, h: string): string[] =>
      ['q', 'k', 'v'].map((name, i) =>
        m.node('MatMul', [h, weight(m, `w_${name}`, i)], [name], { name: '' }),
      );
    const { report } = await checkFused(layer({ norm, project }));
    expect(report.fused[0]?.node).to.equal('h/QKVGemm');
    expect(report.fused[0]?.replaced).to.deep.equal([
      'LayerNormalization -> h',
      'MatMul -> q',
      'MatMul -> k',
      'MatMul -> v',
    ]);
  });

  it('with a byte-order mark, or in other scripts, come out as they were', async () => {
    const project = (m: ModelBuilder, h: string): string[] =>
      ['\uFEFFq', '鍵', 'v 🦆'].map((name, i) => m.node('MatMul', [h, weight(m, `w${i}`, i)], [name]));
    const { nodes } = await checkFused(layer({ project }));
    expect(nodes[0]?.outputs).to.deep.equal(['\uFEFFq', '', '鍵', 'v 🦆']);
  });
});

describe('what stands between and around', () => {
  it('a norm that feeds projections and a second norm: both are fused, the first gives its output', async () => {
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    const h = layerNorm(m, 'x');
    m.output(attend(m, threeMatMul(m, h)));
    const g = m.node('LayerNormalization', [h, 'gamma', 'beta'], ['g']);
    const second = ['q2', 'k2', 'v2'].map((name, i) =>
      m.node('MatMul', [g, weight(m, `w_${name}`, i + 3)], [name]),
    );
    const t = m.node('Transpose', [second[1] ?? ''], ['k2_t'], {
      attributes: { perm: { integers: [0, 2, 1] } },
    });
    m.node('MatMul', [second[0] ?? '', t], ['scores2']);
    m.output(m.node('MatMul', ['scores2', second[2] ?? ''], ['y2']));
    const { report, nodes } = await checkFused(m.finish(), { count: 2 });
    expect(report.fused.map(({ emitNorm }) => emitNorm)).to.deep.equal([true, false]);
    expect(nodes[1]?.inputs[0]).to.equal('h');
    expect(report.functions).to.deep.equal(['com.deepspeed:QKVGemm']);
  });

  it('Identity between norm and projections is taken out, in any number', async () => {
    const project = (m: ModelBuilder, h: string): string[] =>
      threeMatMul(m, m.node('Identity', [m.node('Identity', [h], ['i1'])], ['i2']));
    const { ops, report } = await checkFused(layer({ project }));
    expect(ops).to.not.include('Identity');
    expect(report.fused[0]?.emitNorm).to.equal(false);
  });

  it('Identity that leads nowhere is taken out with the norm', async () => {
    const after = (m: ModelBuilder, h: string): void => {
      m.node('Identity', [m.node('Identity', [m.node('Identity', [h], ['i1'])], ['i2'])], ['i3']);
    };
    const { ops, report } = await checkFused(layer({ after }));
    expect(ops).to.not.include('Identity');
    expect(report.fused[0]?.emitNorm).to.equal(false);
  });

  it('Identity to a graph output stays, and the norm is there for it', async () => {
    const after = (m: ModelBuilder, h: string): void => void m.output(m.node('Identity', [h], ['i1']));
    const { ops, report } = await checkFused(layer({ after }));
    expect(ops).to.include('Identity');
    expect(report.fused[0]?.emitNorm).to.equal(true);
  });

  it('who asks for the shape of the norm asks its input', async () => {
    const after = (m: ModelBuilder, h: string): void =>
      void m.output(m.node('Shape', [h], ['s']), [3], DataType.int64);
    const { model, report } = await checkFused(layer({ after }));
    expect(report.fused[0]?.emitNorm).to.equal(false);
    expect(model.graph.nodes.find((node) => node.is('Shape'))?.inputs).to.deep.equal(['x']);
  });

  it('the norm as a graph output keeps its name', async () => {
    const { nodes } = await checkFused(layer({ after: (m, h) => void m.output(h) }));
    expect(nodes[0]?.outputs[1]).to.equal('h');
  });
});

describe('an input of unknown rank', () => {
  it('is fused, and nobody takes it for one of rank 1', async () => {
    const m = new ModelBuilder();
    m.input('x');
    const results = threeMatMul(m, layerNorm(m, 'x'));
    m.output(attend(m, results));
    for (const name of results) m.output(m.node('Shape', [name], [`${name}_shape`]), [3], DataType.int64);
    const original = m.finish();
    await checkFused(original);
    await checkFused(original, { options: { dtype: 'int8' }, bound: 2e-2 });
  });
});

describe('Dropout between norm and projections', () => {
  const dropout =
    (mode: (m: ModelBuilder) => string[], outputs = ['dropped']) =>
    (m: ModelBuilder, h: string): string[] =>
      threeMatMul(m, m.node('Dropout', [h, m.floats('ratio', [], [0.5]), ...mode(m)], outputs));

  it('at inference is taken out', async () => {
    const { ops } = await checkFused(layer({ project: dropout(() => []) }));
    expect(ops).to.not.include('Dropout');
  });

  it('whose mode is a constant is taken out, as ONNX Runtime does', () => {
    const project = dropout((m) => [yes(m)]);
    expect(fused(layer({ project })).ops).to.not.include('Dropout');
  });

  it('whose mode callers choose stays, and so do the projections', () => {
    checkRefused(
      layer({ project: dropout((m) => [m.input('training', [], DataType.bool)]) }),
      "its output 'h' feeds no MatMul or Gemm with constant weights",
    );
  });

  it('whose mask is used stays', () => {
    checkRefused(
      layer({ project: dropout(() => [], ['dropped', 'mask']), after: (m) => void m.output('mask', undefined, DataType.bool) }),
      "its output 'h' feeds no MatMul or Gemm with constant weights",
    ); // prettier-ignore
  });

  it('whose ratio callers may override is taken out, but the input stays', () => {
    const project = (m: ModelBuilder, h: string): string[] => {
      m.input('ratio', []);
      return dropout(() => [])(m, h);
    };
    const { model } = fused(layer({ project }));
    expect(model.graph.inputs.map(({ name }) => name)).to.deep.equal(['x', 'ratio']);
    expect(model.graph.initializers.has('ratio')).to.equal(true);
  });
});

describe('several layers', () => {
  /** Two layers, one behind the other; the second writes its norm as `norm`. */
  const two = (norm: (m: ModelBuilder, x: string) => string): Uint8Array => {
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    const swap = { attributes: { perm: { integers: [0, 2, 1] } } };
    const y = m.node('Transpose', [attend(m, threeMatMul(m, layerNorm(m, 'x')))], ['y_t'], swap);
    const up = m.node('MatMul', [y, weight(m, 'w_o', 9, [N, K])], ['up']);
    const h = norm(m, m.node('Add', [up, 'x'], ['residual']));
    const [q = '', k = ''] = ['q2', 'k2'].map((name, i) => m.node('MatMul', [h, weight(m, `w_${name}`, i + 4)], [name]));
    const t = m.node('Transpose', [k], ['k2_t'], swap);
    m.output(m.node('MatMul', [q, t], ['y2']));
    return m.finish();
  }; // prettier-ignore
  it('that differ in norm and outputs get a body each, and say what they need', async () => {
    const original = two((m, x) => m.node('SimplifiedLayerNormalization', [x, 'gamma'], ['g']));
    const { report, model } = await checkFused(original, { count: 2 });
    expect(report.functions).to.deep.equal(['com.deepspeed:QKVGemm:v1', 'com.deepspeed:QKVGemm:v2']);
    expect(report.requires).to.deep.equal({ irVersion: 10, onnxruntime: '1.27.0' });
    expect(model.irVersion).to.equal(10);
  });

  it('that differ in the number of outputs alone share a body', async () => {
    const alike = (m: ModelBuilder, x: string): string =>
      m.node('LayerNormalization', [x, 'gamma', 'beta'], ['g']);
    const { report } = await checkFused(two(alike), { count: 2 });
    expect(report.functions).to.deep.equal(['com.deepspeed:QKVGemm']);
    expect(report.requires).to.deep.equal({ irVersion: 8, onnxruntime: '1.22.0' });
    expect(report.fused.map(({ splits }) => splits.length)).to.deep.equal([3, 2]);
  });
});
