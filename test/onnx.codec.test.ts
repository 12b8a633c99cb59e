import { expect } from 'chai';
import { QkvGemmError } from '../ts/errors.js';
import { Model } from '../ts/onnx/model.js';
import { Tensor, encodeTensor } from '../ts/onnx/tensor.js';
import { concat, MessageWriter, readFields } from '../ts/onnx/wire.js';
import { corpusModel, corpusModels } from '../models/corpus.js';

const small = (): Uint8Array =>
  new MessageWriter()
    .integer(1, 8)
    .bytes(
      7,
      new MessageWriter()
        .string(2, 'g')
        .bytes(5, encodeTensor('w', 1, [2], new Uint8Array(8)))
        .finish(),
    )
    .bytes(8, new MessageWriter().string(1, '').integer(2, 17).finish())
    .string(77, 'a field of the future')
    .finish();

describe('the codec', () => {
  const models = corpusModels();

  it('gives every corpus model back byte for byte', function () {
    if (models.length === 0) this.skip();
    for (const name of models) {
      const bytes = corpusModel(name);
      const model = new Model(bytes);
      expect(Buffer.compare(concat(model.encode()), bytes), name).to.equal(0);
      // The graph's own encoder, which a rewrite goes through, also copies what is not touched.
      const graph = readFields(bytes, name).find((field) => field.number === 7);
      expect(
        Buffer.compare(concat(model.graph.encode()), graph?.value ?? new Uint8Array()),
        `${name}: graph`,
      ).to.equal(0);
    }
  });

  it('refuses a corpus model cut short, wherever it is cut, without crashing', function () {
    const [name] = models;
    if (name === undefined) return this.skip();
    const bytes = corpusModel(name);
    for (let length = 0; length < bytes.length; length += 997) {
      try {
        new Model(bytes.subarray(0, length));
      } catch (error) {
        expect(error).to.be.instanceOf(QkvGemmError);
        expect((error as QkvGemmError).code).to.equal('INVALID_MODEL');
        continue;
      }
      // What was cut off lay behind the graph: a whole message by itself.
      expect(readFields(bytes.subarray(0, length), name).some((field) => field.number === 7)).to.equal(true);
    }
  });

  it('keeps fields that it does not know when something else changes', () => {
    const model = new Model(small());
    model.addOpset('com.deepspeed', 1);
    const encoded = concat(model.encode());
    expect(readFields(encoded, 'model').find((field) => field.number === 77)?.value.length).to.equal(21);
    expect(new Model(encoded).opsets.get('com.deepspeed')).to.equal(1);
  });

  it('says what is wrong with bytes that are no model', () => {
    for (const bytes of [
      new Uint8Array(),
      new TextEncoder().encode('this is a text file'),
      new Uint8Array(100).fill(0xff),
    ]) {
      expect(() => new Model(bytes)).to.throw(QkvGemmError, /Not a valid ONNX model/);
    }
  });

  it('reads tensors from raw and typed fields alike', () => {
    const raw = new Tensor(
      concat(encodeTensor('w', 1, [2], new Uint8Array(new Float32Array([1.5, -2]).buffer))),
      'w',
    );
    const typed = new MessageWriter().integer(1, 2).integer(2, 1).string(8, 'w');
    typed.bytes(4, new Uint8Array(new Float32Array([1.5, -2]).buffer));
    expect([...new Tensor(typed.finish(), 'w').bytes()]).to.deep.equal([...raw.bytes()]);
    const half = new MessageWriter()
      .integer(1, 2)
      .integer(2, 10)
      .string(8, 'h')
      .integer(5, 0x3c00)
      .integer(5, 0xc000)
      .finish();
    expect([...new Uint16Array(new Tensor(half, 'h').bytes().slice().buffer)]).to.deep.equal([
      0x3c00, 0xc000,
    ]);
  });

  it('refuses tensors whose bytes do not fit their shape, and negative dimensions', () => {
    const short = new Tensor(concat(encodeTensor('w', 1, [3], new Uint8Array(8))), 'w');
    expect(() => short.bytes()).to.throw(QkvGemmError, /12 bytes, but holds 8/);
    expect(() => new Tensor(concat(encodeTensor('w', 1, [-3], new Uint8Array(8))), 'w')).to.throw(
      QkvGemmError,
      /negative/,
    );
  });
});
