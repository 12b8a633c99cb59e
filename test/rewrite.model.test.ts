import { expect } from 'chai';
import { ModelBuilder } from '../models/builder.js';
import { QkvGemmError } from '../ts/errors.js';
import { encodeNode } from '../ts/onnx/node.js';
import { DataType, encodeTensor } from '../ts/onnx/tensor.js';
import { concat, MessageWriter, readFields } from '../ts/onnx/wire.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { checkFused, checkRefused, fused } from './support/fused.js';
import {
  attend,
  betaOf,
  gammaOf,
  K,
  layer,
  layerNorm,
  N,
  threeMatMul,
  weight,
  weightValues,
  type Layer,
} from './support/layers.js';
import { spell } from './support/norms.js';

/** FunctionProto: name 1, input 4, output 5, node 7, opset_import 9, domain 10: gives its input negated. */
function negate(domain: string, name: string): Uint8Array {
  const node = encodeNode({ opType: 'Neg', inputs: ['a'], outputs: ['b'] });
  const opset = new MessageWriter().string(1, '').integer(2, 17).finish();
  const writer = new MessageWriter().string(1, name).string(4, 'a').string(5, 'b').bytes(7, node);
  return writer.bytes(9, opset).string(10, domain).finish();
}

/** An opset import or function put into a model's bytes. */
const withField = (model: Uint8Array, number: number, message: Uint8Array): Uint8Array =>
  concat([model, new MessageWriter().bytes(number, message).finish()]);

function failure(action: () => unknown): QkvGemmError {
  try {
    action();
  } catch (error) {
    if (error instanceof QkvGemmError) return error;
    throw error;
  }
  throw new Error('expected a QkvGemmError, but nothing was thrown');
}

describe('functions and domains', () => {
  for (const domain of ['com.deepspeed', 'com.example']) {
    it(`a function of ${domain} that the model uses stays`, async () => {
      const original = layer({
        opsets: { [domain]: 1 },
        after: (m, h) => {
          m.function(negate(domain, 'Negate'));
          m.output(m.node('Negate', [h], ['less'], { domain }));
        },
      });
      const { model, report, ops } = await checkFused(original);
      expect(model.functions).to.deep.equal([`${domain}:Negate`, 'com.deepspeed:QKVGemm']);
      expect(ops).to.include('Negate');
      expect(report.fused[0]?.emitNorm).to.equal(true);
    });
  }

  it('a model that holds com.deepspeed:QKVGemm, as a function or as a node, and a layer: an error, or no body', () => {
    const message = (held: string): string =>
      `The model already holds the ${held} com.deepspeed:QKVGemm: it has been rewritten before. Rewrite the original instead.`;
    const function_ = withField(layer(), 25, negate('com.deepspeed', 'QKVGemm'));
    for (const options of [{}, { fallback: false }]) {
      const error = failure(() => fuseBytes(function_, options));
      expect([error.code, error.message]).to.deep.equal(['UNSUPPORTED_MODEL', message('function')]);
    }
    const node = layer({
      opsets: { 'com.deepspeed': 1 },
      after: (m) => m.output(m.node('QKVGemm', ['x', weight(m, 'w', 5)], ['z'], { domain: 'com.deepspeed' })) as unknown as undefined,
    }); // prettier-ignore
    expect(failure(() => fuseBytes(node)).message).to.equal(message('node'));
    const { report } = fuseBytes(node, { fallback: false });
    expect(report.fused).to.have.length(1);
  });

  it('rewriting twice changes nothing more', () => {
    const norm = (m: ModelBuilder, x: string): string => spell(m, x, false);
    for (const model of [layer(), layer({ norm, opset: 13 }), layer({ after: (m, h) => void m.output(h) })]) {
      for (const dtype of ['keep', 'fp16', 'bf16', 'int8'] as const) {
        const once = fuseBytes(model, { dtype });
        expect(once.report.fused).to.have.length(1);
        const twice = fuseBytes(once.model, { dtype });
        expect(twice.report.fused).to.deep.equal([]);
        expect(twice.model).to.equal(once.model);
      }
    }
  });

  it('without the fallback no function is added, and the op is imported', () => {
    const { model, report } = fused(layer(), { options: { fallback: false } });
    expect(model.functions).to.deep.equal([]);
    expect(report.functions).to.deep.equal([]);
    expect(model.opsets.get('com.deepspeed')).to.equal(1);
  });

  it('the default domain written as ai.onnx', async () => {
    const original = layer();
    const parts = readFields(original, 'the model').map((field) =>
      field.number === 8
        ? new MessageWriter()
            .bytes(8, new MessageWriter().string(1, 'ai.onnx').integer(2, 17).finish())
            .finish()
        : field.span,
    );
    await checkFused(concat(parts));
  });
});

