/**
 * The bounds of test/support/reference.ts, proved by expectations that are wrong in one place: each must be told from
 * what the op computes, or a test that uses the bounds could pass where the op is wrong.
 */
import { expect } from 'chai';
import {
  depthOf,
  qkvGemmModel,
  randomOperands,
  roundTo,
  type InputName,
  type Operand,
  type Operands,
  type QkvGemmSpec,
} from '../models/qkv_gemm.js';
import { DataType, dataTypeName } from '../ts/onnx/tensor.js';
import { withQkvGemm } from '../ts/session/index.js';
import { NORMS, T } from './support/op_cases.js';
import { mismatches, reference, roundsRows, type Expected } from '../models/qkv_gemm_reference.js';
import { cpuProducts } from '../scripts/bench/rounding.js';
import { cpuReference } from './support/cpu_reference.js';
import { quiet } from './support/run.js';
import { runOp } from './support/run_op.js';

const { float, float16, int8 } = DataType;

/** What a wrong op would compute; undefined where the form has not what the mistake is about. */
type Mistake = (spec: QkvGemmSpec, operands: Operands) => Record<string, Expected> | undefined;

/** The same operands with other values in one of them. */
function change(operands: Operands, name: InputName, edit: (values: Float32Array) => void): Operands {
  const operand = operands[name] as Operand;
  const values = operand.values.slice();
  edit(values);
  return { ...operands, [name]: { ...operand, values } };
}

function exchange(values: Float32Array, a: number, b: number): void {
  [values[a], values[b]] = [values[b] ?? NaN, values[a] ?? NaN];
}

/** Two neighbours of a vector exchanged. */
const exchanged =
  (name: InputName, first = 3): Mistake =>
  (spec, operands) =>
    (operands[name]?.values.length ?? 0) > first + 1
      ? cpuReference(
          spec,
          change(operands, name, (values) => exchange(values, first, first + 1)),
        )
      : undefined;

/** An optional input left out. */
const leftOut =
  (name: InputName): Mistake =>
  (spec, operands) =>
    operands[name] ? cpuReference(spec, { ...operands, [name]: undefined }) : undefined;

/** Index of weight [row, column] in its operand. */
function place(spec: QkvGemmSpec, row: number, column: number): number {
  return spec.transposed ? column * depthOf(spec) + row : row * spec.n + column;
}

const mistakes: Record<string, Mistake> = {
  'one weight taken from its neighbour': (spec, operands) =>
    cpuReference(
      spec,
      change(operands, 'weight', (values) => {
        values[place(spec, 7, 13)] = values[place(spec, 8, 13)] ?? NaN;
      }),
    ),
  'two columns exchanged': (spec, operands) => {
    let wrong = operands;
    for (const name of ['weight', 'bias'] as const)
      wrong = change(wrong, name, (values) => {
        const rows = name === 'weight' ? depthOf(spec) : 1;
        for (let row = 0; row < rows; row++) {
          const at = (column: number): number => (name === 'weight' ? place(spec, row, column) : column);
          exchange(values, at(31), at(32));
        }
      });
    return cpuReference(spec, wrong);
  },
  'two rows of the input exchanged': (spec, operands) =>
    cpuReference(
      spec,
      change(operands, 'input', (values) => {
        for (let i = 0; i < depthOf(spec); i++) exchange(values, i, depthOf(spec) + i);
      }),
    ),
  'weight read as if it were transposed': (spec, operands) =>
    cpuReference({ ...spec, transposed: !spec.transposed }, operands),
  'two elements of gamma exchanged': exchanged('gamma'),
  'two elements of beta exchanged': exchanged('beta'),
  'two elements of bias exchanged': exchanged('bias'),
  'gamma left out': leftOut('gamma'),
  'beta left out': leftOut('beta'),
  'bias left out': leftOut('bias'),
  'zero points left out': leftOut('zero_point'),
  'two scales exchanged': exchanged('scale', 0),
  'two zero points exchanged': exchanged('zero_point', 0),
  // Column N/G - 1 with the scale of the second group, row B - 1 with that of the second block.
  'the second group begins one column early': (spec, operands) => {
    const groups = operands.scale?.dims[0] ?? 1;
    if (operands.scale?.dims.length !== 1 || groups < 2) return undefined;
    const column = spec.n / groups - 1;
    const rows = Array.from({ length: depthOf(spec) }, (_, row) => place(spec, row, column));
    return cpuReference(spec, change(operands, 'weight', rescale(operands, rows, [0, 1])));
  },
  'the second block begins one row early': (spec, operands) => {
    const blocks = operands.scale?.dims[0] ?? 1;
    if (operands.scale?.dims.length !== 2 || blocks < 2) return undefined;
    const row = depthOf(spec) / blocks - 1;
    return cpuReference(
      spec,
      change(operands, 'weight', rescale(operands, [place(spec, row, 5)], [5, spec.n + 5])),
    );
  },
  'epsilon a tenth larger': (spec, operands) =>
    spec.norm === 'none'
      ? undefined
      : cpuReference({ ...spec, epsilon: (spec.epsilon ?? 0) * 1.1 }, operands),
  'the sample variance': (spec, operands) =>
    spec.norm === 'layer_norm'
      ? cpuReference(
          // ((K / (K - 1)) variance + epsilon) is what a gamma times sqrt((K - 1) / K) and a smaller epsilon give.
          { ...spec, epsilon: ((spec.epsilon ?? 0) * (depthOf(spec) - 1)) / depthOf(spec) },
          change(operands, 'gamma', (values) => {
            const factor = Math.sqrt((depthOf(spec) - 1) / depthOf(spec));
            values.forEach((value, i) => (values[i] = value * factor));
          }),
        )
      : undefined,
  'the mean left in': (spec, operands) =>
    spec.norm === 'layer_norm' ? cpuReference({ ...spec, norm: 'rms_norm' }, operands) : undefined,
  // In float: the bounds of rows in bfloat16 are as wide as the steps of rows in int8.
  'rows not quantised, or quantised': (spec, operands) =>
    operands.scale ? reference({ ...spec, activationQuant: !spec.activationQuant }, operands) : undefined,
  'a second rounding, of the normalised rows': (spec, operands) => {
    const right = cpuReference(spec, operands);
    const { input } = operands;
    if (!input || input.type === float || !right.norm) return undefined;
    // Where rows are rounded already, another rounding may be lost in it.
    if (roundsRows(spec, operands, cpuProducts())) return undefined;
    const rounded = roundTo(new Float32Array(right.norm.values), input.type);
    const plain: QkvGemmSpec = { ...spec, norm: 'none', emitNorm: false };
    return { ...right, ...cpuReference(plain, { ...operands, input: { ...input, values: rounded } }) };
  },
};

