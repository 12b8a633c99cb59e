import { expect } from 'chai';
import { ModelBuilder, uniform } from '../models/builder.js';
import { attentionModel, K, N } from '../models/attention.js';
import { QkvGemmError, type QkvGemmErrorCode } from '../ts/errors.js';
import { encodeAttribute, encodeNode } from '../ts/onnx/node.js';
import { DataType, encodeExternalTensor, Tensor } from '../ts/onnx/tensor.js';
import { concat, MessageWriter } from '../ts/onnx/wire.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';

/** Fuses, which must fail with this code, say this, and need little time. */
function fails(bytes: Uint8Array, code: QkvGemmErrorCode, message: RegExp): void {
  const started = performance.now();
  expect(() => fuseBytes(bytes))
    .to.throw(QkvGemmError, message)
    .with.property('code', code);
  expect(performance.now() - started, 'milliseconds').to.be.below(5000);
}

const node = (
  opType: string,
  inputs: string[],
  outputs: string[],
  attributes: Uint8Array[] = [],
): Uint8Array => encodeNode({ opType, name: `${opType} of ${outputs.join()}`, inputs, outputs, attributes });

/** GraphProto bytes as an attribute. */
const graphAttribute = (graph: Uint8Array[]): Uint8Array =>
  new MessageWriter().string(1, 'then_branch').bytes(6, graph).integer(20, 5).finish();

