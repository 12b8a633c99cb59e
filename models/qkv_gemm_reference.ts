/** The operator's contract (OPERATOR.md) in float64, and for each element how far a right result can be from it. */
import { DataType } from '../ts/onnx/tensor.js';
import { depthOf, outputNames, splitsOf, type Operands, type QkvGemmSpec } from './qkv_gemm.js';

export interface Expected {
  dims: number[];
  values: Float64Array;
  bounds: Float64Array;
}

/** Unit roundoff of float32, in which sums and statistics are kept. */
const U = 2 ** -24;

/** Half a unit in the last place, relative, and half the smallest subnormal. */
const ROUNDING: Record<number, { relative: number; smallest: number }> = {
  [DataType.float]: { relative: U, smallest: 2 ** -150 },
  [DataType.float16]: { relative: 2 ** -11, smallest: 2 ** -25 },
  [DataType.bfloat16]: { relative: 2 ** -8, smallest: 2 ** -134 },
};

/** How statistics are taken: from the deviations, or as E[x²] - E[x]², as ONNX Runtime's LayerNormalization does. */
export type Variance = 'deviations' | 'moments';

/**
 * What a kernel's products are of: floats; T; T, or TensorFloat32 where T is float; on CPUs with instructions for them,
 * int8 weights with rows in fixed point (`digits`), and also bfloat16 weights with rows rounded to bfloat16 where there
 * are more than `EXACT_ROWS` of them (`bfloat16`).
 */
export type Products = 'float32' | 'T' | 'TF32' | 'digits' | 'bfloat16';

/** Rows that are not rounded more than float32 is: kExactRows in ops/cpu/plan.h. */
const EXACT_ROWS = 4;

/** Half a step of fixed point, of a row's largest value, in three digits and in two: kExactDigits in ops/cpu/plan.h. */
const HALF_STEP = { exact: 0.5 / (127 * 65536), few: 0.5 / (127 * 256) };

/**
 * Outputs by name.
 *
 * The bounds are first-order worst cases (Higham, Accuracy and Stability of Numerical Algorithms, 3.1 and 4.2), whatever
 * the order of sums, with u = 2^-24, and each term's small constant rounded up:
 *
 * - A sum of K terms is off by K u times the sum of magnitudes. So the variance is off by (K + 4) u, relative, and the
 *   reciprocal deviation by half of that and 2 u of its own; the mean, taken from the deviations, by (K + 2) u times
 *   their mean magnitude; subtracting, scaling and gamma cost 3 u, beta one more. With n = (x - mean) / deviation and
 *   A the row's mean |n|, the normalised element v = n gamma + beta is off by at most
 *       e = u ((K + 8) (A + |n|) |gamma| + 2 |v|).
 *   `moments`: E[x²] - E[x]² is off by (K + 4) u E[x²], which adds (K + 4) u |n gamma| E[x²] / (variance + epsilon).
 * - With activation_quant, v becomes round(v / s) s, s = L / 127, L the row's largest |v|. Rounding removes e, unless
 *   v / s lies closer to a tie than the error that v / s has: then v may come out one step s away, and that is its error.
 *   s itself is off by e(L) / L + 2 u, relative.
 * - A product of K terms is off by K u times the sum of magnitudes, beside the errors of the terms: e |w|, and u |v w|
 *   for the product, u for a scale that multiplies w or the sum of its block. bias: one more u of the result.
 * - At last the result is rounded to T: u_T times its magnitude, or half the smallest subnormal.
 * - A kernel that multiplies in T (`products`) rounds one operand of each product to it, gamma in the weights or the
 *   normalised element: u_T times |n gamma w|, which is at most (|v| + |beta|) |w|. One that multiplies floats in
 *   TensorFloat32 rounds both, each by 2^-11. One that rounds the row to bfloat16 costs 2^-8 |v w|; one that has it in
 *   fixed point half a step |w|, and 3 u |v w| for scaling.
 *
 * For K = 40 the product's part is 3e-6 of the sum of magnitudes: far below any one term, which is what a test needs.
 */