/** Stored weights at `places` that give with scale `from` what the right ones give with scale `to`. */
function rescale(
  { scale, zero_point: zeroPoint }: Operands,
  places: readonly number[],
  [from, to]: readonly [number, number],
): (values: Float32Array) => void {
  const [s0 = NaN, s1 = NaN] = [scale?.values[from], scale?.values[to]];
  const [z0, z1] = [zeroPoint?.values[from] ?? 0, zeroPoint?.values[to] ?? 0];
  return (values) => {
    for (const at of places) values[at] = (((values[at] ?? NaN) - z1) * s1) / s0 + z0;
  };
}

/** K = N, so that a transposed weight has the same shape. */
function forms(): Record<string, QkvGemmSpec> {
  const result: Record<string, QkvGemmSpec> = {};
  const common = { dims: [8, 40], n: 40, splits: [16, 12, 12], epsilon: 0.1, bias: float };
  const weights: Record<string, Partial<QkvGemmSpec>> = {};
  for (const type of T) weights[dataTypeName(type)] = { weightType: type };
  for (const shape of [[2], [40], [5, 40]])
    weights[`int8, scale [${shape.join(', ')}]`] = { scale: { shape, zeroPoint: true } };
  weights['int8 activations'] = { activationQuant: true, scale: { shape: [40], type: float16 } };
  for (const type of T)
    for (const norm of NORMS)
      for (const [name, weight] of Object.entries(weights)) {
        const gamma = norm === 'none' ? {} : { gamma: type, emitNorm: true };
        result[`${dataTypeName(type)}, ${norm}, ${name}`] = {
          ...common,
          type,
          norm,
          ...gamma,
          ...(norm === 'layer_norm' ? { beta: type } : {}),
          ...(weight.scale ? { weightType: int8 } : {}),
          ...weight,
        };
      }
  return result;
}

describe('tolerances', () => {
  for (const [name, spec] of Object.entries(forms())) {
    it(`tell every mistake: ${name}`, async () => {
      const operands = randomOperands(spec);
      const actual = await runOp(qkvGemmModel(spec, operands), withQkvGemm(quiet));
      expect(mismatches(cpuReference(spec, operands), actual)).to.deep.equal([]);
      const missed: string[] = [];
      for (const [mistake, make] of Object.entries(mistakes)) {
        const wrong = make(spec, operands);
        if (wrong && mismatches(wrong, actual).length === 0) missed.push(mistake);
      }
      expect(missed).to.deep.equal([]);
    });
  }

  it('are tried with every mistake', () => {
    const specs = Object.values(forms());
    const never = Object.entries(mistakes).filter(
      ([, make]) => !specs.some((spec) => make(spec, randomOperands(spec)) !== undefined),
    );
    expect(never.map(([mistake]) => mistake)).to.deep.equal([]);
  });
});
