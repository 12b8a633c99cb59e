import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { type ModelBuilder, uniform } from '../models/builder.js';
import type { AttributeValue } from '../ts/onnx/node.js';
import { DataType } from '../ts/onnx/tensor.js';
import { checkFused, checkRefused, checkUntouched } from './support/fused.js';
import { betaOf, gammaOf, K, layer, N, SHAPE, threeMatMul, weightValues, xTensor } from './support/layers.js';

const REST = ['Transpose', 'MatMul', 'Transpose', 'MatMul'];
const OPSETS = { 'com.microsoft': 1 };

interface Form {
  bias?: boolean;
  /** Shape of the second term (default that of x, as a graph input). */
  skipDims?: readonly number[];
  attributes?: Record<string, AttributeValue>;
  /** Output names behind the first. */
  outputs?: readonly string[];
  scale?: (m: ModelBuilder) => string;
  domain?: string;
}

for (const simplified of [false, true]) {
  const opType = simplified ? 'SkipSimplifiedLayerNormalization' : 'SkipLayerNormalization';
  const rule = simplified ? 'skip-simplified-layer-normalization' : 'skip-layer-normalization';

  const norm =
    (form: Form) =>
    (m: ModelBuilder, x: string): string => {
      const { skipDims, attributes = { epsilon: { float: 1e-5 } }, outputs = [], scale = gammaOf } = form;
      const skip = skipDims
        ? m.floats('skip', skipDims, uniform(skipDims.reduce((a, b) => a * b, 1), 1, 9))
        : m.input('skip', ['batch', 'sequence', K]); // prettier-ignore
      const inputs = [x, skip, scale(m), ...(simplified ? [] : [betaOf(m)])];
      if (form.bias) inputs.push(m.floats('bias', [K], uniform(K, 0.7, 11)));
      return m.node(opType, inputs, ['h', ...outputs], {
        attributes,
        domain: form.domain ?? 'com.microsoft',
      });
    };
  const skipLayer = (form: Form, after?: (m: ModelBuilder, h: string) => void): Uint8Array =>
    layer({ opsets: OPSETS, norm: norm(form), ...(after ? { after } : {}) });
  const second = (): ort.Tensor =>
    new ort.Tensor('float32', uniform(SHAPE.reduce((a, b) => a * b, 1), 1, 8), SHAPE); // prettier-ignore
  const inputs = [xTensor(), second()];

  describe(opType, () => {
    it('becomes an Add and the node that reads it', async () => {
      const { report, nodes, ops } = await checkFused(skipLayer({}), { inputs });
      expect(ops).to.deep.equal(['Add', 'QKVGemm', ...REST]);
      expect(report.fused[0]?.rules.norm).to.equal(rule);
      expect(report.fused[0]?.normType).to.equal(simplified ? 'rms_norm' : 'layer_norm');
      expect(report.fused[0]?.epsilon).to.equal(Math.fround(1e-5));
      expect(report.fused[0]?.emitNorm).to.equal(false);
      expect(nodes[0]?.inputs.slice(0, 3)).to.deep.equal(['h/sum', 'h_node/QKVGemm.weight', 'gamma']);
    });

    it('with a bias: a second Add', async () => {
      const { ops, model } = await checkFused(skipLayer({ bias: true }), { inputs });
      expect(ops).to.deep.equal(['Add', 'Add', 'QKVGemm', ...REST]);
      expect(model.graph.nodes[0]?.inputs).to.deep.equal(['x', 'skip']);
      expect(model.graph.nodes[1]?.inputs[1]).to.equal('bias');
    });

    it('whose sum others read: the Add gives it under its name', async () => {
      for (const bias of [false, true]) {
        const after = (m: ModelBuilder): void => void m.output(m.node('Neg', ['total'], ['less']));
        const original = skipLayer({ bias, outputs: ['', '', 'total'] }, after);
        const { nodes, model } = await checkFused(original, { inputs });
        expect(nodes[0]?.inputs[0]).to.equal('total');
        expect(model.graph.nodes.find((node) => node.is('Neg'))?.inputs).to.deep.equal(['total']);
      }
    });

    it('whose sum is a graph output', async () => {
      const after = (m: ModelBuilder): void => void m.output('total');
      const { nodes } = await checkFused(skipLayer({ bias: true, outputs: ['', '', 'total'] }, after), {
        inputs,
      });
      expect(nodes[0]?.inputs[0]).to.equal('total');
    });

    it('whose result others read as well: the node gives it', async () => {
      const { nodes, report } = await checkFused(
        skipLayer({ outputs: ['mean', 'deviation', 'total'] }, (m, h) => void m.output(h)),
        { inputs },
      );
      expect(report.fused[0]?.emitNorm).to.equal(true);
      expect(nodes[0]?.outputs[1]).to.equal('h');
    });

    it('who asks for the shape of its result asks its first term', async () => {
      const after = (m: ModelBuilder, h: string): void =>
        void m.output(m.node('Shape', [h], ['s']), [3], DataType.int64);
      const { model, report } = await checkFused(skipLayer({}, after), { inputs });
      expect(report.fused[0]?.emitNorm).to.equal(false);
      expect(model.graph.nodes.find((node) => node.is('Shape'))?.inputs).to.deep.equal(['x']);
    });

    for (const skipDims of [SHAPE.slice(1), [1, ...SHAPE.slice(1)]]) {
      it(`a second term of shape [${skipDims.join(', ')}] is spread over the batch`, async () => {
        await checkFused(skipLayer({ skipDims, bias: true }));
      });
    }

    it('its default epsilon is that of ONNX Runtime', async () => {
      // Rows of about 1e-6, where 1e-12 counts as much as their squares.
      const small = (tensor: ort.Tensor): ort.Tensor =>
        new ort.Tensor('float32', (tensor.data as Float32Array).map((value) => value * 1e-6), SHAPE); // prettier-ignore
      const { report } = await checkFused(skipLayer({ attributes: {} }), { inputs: inputs.map(small) });
      expect(report.fused[0]?.epsilon).to.equal(Math.fround(1e-12));
    });

    it('two layers, the second norm of the sum that the first gives', async () => {
      const swap = { attributes: { perm: { integers: [0, 2, 1] } } };
      const original = layer({
        opsets: OPSETS,
        norm: norm({ outputs: ['', '', 'total'], bias: true }),
        after: (m) => {
          const back = m.node('MatMul', ['y', m.floats('w_o', [5, K], weightValues(5 * K, 9))], ['back_t']);
          const fit = m.node('Slice', [back, ...['from', 'to', 'axis'].map((name, i) => m.integers(name, [1], [[0], [5], [1]][i] ?? []))], ['back']);
          const tail = simplified ? ['gamma'] : ['gamma', 'beta'];
          const h = m.node(opType, [fit, 'total', ...tail], ['h2'], { domain: 'com.microsoft' });
          const [q = '', k = ''] = ['q2', 'k2'].map((name, i) => m.node('MatMul', [h, m.floats(`w_${name}`, [K, N], weightValues(K * N, i + 5))], [name]));
          m.output(m.node('MatMul', [q, m.node('Transpose', [k], ['k2_t'], swap)], ['y2']));
        },
      }); // prettier-ignore
      await checkFused(original, { inputs, count: 2 });
    });

    it('float16: terms are added in float32 and rounded once', async () => {
      const low = (type: number): Uint8Array => {
        const cast = (m: ModelBuilder, from: string, to: number, name: string): string =>
          m.node('Cast', [from], [name], { attributes: { to: { integer: to } } });
        // Numbers that both types hold; in float32, the sum is rounded to float16 as well.
        const half = (m: ModelBuilder, name: string, values: Float32Array, dims: number[]): string =>
          type === DataType.float16
            ? m.floats(name, dims, values, type)
            : cast(m, m.floats(`${name}_s`, dims, values, DataType.float16), type, name);
        return layer({
          opsets: OPSETS,
          norm: (m, x) => {
            const a = cast(m, cast(m, x, DataType.float16, 'x_low'), type, 'a');
            const b = cast(m, cast(m, m.input('skip', SHAPE), DataType.float16, 's_low'), type, 'b');
            const operands = [a, b, half(m, 'g', uniform(K, 0.4, 3, 1), [K])];
            if (!simplified) operands.push(half(m, 's', uniform(K, 0.3, 4), [K]));
            operands.push(half(m, 'bias', uniform(K, 0.7, 11), [K]));
            return m.node(opType, operands, ['h', '', '', 'total'], {
              domain: 'com.microsoft',
              attributes: { epsilon: { float: 1e-5 } },
            });
          },
          project: (m, h) =>
            ['q', 'k', 'v'].map((name, i) => {
              const w = half(m, `w_${name}`, weightValues(K * N, i), [K, N]);
              return cast(m, m.node('MatMul', [h, w], [`${name}_low`]), DataType.float, name);
            }),
          after: (m) => m.output(cast(m, 'total', DataType.float, 'total_f')),
        });
      };
      // Each is rounded to float16 once: the sum, the products; then Q K V multiply.
      const { ops } = await checkFused(low(DataType.float16), {
        inputs,
        reference: low(DataType.float),
        bound: 4e-3,
      });
      expect(ops.filter((op) => op === 'Add')).to.have.length(2);
    });

    it('refuses a statistic that is read', () => {
      const original = skipLayer({ outputs: ['mean'] }, (m) => void m.output(m.node('Neg', ['mean'], ['n'])));
      checkRefused(original, "output 'mean' (a statistic) is used, and the fused op does not give it");
    });

    it('refuses a scale that is a graph input, of one element, or of two dimensions', () => {
      for (const [scale, reason] of [
        [(m: ModelBuilder) => m.input('g', [K]), "the scale is not constant: 'g' is a graph input"],
        [(m: ModelBuilder) => m.floats('g', [1], [2]), "the scale 'g' has 1 elements, the weights have K = 12"],
        [(m: ModelBuilder) => m.floats('g', [1, K], new Float32Array(K)), "the scale 'g' has shape [1, 12], expected one dimension [K]"],
      ] as const) checkRefused(skipLayer({ scale }), reason); // prettier-ignore
    });

    it('refuses a negative epsilon', () => {
      checkRefused(
        skipLayer({ attributes: { epsilon: { float: -0.5 } } }),
        'epsilon is -0.5, expected a number >= 0',
      );
    });

    it('refuses where its result feeds no projection', () => {
      const project = (m: ModelBuilder, h: string): string[] => threeMatMul(m, m.node('Neg', [h], ['minus']));
      checkRefused(
        layer({ opsets: OPSETS, norm: norm({}), project }),
        "its output 'h' feeds no MatMul or Gemm with constant weights",
      );
    });

    it('is left alone where the op type is of another domain', () => {
      checkUntouched(layer({ opsets: { 'com.example': 1 }, norm: norm({ domain: 'com.example' }) }));
    });
  });
}