describe('opsets', () => {
  const forms: Record<string, Layer> = {
    'decomposed-layer-norm': { norm: (m, x) => spell(m, x, false) },
    'decomposed-rms-norm': { norm: (m, x) => spell(m, x, true) },
  };
  for (const opset of [7, 9, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23]) {
    for (const [rule, form] of Object.entries(forms)) {
      it(`${opset}: ${rule}`, async () => {
        const norm = (m: ModelBuilder, x: string): string =>
          spell(m, x, rule === 'decomposed-rms-norm', { axes: opset < 18 ? 'attribute' : 'initialiser' });
        const irVersion = opset < 21 ? 8 : 10;
        const { model } = await checkFused(layer({ ...form, norm, opset, irVersion }));
        expect(model.opsets.get('')).to.equal(opset);
        expect(model.irVersion).to.equal(irVersion);
      });
    }
  }
});

describe('opsets before 13', () => {
  it('int8 and float16 weights run without the library', async () => {
    const original = layer({ opset: 11, norm: (m, x) => spell(m, x, false) });
    await checkFused(original, { options: { dtype: 'int8' }, bound: 2e-2 });
    await checkFused(original, { options: { dtype: 'fp16' }, bound: 1e-3 });
  });

  it('bfloat16 weights, which no Cast knew then, need the library', () => {
    const original = layer({ opset: 12, norm: (m, x) => spell(m, x, false) });
    const { model, report } = fuseBytes(original, { dtype: 'bf16' });
    expect(report.refused.map(({ reason }) => reason)).to.deep.equal([
      'the model is in opset 12, in which the function body cannot read bfloat16; 13 can',
    ]);
    expect(model).to.equal(original);
    expect(fuseBytes(original, { dtype: 'bf16', fallback: false }).report.fused).to.have.length(1);
  });
});

describe('initialisers that are graph inputs', () => {
  const declare = (name: string, dims: number[], irVersion: number, norm?: Layer['norm']): Uint8Array =>
    layer({
      irVersion,
      opset: norm ? 13 : 17,
      ...(norm ? { norm } : {}),
      after: (m) => void m.input(name, dims),
    });
  const decomposed = (m: ModelBuilder, x: string): string => spell(m, x, false);
  const given = (name: string): string =>
    `'${name}' is a graph input with a default: callers may override it`;

  it('from IR version 4 on they may be overridden: none is built in', () => {
    checkRefused(declare('gamma', [K], 8), `the scale is not constant: ${given('gamma')}`);
    checkRefused(declare('beta', [K], 4), `the shift is not constant: ${given('beta')}`);
    checkRefused(declare('gamma', [K], 8, decomposed), "its output 'normalised' feeds no MatMul or Gemm with constant weights");
    checkRefused(declare('two', [], 8, decomposed), 'the mean is not of squares (Pow 2 or Mul by itself)');
    const epsilon = declare('epsilon', [], 8, decomposed);
    expect(fuseBytes(epsilon).model).to.equal(epsilon);
  }); // prettier-ignore

  it('an overridable weight keeps its projection out of the node', async () => {
    const { report, ops } = await checkFused(declare('w_q', [K, N], 8));
    expect(report.fused[0]?.splits).to.deep.equal([N, N]);
    expect(report.fused[0]?.emitNorm).to.equal(true);
    expect(ops.filter((op) => op === 'MatMul')).to.have.length(3);
  });

  it('an overridable bias stays an Add', async () => {
    const project = (m: ModelBuilder, h: string): string[] => {
      const [q = '', k = '', v = ''] = threeMatMul(m, h);
      m.input('b', [N]);
      return [m.node('Add', [q, m.floats('b', [N], weightValues(N, 3))], ['q_b']), k, v];
    };
    const { ops } = await checkFused(layer({ project }));
    expect(ops).to.include('Add');
  });

  it('before, every initialiser was one: they are constants', async () => {
    const after = (m: ModelBuilder): void => {
      for (const name of ['w_q', 'w_k', 'w_v']) m.input(name, [K, N]);
      for (const name of ['gamma', 'beta']) m.input(name, [K]);
    };
    const { model } = await checkFused(layer({ irVersion: 3, after }));
    expect(model.irVersion).to.equal(8);
    expect(model.graph.inputs.map(({ name }) => name)).to.deep.equal(['x']);
  });
});

describe('value infos', () => {
  it('of values that are gone go, the rest stays', async () => {
    const stated = { mean: 1, d: K, variance: 1, normalised: K, shifted: K, q_t: 5, scores: N } as const;
    const original = layer({
      opset: 13,
      norm: (m, x) => spell(m, x, false),
      after: (m) => Object.entries(stated).forEach(([name, last]) => m.valueInfo(name, ['batch', name === 'q_t' || name === 'scores' ? N : 'sequence', last === 5 ? 'sequence' : last])),
    }); // prettier-ignore
    const { model } = await checkFused(original);
    expect([...model.graph.valueInfos.keys()]).to.deep.equal(['q_t', 'scores']);
  });

  it('a rank that they state serves a positive axis', async () => {
    const norm = (m: ModelBuilder, x: string): string => {
      m.valueInfo('moved', ['batch', 'sequence', K]);
      return m.node('LayerNormalization', [m.node('Neg', [x], ['moved']), gammaOf(m), betaOf(m)], ['h'], {
        attributes: { axis: { integer: 2 } },
      });
    };
    await checkFused(layer({ norm }));
  });
});