describe('hostile graphs', () => {
  it('a value that nothing produces', () => {
    const extraNodes = [node('Relu', ['nowhere'], ['r'])];
    fails(attentionModel({ extraNodes }), 'INVALID_MODEL', /Node 'Relu of r' reads the value 'nowhere'/);
    const model = new ModelBuilder();
    model.input('x', [K]);
    model.output('y', [K]);
    fails(model.finish(), 'INVALID_MODEL', /The graph's output reads the value 'y'/);
  });

  it('a value that nothing produces, read in a subgraph; one from outside is none', () => {
    const body = (name: string): Uint8Array[] => {
      const inner = new ModelBuilder();
      inner.output(inner.node('Neg', [name], ['inside']));
      return inner.graph();
    };
    const model = (name: string): Uint8Array =>
      attentionModel({ extraNodes: [node('If', ['x'], ['i'], [graphAttribute(body(name))])] });
    fails(model('nowhere'), 'INVALID_MODEL', /Node 'inside_node' reads the value 'nowhere'/);
    expect(fuseBytes(model('x')).report.fused).to.have.length(1);
    // A value of a subgraph is not seen outside.
    const outside = attentionModel({
      extraNodes: [node('If', ['x'], ['i'], [graphAttribute(body('x'))]), node('Relu', ['inside'], ['r'])],
    });
    fails(outside, 'INVALID_MODEL', /Node 'Relu of r' reads the value 'inside'/);
  });

  it('cycles: of one node, of several, through a subgraph', () => {
    fails(
      attentionModel({ extraNodes: [node('Relu', ['a'], ['a'])] }),
      'INVALID_MODEL',
      /cycle: node 'Relu of a'/,
    );
    const several = [node('Relu', ['b'], ['a']), node('Neg', ['a'], ['b']), node('Abs', ['b'], ['c'])];
    fails(attentionModel({ extraNodes: several }), 'INVALID_MODEL', /cycle.*\(3 nodes/);
    const inner = new ModelBuilder();
    inner.output(inner.node('Neg', ['i'], ['inside']));
    const captured = [node('If', ['x'], ['i'], [graphAttribute(inner.graph())])];
    fails(attentionModel({ extraNodes: captured }), 'INVALID_MODEL', /cycle: node 'If of i'/);
  });

  it('nodes out of order are no cycle', () => {
    const extraNodes = [node('Relu', ['later'], ['r']), node('Neg', ['x'], ['later'])];
    expect(fuseBytes(attentionModel({ extraNodes })).report.fused).to.have.length(1);
  });

  it('names that are there twice', () => {
    const twice = (add: (model: ModelBuilder) => void): Uint8Array => {
      const model = new ModelBuilder();
      model.input('x', [K]);
      model.output(model.node('Relu', ['x'], ['y']));
      add(model);
      return model.finish();
    };
    for (const [add, message] of [
      [(m: ModelBuilder) => m.node('Neg', ['x'], ['y']), /'y' is produced twice: by node/],
      [(m: ModelBuilder) => m.node('Neg', ['x'], ['x']), /'x' is produced twice: by a graph input/],
      [(m: ModelBuilder) => m.floats('y', [1], [1]), /'y' is produced twice: by an initialiser/],
      [
        (m: ModelBuilder) => [m.floats('w', [1], [1]), m.floats('w', [1], [2])],
        /Two initialisers are named 'w'/,
      ],
      [(m: ModelBuilder) => m.input('x', [K]), /Two graph inputs are named 'x'/],
    ] as const)
      fails(twice(add), 'INVALID_MODEL', message);
  });

  it('subgraphs that are nested without end', () => {
    let graph: Uint8Array[] = [];
    for (let depth = 0; depth < 200; depth++) {
      const holder = node('If', [], [`v${depth}`], [graphAttribute(graph)]);
      graph = new MessageWriter().bytes(1, holder).parts();
    }
    const extraNodes = [node('If', ['x'], ['i'], [graphAttribute(graph)])];
    fails(attentionModel({ extraNodes }), 'UNSUPPORTED_MODEL', /nested deeper than 32/);
  });
});

describe('hostile sizes', () => {
  const { float, float16 } = DataType;

  /** The attention layer with other weights: [K, N] by name of the projection. */
  const withWeights = (add: (model: ModelBuilder, name: string) => void): Uint8Array => {
    const model = new ModelBuilder();
    model.input('x', ['batch', 'sequence', K]);
    const gamma = model.floats('gamma', [K], uniform(K, 1, 1));
    const h = model.node('SimplifiedLayerNormalization', ['x', gamma], ['h'], {
      attributes: { axis: { integer: -1 } },
    });
    for (const name of ['q', 'k', 'v']) {
      add(model, `w${name}`);
      model.node('MatMul', [h, `w${name}`], [name]);
    }
    const kt = model.node('Transpose', ['k'], ['kt'], { attributes: { perm: { integers: [0, 2, 1] } } });
    model.output(model.node('MatMul', [model.node('MatMul', ['q', kt], ['s']), 'v'], ['y']));
    return model.finish();
  };

  it('tensors that declare more than they hold, or than there can be', () => {
    const none = new Uint8Array();
    fails(
      withWeights((m, w) => m.tensor(w, float, [K, 2 ** 40], none)),
      'INVALID_MODEL',
      /70368744177664 bytes, but holds 0/,
    );
    fails(
      withWeights((m, w) => m.tensor(w, float, [2 ** 40, 2 ** 40], none)),
      'INVALID_MODEL',
      /at most 2\^53/,
    );
    fails(
      withWeights((m, w) => m.tensor(w, float, [K, -N], none)),
      'INVALID_MODEL',
      /none may be negative/,
    );
    const ranks = Array.from({ length: 100_000 }, () => 1);
    fails(
      withWeights((m, w) => m.tensor(w, float, ranks, none)),
      'INVALID_MODEL',
      /100000 dimensions/,
    );
  });

  it('one weight that is there many times over: the product is too large, and nothing of its size is made', () => {
    const model = new ModelBuilder();
    model.input('x', ['batch', 'sequence', K], float16);
    const gamma = model.floats('gamma', [K], uniform(K, 1, 1), float16);
    const h = model.node('SimplifiedLayerNormalization', ['x', gamma], ['h'], { attributes: {} });
    const w = model.tensor('w', float16, [K, 2 ** 18], new Uint8Array(2 * K * 2 ** 18));
    const names = Array.from({ length: 1024 }, (_, i) => model.node('MatMul', [h, w], [`p${i}`]));
    const all = model.node('Concat', names, ['all'], { attributes: { axis: { integer: -1 } } });
    model.output(model.node('MatMul', [all, all], ['y']));
    const { report } = fuseBytes(model.finish());
    expect(report.fused).to.deep.equal([]);
    expect(report.refused[0]?.reason).to.match(/the weights together have \d+ bytes, expected at most/);
  });

  it('places in external files that are no numbers, negative or beyond all files', () => {
    const place = (offset: string): Uint8Array => {
      const entry = (key: string, value: string): Uint8Array =>
        new MessageWriter().string(1, key).string(2, value).finish();
      const writer = new MessageWriter().integer(1, K).integer(1, N).integer(2, float).string(8, 'wq');
      for (const [key, value] of [['location', 'w.bin'], ['offset', offset]] as const) writer.bytes(13, entry(key, value)); // prettier-ignore
      return writer.integer(14, 1).finish();
    };
    for (const offset of ['-1', '1e3', '0x10', '1.5', '', ' 1', '99999999999999999999'])
      expect(() => new Tensor(place(offset), 't'), offset)
        .to.throw(QkvGemmError, /external_data offset is/)
        .with.property('code', 'INVALID_MODEL');
    expect(new Tensor(place('0064'), 't').external?.offset).to.equal(64);
    const sound = encodeExternalTensor('wq', float, [K, N], {
      location: 'w.bin',
      offset: 8,
      length: 4 * K * N,
    });
    expect(new Tensor(sound, 't').external).to.deep.equal({
      location: 'w.bin',
      offset: 8,
      length: 4 * K * N,
    });
  });

  it('a number as long as a file', () => {
    const long = new MessageWriter().bytes(1, new Uint8Array(2 ** 24).fill(0x80)).finish();
    fails(
      concat([long, attentionModel().subarray(2)]),
      'INVALID_MODEL',
      /16777216 bytes where a number is expected/,
    );
  });

  it('fields and lists without end', () => {
    const empty = new Uint8Array(2 ** 22).fill(0);
    for (let i = 0; i < empty.length; i += 2) empty[i] = 0x7a; // field 15, of no bytes
    fails(concat([attentionModel(), empty]), 'INVALID_MODEL', /more than 1048576 fields/);
    const numbers = new MessageWriter()
      .string(1, 'perm')
      .bytes(8, new Uint8Array(2 ** 24))
      .integer(20, 7)
      .finish();
    const model = attentionModel({ extraNodes: [node('Transpose', ['gamma'], ['g2'], [numbers])] });
    expect(fuseBytes(model).report.fused, 'not looked at').to.have.length(1);
    const axes = new MessageWriter()
      .string(1, 'value_ints')
      .bytes(8, new Uint8Array(2 ** 24))
      .integer(20, 7)
      .finish();
    const constant = attentionModel({
      extraNodes: [node('Constant', [], ['c'], [axes]), node('MatMul', ['x', 'c'], ['m'])],
    });
    expect(fuseBytes(constant).report.fused, 'not looked at').to.have.length(1);
  });

  it('nodes with more inputs and graphs with more nodes than a call takes arguments', () => {
    const many = Array.from({ length: 200_000 }, () => 'x');
    const wide = fuseBytes(attentionModel({ extraNodes: [node('Concat', many, ['wide'])] }));
    expect(wide.report.fused).to.have.length(1);
    const extraNodes = many.map((_, i) => node('Relu', ['x'], [`r${i}`]));
    expect(fuseBytes(attentionModel({ extraNodes })).report.fused).to.have.length(1);
  });

  it('names as long as a file do not make messages as long', () => {
    const extraNodes = [node('Relu', ['n'.repeat(1e6)], ['r'])];
    try {
      fuseBytes(attentionModel({ extraNodes }));
      expect.fail('expected an error');
    } catch (error) {
      expect((error as Error).message.length).to.be.below(5000);
    }
  });

  it('attributes that are no messages', () => {
    const attribute = encodeAttribute('axis', { integer: -1 });
    const cut = attribute.subarray(0, attribute.length - 1);
    fails(
      attentionModel({ extraNodes: [node('If', ['x'], ['i'], [cut])] }),
      'INVALID_MODEL',
      /bytes end inside a number/,
    );
  });
});
