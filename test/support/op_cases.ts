/** Forms of the operator that the contract allows, by what they are about. */
import type { QkvGemmSpec } from '../../models/qkv_gemm.js';
import { DataType, dataTypeName } from '../../ts/onnx/tensor.js';

const { float, float16, bfloat16, int8 } = DataType;
export type Cases = Record<string, QkvGemmSpec>;

export const T = [float, float16, bfloat16];
export const NORMS = ['layer_norm', 'rms_norm', 'none'] as const;
/** Rows, K and N of most cases: more than one register tile and, with AVX-512's 32 columns, more than one panel. */
const dims = [2, 3, 40];
const n = 44;
const splits = [20, 12, 12];

/** Every input and output that goes with the norm. */
function full(norm: (typeof NORMS)[number], vector: number): Partial<QkvGemmSpec> {
  const gamma = norm === 'none' ? {} : { gamma: vector, emitNorm: true };
  return { norm, bias: vector, splits, ...gamma, ...(norm === 'layer_norm' ? { beta: vector } : {}) };
}

const perColumn = (weightType: number): Partial<QkvGemmSpec> =>
  weightType === int8 ? { weightType, scale: { shape: [n] } } : { weightType };

/** Every element type of input and weight, every norm; vectors in T and in float. */
function types(): Cases {
  const cases: Cases = {};
  for (const type of T)
    for (const weightType of [...T, int8])
      for (const norm of NORMS)
        for (const vector of new Set([type, float])) {
          const name = `${dataTypeName(type)} x ${dataTypeName(weightType)}, ${norm}, vectors ${dataTypeName(vector)}`;
          cases[name] = { dims, n, type, ...perColumn(weightType), ...full(norm, vector) };
        }
  return cases;
}

/** Every set of optional inputs. */
function optionalInputs(): Cases {
  const cases: Cases = { 'neither attributes nor optional inputs': { dims, n } };
  for (const norm of NORMS)
    for (let set = 0; set < 8; set++) {
      const present = (['gamma', 'beta', 'bias'] as const).filter((_, bit) => (set >> bit) & 1);
      if (norm === 'none' && present.some((name) => name !== 'bias')) continue;
      if (norm === 'rms_norm' && present.includes('beta')) continue;
      const inputs = Object.fromEntries(present.map((name) => [name, float]));
      cases[`${norm} with ${present.join(', ') || 'none of them'}`] = { dims, n, norm, ...inputs };
      cases[`${norm} with ${present.join(', ') || 'none of them'}, int8`] = {
        dims,
        n,
        norm,
        ...inputs,
        ...perColumn(int8),
      };
    }
  return cases;
}

/** Ranks 1 to 5, and dimensions of 0 and 1 anywhere. */
function shapes(): Cases {
  const cases: Cases = {};
  const all = [
    [40], [7, 40], [2, 3, 40], [2, 1, 3, 40], [2, 1, 2, 2, 40], [1], [3, 1],
    [0, 40], [2, 0, 40], [0, 0, 40], [3, 0], [2, 0, 0], [0],
  ]; // prettier-ignore
  for (const shape of all)
    for (const norm of NORMS)
      cases[`input [${shape.join(', ')}], ${norm}`] = { dims: shape, n, ...full(norm, float) };
  for (const shape of [
    [3, 40],
    [3, 0],
    [0, 40],
  ])
    // prettier-ignore
    for (const transposed of [false, true]) {
      const form = transposed ? ', transposed' : '';
      cases[`int8, input [${shape.join(', ')}]${form}`] = {
        dims: shape,
        ...perColumn(int8),
        n,
        bias: float,
        transposed,
      };
      cases[`N = 0, input [${shape.join(', ')}]${form}`] = { dims: shape, n: 0, bias: float, transposed };
      cases[`int8, N = 0, input [${shape.join(', ')}]${form}`] = {
        dims: shape,
        n: 0,
        weightType: int8,
        scale: { shape: [0] },
        transposed,
      };
    }
  cases['N = 1'] = { dims, n: 1, bias: float };
  // More rows than a tile, more depth than a pass of the micro-kernel, a last panel of odd width.
  for (const weightType of [...T, int8])
    cases[`many rows and columns, ${dataTypeName(weightType)}`] = {
      dims: [45, 300],
      n: 75,
      weightType,
      ...(weightType === int8 ? { scale: { shape: [3, 75], zeroPoint: true } } : {}),
      ...full('layer_norm', float),
      splits: [33, 1, 41],
      transposed: weightType !== float,
    };
  return cases;
}