describe('weights in other forms', () => {
  it('sparse initialisers are refused', () => {
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    const h = layerNorm(m, 'x');
    m.output(attend(m, ['q', 'k', 'v'].map((name) => m.node('MatMul', [h, `w_${name}`], [name])))); // prettier-ignore
    // SparseTensorProto: values 1, indices 2, dims 3; GraphProto: sparse_initializer 15.
    const sparse = ['w_q', 'w_k', 'w_v'].map((name) => {
      const indices = new Uint8Array(new BigInt64Array([5n]).buffer);
      const value = new Uint8Array(new Float32Array([2]).buffer);
      const writer = new MessageWriter().bytes(1, encodeTensor(name, DataType.float, [1], value));
      writer
        .bytes(2, encodeTensor('', DataType.int64, [1], indices))
        .integer(3, K)
        .integer(3, N);
      return new MessageWriter().bytes(15, writer.finish()).finish();
    });
    const parts = readFields(m.finish(), 'the model').map((field) =>
      field.number === 7 ? new MessageWriter().bytes(7, [field.value, ...sparse]).finish() : field.span,
    );
    checkRefused(concat(parts), "the weight is not constant: 'w_q' is a sparse initialiser", 'q_node');
  });
});

describe('element types', () => {
  /** x in `type`, norm and projections in it, float32 at the graph's ends. */
  const inType = (type: number, stored = type): Uint8Array => {
    const cast = (m: ModelBuilder, from: string, to: number, name: string): string =>
      m.node('Cast', [from], [name], { attributes: { to: { integer: to } } });
    // What `stored` rounds, a Cast brings to `type` where the two differ.
    const floats = (m: ModelBuilder, name: string, dims: number[], values: Float32Array): string =>
      stored === type
        ? m.floats(name, dims, values, type)
        : cast(m, m.floats(`${name}_s`, dims, values, stored), type, name);
    return layer({
      norm: (m, x) => {
        const low = cast(m, cast(m, x, stored, 'x_low'), type, 'x_in');
        return m.node('LayerNormalization', [low, floats(m, 'gamma', [K], weightValues(K, 8))], ['h']);
      },
      project: (m, h) =>
        ['q', 'k', 'v'].map((name, i) => {
          const w = floats(m, `w_${name}`, [K, N], weightValues(K * N, i));
          return cast(m, m.node('MatMul', [h, w], [`${name}_low`]), DataType.float, name);
        }),
    });
  };

  // Each is rounded to its type once, where ONNX Runtime rounds float16's intermediates as well; then Q K V multiply.
  for (const [name, type, bound] of [
    ['float16', DataType.float16, 2e-3],
    ['bfloat16', DataType.bfloat16, 1.6e-2],
  ] as const) {
    it(`${name}, against the same numbers in float32`, async () => {
      const reference = inType(DataType.float, type);
      const { report, nodes } = await checkFused(inType(type), { reference, bound });
      expect(report.fused[0]?.weightType).to.equal(name);
      expect(nodes[0]?.inputs).to.deep.equal([
        'x_in',
        'h_node/QKVGemm.weight',
        'gamma',
        'h_node/QKVGemm.beta',
      ]);
    });
  }

  it('double is refused', () => {
    const values = new Uint8Array(new Float64Array(K * N).fill(0.5).buffer);
    const original = layer({
      type: DataType.double,
      opset: 17,
      norm: (m, x) => m.node('LayerNormalization', [x, m.tensor('gamma', DataType.double, [K], values.subarray(0, 8 * K))], ['h']),
      project: (m, h) => ['q', 'k', 'v'].map((name) => m.node('MatMul', [h, m.tensor(`w_${name}`, DataType.double, [K, N], values)], [name])),
    }); // prettier-ignore
    checkRefused(original, "the scale 'gamma' is double, expected float32, float16 or bfloat16");
  });

  it('double without a scale is refused at the weights', () => {
    const values = new Uint8Array(new Float64Array(K * N).fill(0.5).buffer);
    const original = layer({
      type: DataType.double,
      opset: 13,
      norm: (m, x) => {
        const e = m.tensor('e', DataType.double, [], new Uint8Array(new Float64Array([1e-5]).buffer));
        const mean = m.node('ReduceMean', [m.node('Mul', [x, x], ['s'])], ['mean'], { attributes: { axes: { integers: [-1] } } });
        return m.node('Div', [x, m.node('Sqrt', [m.node('Add', [mean, e], ['a'])], ['r'])], ['h']);
      },
      project: (m, h) => ['q', 'k', 'v'].map((name) => m.node('MatMul', [h, m.tensor(`w_${name}`, DataType.double, [K, N], values)], [name])),
    }); // prettier-ignore
    checkRefused(original, "the weight 'w_q' is double, expected float32, float16 or bfloat16", 'q_node');
  });
});