export function reference(
  spec: QkvGemmSpec,
  operands: Operands,
  variance: Variance = 'deviations',
  products: Products = 'float32',
): Record<string, Expected> {
  const k = depthOf(spec);
  const { n } = spec;
  const input = operands.input;
  if (!input) throw new Error('no input');
  const lead = input.dims.slice(0, -1);
  const m = lead.reduce((product, dim) => product * dim, 1);
  const weights = dequantise(spec, operands);
  const rounding = ROUNDING[input.type];
  if (!rounding) throw new Error(`no rounding for element type ${input.type}`);

  const rowsRounded = roundsRows(spec, operands, products);
  const inBfloat16 = rowsRounded && operands.weight?.type === DataType.bfloat16 ? 2 ** -8 : 0;
  const fixedPoint =
    operands.weight?.type === DataType.int8 &&
    !spec.activationQuant &&
    (products === 'digits' || products === 'bfloat16');
  const operand =
    products === 'T' || (products === 'TF32' && input.type !== DataType.float)
      ? input.type === DataType.float
        ? 0
        : rounding.relative
      : products === 'TF32'
        ? 2 * 2 ** -11
        : 0;

  const empty = (width: number): Expected => ({
    dims: [...lead, width],
    values: new Float64Array(m * width),
    bounds: new Float64Array(m * width),
  });
  const set = (target: Expected, at: number, value: number, error: number): void => {
    target.values[at] = value;
    target.bounds[at] = error + rounding.relative * (Math.abs(value) + error) + rounding.smallest;
  };
  const splits = splitsOf(spec);
  const outputs = splits.map(empty);
  const norm = empty(k);
  for (let row = 0; row < m; row++) {
    const normalised = normalise(spec, operands, input.values.subarray(row * k, (row + 1) * k), variance);
    normalised.forEach(({ value, error }, i) => set(norm, row * k + i, value, error));
    const terms = spec.activationQuant ? quantise(normalised) : normalised;
    const largest = terms.reduce((most, { value }) => Math.max(most, Math.abs(value)), 0);
    const step = fixedPoint ? HALF_STEP[rowsRounded ? 'few' : 'exact'] * largest : 0;
    const scaling = inBfloat16 + (fixedPoint ? 3 * U : 0);
    let column = 0;
    outputs.forEach((output, s) => {
      const width = splits[s] ?? 0;
      for (let i = 0; i < width; i++, column++) {
        const bias = operands.bias?.values[column] ?? 0;
        let [sum, magnitude, carried] = [0, 0, 0];
        terms.forEach(({ value, error }, at) => {
          const weight = weights[at * n + column] ?? NaN;
          sum += value * weight;
          magnitude += Math.abs(value * weight);
          const rounded = operand * (Math.abs(value) + Math.abs(operands.beta?.values[at] ?? 0));
          carried += (error + rounded + step + scaling * Math.abs(value)) * Math.abs(weight);
        });
        const error = carried + (k + 4) * U * magnitude + U * Math.abs(sum + bias);
        set(output, row * width + i, sum + bias, error);
      }
    });
  }
  const all = [outputs[0], norm, ...outputs.slice(1)];
  const named = outputNames(spec).flatMap((name, slot) => (name === '' ? [] : [[name, all[slot]] as const]));
  return Object.fromEntries(named.map(([name, output]) => [name, output ?? empty(0)]));
}

/** Does a kernel with such products round normalised rows, to bfloat16 or to two digits? */
export function roundsRows(spec: QkvGemmSpec, operands: Operands, products: Products): boolean {
  const { input, weight } = operands;
  if (!input || !weight) return false;
  const rows = input.dims.slice(0, -1).reduce((product, dim) => product * dim, 1);
  if (rows <= EXACT_ROWS) return false;
  if (weight.type === DataType.bfloat16) return products === 'bfloat16';
  return (
    weight.type === DataType.int8 &&
    !spec.activationQuant &&
    (products === 'digits' || products === 'bfloat16')
  );
}