/** How columns are spread over outputs, and which outputs are there. */
function outputs(): Cases {
  const cases: Cases = {};
  const widths: number[][] = [
    [44], [43, 1], [1, 43], [22, 22], [20, 12, 12], [11, 11, 11, 11], [0, 44], [44, 0], [20, 0, 24], Array<number>(44).fill(1),
  ]; // prettier-ignore
  for (const [i, each] of widths.entries())
    for (const emitNorm of [undefined, false, true]) {
      const name = each.length > 5 ? '44 of 1' : each.join(', ');
      cases[`splits ${name}; emit_norm ${emitNorm === undefined ? 'left out' : Number(emitNorm)}`] = {
        dims,
        n,
        splits: each,
        type: T[i % 3] ?? float,
        ...(emitNorm === undefined ? {} : { emitNorm }),
        gamma: float,
        bias: float,
      };
    }
  cases['norm without splits'] = { dims, n, emitNorm: true };
  cases['rms_norm and its norm'] = { dims, n, norm: 'rms_norm', gamma: float, emitNorm: true };
  cases['an unnamed norm'] = { dims, n, splits, emitNorm: true, unnamed: [1] };
  cases['an unnamed norm, alone'] = { dims, n, emitNorm: true, unnamed: [1] };
  cases['an unnamed split'] = { dims, n, splits, emitNorm: true, unnamed: [2] };
  cases['an unnamed last split'] = { dims, n, splits, unnamed: [3] };
  cases['the first split alone'] = { dims, n, splits, unnamed: [2, 3] };
  return cases;
}

/** Weights stored as [N, K], and operands that come as graph inputs. */
function placement(): Cases {
  const cases: Cases = {};
  for (const weightType of [...T, int8])
    for (const transposed of [false, true])
      for (const fed of [[], ['weight']] as const) {
        const name = `${dataTypeName(weightType)}, ${transposed ? '[N, K]' : '[K, N]'}, ${fed.length ? 'fed' : 'constant'}`;
        const gamma = { gamma: float, beta: float, bias: float, splits };
        cases[name] = { dims, n, transposed, fed, ...perColumn(weightType), ...gamma };
      }
  const quantised: QkvGemmSpec = {
    dims,
    n,
    gamma: float,
    beta: float,
    bias: float,
    weightType: int8,
    scale: { shape: [4, 44], zeroPoint: true },
  };
  cases['int8, scale fed'] = { ...quantised, fed: ['scale'] };
  cases['int8, zero_point fed'] = { ...quantised, fed: ['zero_point'] };
  cases['int8, weight, scale and zero_point fed'] = { ...quantised, fed: ['weight', 'scale', 'zero_point'] };
  cases['gamma, beta and bias fed'] = { ...quantised, fed: ['gamma', 'beta', 'bias'] };
  const every = ['weight', 'gamma', 'beta', 'bias', 'scale', 'zero_point'] as const;
  for (const type of T)
    cases[`all fed, ${dataTypeName(type)}`] = {
      ...quantised,
      type,
      gamma: type,
      beta: type,
      bias: type,
      fed: every,
    };
  return cases;
}

/** Scales: one, per group, per column, in blocks along K; with and without zero points; constant and fed. */
export function scales(): Cases {
  const cases: Cases = {};
  for (const shape of [[], [1], [2], [4], [11], [44], [1, 44], [2, 44], [5, 44], [40, 44]])
    for (const zeroPoint of [false, true])
      for (const type of [float, float16])
        for (const transposed of [false, true]) {
          const name = `scale ${dataTypeName(type)} [${shape.join(', ')}]${zeroPoint ? ', zero points' : ''}${transposed ? ', transposed' : ''}`;
          const activation = T[shape.length] ?? float;
          cases[name] = {
            dims,
            n,
            type: activation,
            weightType: int8,
            scale: { shape, type, zeroPoint },
            transposed,
            bias: float,
            ...(transposed ? { fed: ['weight', 'scale', 'zero_point'] as const } : {}),
          };
        }
  return cases;
}

function activationQuant(): Cases {
  const cases: Cases = {};
  for (const type of T)
    for (const norm of NORMS)
      for (const shape of [[44], [4], [5, 44]])
        for (const zeroPoint of [false, true]) {
          const name = `activation_quant ${dataTypeName(type)}, ${norm}, scale [${shape.join(', ')}]${zeroPoint ? ', zero points' : ''}`;
          cases[name] = {
            dims,
            n,
            type,
            weightType: int8,
            scale: { shape, zeroPoint },
            activationQuant: true,
            ...full(norm, float),
          };
        }
  return cases;
}

function epsilons(): Cases {
  const cases: Cases = {};
  for (const norm of ['layer_norm', 'rms_norm'] as const)
    for (const epsilon of [0, 1e-12, 1e-5, 0.1, 10])
      cases[`${norm}, epsilon ${epsilon}`] = { dims, n, norm, epsilon, gamma: float, emitNorm: true };
  return cases;
}

export const SECTIONS: Record<string, Cases> = {
  'element types': types(),
  'optional inputs': optionalInputs(),
  'shapes': shapes(),
  'outputs': outputs(),
  'operands constant, fed, transposed': placement(),
  'int8 scales': scales(),
  'activation_quant': activationQuant(),
  'epsilon': epsilons(),
}; // prettier-ignore
