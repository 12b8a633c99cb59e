import { expect } from 'chai';
import { Tensor } from 'onnxruntime-node';
import { float16Bits } from '../ts/rewrite/weights/convert.js';
import { compareTensors, HISTOGRAM_FROM, indexOf, type Bounds } from '../ts/verify/difference.js';

const floats = (values: number[], dims = [values.length]): Tensor =>
  new Tensor('float32', Float32Array.from(values), dims);

describe('the difference of two values', () => {
  it('has the numbers that the formulas give', () => {
    const d = compareTensors('y', floats([1, -2, 4, 0], [2, 2]), floats([1, -2.5, 4, 0.25], [2, 2]), {});
    expect(d.maxAbs).to.equal(0.5);
    expect(d.maxError).to.equal(0.125);
    expect(d.maxRel).to.equal(0.25); // 0.25 from 0 has none
    expect(d.rms).to.be.closeTo(Math.sqrt((0.25 + 0.0625) / 4), 1e-12);
    expect(d.sqnrDb).to.be.closeTo(10 * Math.log10(21 / 0.3125), 1e-9);
    expect(d.cosine).to.be.closeTo(22 / Math.sqrt(21 * (1 + 6.25 + 16 + 0.0625)), 1e-12);
    expect(d.worst).to.deep.equal({ index: [0, 1], a: -2, b: -2.5 });
    expect(d.first).to.deep.equal(d.worst);
    expect([d.beyond, d.elements, d.within]).to.deep.equal([2, 4, false]);
  });

  it('equal values are exact, zeros included', () => {
    const d = compareTensors('y', floats([0, -0, 3]), floats([-0, 0, 3]), { maxError: 0 });
    expect(d).to.include({
      within: true,
      maxAbs: 0,
      maxRel: 0,
      maxError: 0,
      rms: 0,
      sqnrDb: Infinity,
      beyond: 0,
    });
    expect(d.cosine).to.equal(1);
    expect(d.histogram[0]).to.equal(3);
    expect(d).not.to.have.any.keys('first', 'worst');
    const zeros = compareTensors('y', floats([0, 0]), floats([0, 1e-3]), { maxError: 1e-2 });
    expect(zeros.maxError).to.be.closeTo(1e-3, 1e-9);
    expect(zeros.cosine).to.equal(0);
  });

  it('the histogram counts by decades of the largest element', () => {
    const a = [1, 1, 1, 1, 1, 1];
    const b = [1, 1 + 1e-12, 1 + 2e-9, 1.005, 1.5, 3];
    const tensor = (values: number[]): Tensor => new Tensor('float64', Float64Array.from(values), [6]);
    const { histogram } = compareTensors('y', tensor(a), tensor(b), {});
    const bin = (exponent: number): number => exponent - HISTOGRAM_FROM + 2;
    const expected = new Array<number>(13).fill(0);
    for (const at of [0, 1, bin(-9), bin(-3), bin(-1), 12]) expected[at] = 1;
    expect(histogram).to.deep.equal(expected);
  });

  it('bounds: of the largest element, or as numpy, or both', () => {
    const [a, b] = [floats([100, 1]), floats([100.4, 1.4])];
    const within = (bounds: Bounds): boolean => compareTensors('y', a, b, bounds).within;
    expect(within({ maxError: 5e-3 })).to.equal(true);
    expect(within({ maxError: 3e-3 })).to.equal(false);
    expect(within({ rtol: 5e-3 })).to.equal(false);
    expect(within({ atol: 0.41 })).to.equal(true);
    expect(within({ atol: 0.395, rtol: 1e-2 })).to.equal(true);
    expect(within({ maxError: 5e-3, rtol: 5e-3 })).to.equal(false);
    expect(within({ maxError: 3e-3, atol: 1 })).to.equal(false);
    expect(compareTensors('y', a, b, { rtol: 5e-3 }).first?.index).to.deep.equal([1]);
  });

  it('NaN and Inf are the same as themselves only, and are counted', () => {
    const a = floats([NaN, Infinity, -Infinity, NaN, 1, Infinity]);
    const same = compareTensors('y', a, a, { maxError: 0 });
    expect(same).to.include({ within: true, maxAbs: 0 });
    expect(same.notFinite).to.deep.equal({ a: 5, b: 5, different: 0 });
    const b = floats([NaN, Infinity, Infinity, 1, NaN, 2]);
    const d = compareTensors('y', a, b, { maxError: 1e9, atol: 1e9, rtol: 1e9 });
    expect(d.within).to.equal(false);
    expect(d.maxAbs).to.equal(Infinity);
    expect(d.notFinite).to.deep.equal({ a: 5, b: 4, different: 4 });
    expect(d.beyond).to.equal(4);
    expect(d.first).to.deep.equal({ index: [2], a: '-Infinity', b: 'Infinity' });
  });

  it('float16 is compared by value, also with float32', () => {
    const half = (values: number[]): Tensor =>
      new Tensor('float16', Uint16Array.from(values, float16Bits), [values.length]);
    expect(compareTensors('y', half([1, 2]), half([1, 2.5]), {}).maxAbs).to.equal(0.5);
    expect(compareTensors('y', half([1, NaN]), half([1, NaN]), { maxError: 0 }).within).to.equal(true);
    const mixed = compareTensors('y', floats([1, 2]), half([1, 2]), { maxError: 0 });
    expect(mixed.within).to.equal(true);
    expect(mixed.types).to.deep.equal({ a: 'float32', b: 'float16' });
  });

  it('integers must be equal unless atol or rtol allows more; 64 bits are exact', () => {
    const longs = (...values: bigint[]): Tensor =>
      new Tensor('int64', BigInt64Array.from(values), [values.length]);
    const [a, b] = [longs(5n, 2n ** 53n), longs(5n, 2n ** 53n + 1n)];
    expect(compareTensors('y', a, b, { maxError: 0.5 })).to.include({ within: false, maxAbs: 1, beyond: 1 });
    expect(compareTensors('y', a, b, { maxError: 0.5 }).first).to.deep.equal({
      index: [1],
      a: '9007199254740992',
      b: '9007199254740993',
    });
    expect(compareTensors('y', a, b, { atol: 1 }).within).to.equal(true);
    const bytes = (...values: number[]): Tensor =>
      new Tensor('uint8', Uint8Array.from(values), [values.length]);
    expect(compareTensors('y', bytes(200), bytes(201), { maxError: 0.1 }).within).to.equal(false);
    expect(compareTensors('y', bytes(200), bytes(201), { rtol: 0.01 }).within).to.equal(true);
  });

  it('bools and strings must be equal', () => {
    const bools = (...values: number[]): Tensor =>
      new Tensor('bool', Uint8Array.from(values), [values.length]);
    expect(compareTensors('y', bools(1, 0), bools(1, 0), {}).within).to.equal(true);
    expect(compareTensors('y', bools(1, 0), bools(1, 1), { maxError: 10 })).to.include({
      within: false,
      maxAbs: 1,
    });
    const strings = (...values: string[]): Tensor => new Tensor('string', values, [values.length]);
    expect(compareTensors('y', strings('a', 'b'), strings('a', 'b'), {}).within).to.equal(true);
    const d = compareTensors('y', strings('a', 'b'), strings('a', 'c'), { atol: 9 });
    expect(d.within).to.equal(false);
    expect(d.first).to.deep.equal({ index: [1], a: 'b', b: 'c' });
  });

  it('other shapes, and values that are not there, are beyond every bound', () => {
    const shapes = compareTensors('y', floats([1, 2], [1, 2]), floats([1, 2], [2, 1]), { maxError: 1e9 });
    expect(shapes).to.include({ within: false, problem: 'the shapes differ: [1, 2] and [2, 1]' });
    const missing = compareTensors('y', floats([1]), undefined, { maxError: 1e9 });
    expect(missing).to.include({ within: false, problem: 'there is no such value in B', maxAbs: Infinity });
    const empty = compareTensors('y', floats([], [0, 4]), floats([], [0, 4]), { maxError: 0 });
    expect(empty).to.include({ within: true, elements: 0, maxAbs: 0, cosine: 1 });
  });

  it('positions become indices', () => {
    expect([0, 1, 4, 23].map((i) => indexOf(i, [2, 3, 4]))).to.deep.equal([
      [0, 0, 0],
      [0, 0, 1],
      [0, 1, 0],
      [1, 2, 3],
    ]);
    expect(indexOf(0, [])).to.deep.equal([]);
  });
});