/** The weight that int8 stands for, [K, N]. */
function dequantise(spec: QkvGemmSpec, operands: Operands): Float64Array {
  const k = depthOf(spec);
  const { n } = spec;
  const { weight, scale, zero_point: zeroPoint } = operands;
  const blocks = scale?.dims.length === 2 ? (scale.dims[0] ?? 1) : 0;
  const groups = scale?.values.length ?? 1;
  return Float64Array.from({ length: k * n }, (_, at) => {
    const [row, column] = [Math.floor(at / n), at % n];
    const stored = weight?.values[spec.transposed ? column * k + row : at] ?? NaN;
    if (!scale) return stored;
    const i = blocks > 0 ? Math.floor(row / (k / blocks)) * n + column : Math.floor(column / (n / groups));
    return (stored - (zeroPoint?.values[i] ?? 0)) * (scale.values[i] ?? NaN);
  });
}

interface Term {
  value: number;
  error: number;
}

function normalise(spec: QkvGemmSpec, operands: Operands, row: Float32Array, variance: Variance): Term[] {
  const k = row.length;
  const { norm = 'layer_norm' } = spec;
  if (norm === 'none') return Array.from(row, (value) => ({ value, error: 0 }));
  // The attribute is a float32.
  const epsilon = Math.fround(spec.epsilon ?? 1e-5);
  const average = (values: Float64Array): number => values.reduce((sum, value) => sum + value, 0) / k;
  const exact = Float64Array.from(row);
  const mean = norm === 'layer_norm' ? average(exact) : 0;
  const deviations = exact.map((value) => value - mean);
  const radicand = average(deviations.map((value) => value * value)) + epsilon;
  const scaled = deviations.map((value) => (radicand === 0 ? 0 : value / Math.sqrt(radicand)));
  const typical = average(scaled.map(Math.abs));
  const moments = norm === 'layer_norm' && variance === 'moments';
  const cancelled = moments ? average(exact.map((value) => value * value)) / radicand : 0;
  return Array.from(scaled, (value, i) => {
    const gamma = operands.gamma?.values[i] ?? 1;
    const result = value * gamma + (operands.beta?.values[i] ?? 0);
    const statistics = (k + 8) * (typical + Math.abs(value)) + (k + 4) * cancelled * Math.abs(value);
    return { value: result, error: U * (statistics * Math.abs(gamma) + 2 * Math.abs(result)) };
  });
}

/** activation_quant: a row rounded to int8 and back. */
function quantise(row: readonly Term[]): Term[] {
  const largest = row.reduce((most, term) => (Math.abs(term.value) > Math.abs(most.value) ? term : most), {
    value: 0,
    error: 0,
  });
  if (largest.value === 0) return [...row];
  const step = Math.abs(largest.value) / 127;
  const stepError = largest.error / Math.abs(largest.value) + 2 * U;
  return row.map(({ value, error }) => {
    const steps = Math.abs(value) / step;
    const floor = Math.floor(steps);
    const rounded = steps - floor > 0.5 || (steps - floor === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
    const doubt = error / step + steps * (stepError + 2 * U);
    const tie = Math.abs(steps - floor - 0.5) <= doubt;
    return {
      value: Math.sign(value) * rounded * step,
      error: (tie ? step : 0) + rounded * step * stepError,
    };
  });
}

export interface Actual {
  dims: readonly number[];
  values: ArrayLike<number>;
}

/** What is wrong with the outputs, in words: names, shapes, elements out of bounds. Empty where all is right. */
export function mismatches(expected: Record<string, Expected>, actual: Record<string, Actual>): string[] {
  const names = [Object.keys(expected), Object.keys(actual)].map((list) => list.sort().join(', '));
  if (names[0] !== names[1]) return [`outputs are ${names[1]}, expected ${names[0]}`];
  return Object.entries(expected).flatMap(([name, { dims, values, bounds }]) => {
    const found = actual[name];
    if (String(found?.dims) !== String(dims))
      return [`${name} is [${String(found?.dims)}], expected [${dims.join(', ')}]`];
    if (found?.values.length !== values.length)
      return [`${name} has ${found?.values.length} elements, expected ${values.length}`];
    const result: string[] = [];
    values.forEach((value, i) => {
      const [got, bound] = [found.values[i] ?? NaN, bounds[i] ?? NaN];
      if (!(Math.abs(got - value) <= bound))
        result.push(`${name}[${i}] is ${got}, expected ${value} within ${bound}`);
    });
    return result;
  });
}
