/** Nodes that break the contract, and what the op says of each after its name and the node's. */
import { type ModelSettings, type Operand, type Operands, type QkvGemmSpec } from '../../models/qkv_gemm.js';
import { DataType } from '../../ts/onnx/tensor.js';
import type { AttributeValue } from '../../ts/onnx/node.js';

const { float, float16, bfloat16, int8, int32, double } = DataType;

export const floatForm: QkvGemmSpec = { dims: [2, 3, 8], n: 12, gamma: float, beta: float, bias: float };
export const int8Form: QkvGemmSpec = {
  ...floatForm,
  weightType: int8,
  scale: { shape: [12], zeroPoint: true },
};
const plain: QkvGemmSpec = { dims: [2, 3, 8], n: 12, norm: 'none' };

/** A tensor of ones. */
export function ones(type: number, ...dims: number[]): Operand {
  const count = dims.reduce((product, dim) => product * dim, 1);
  return { type, dims, values: new Float32Array(count).fill(1) };
}

export interface Mistake {
  spec?: QkvGemmSpec;
  /** In place of the right operands; undefined: left out. */
  operands?: Operands;
  settings?: ModelSettings;
  /** The message after op and node. */
  message: string;
}

const attribute = (
  name: string,
  value: AttributeValue,
  ...outputs: string[]
): { settings: ModelSettings } => ({
  settings: { attributes: { [name]: value }, ...(outputs.length > 0 ? { outputs } : {}) },
});

const ANOTHER_TYPE = "found something else: Attribute name and type don't match";

/** Found when the session is created. */
export const attributes: Record<string, Mistake> = {
  'norm_type unknown': {
    ...attribute('norm_type', { string: 'batch_norm' }),
    message: "attribute 'norm_type': expected 'layer_norm', 'rms_norm' or 'none', found 'batch_norm'",
  },
  'norm_type an int': {
    ...attribute('norm_type', { integer: 1 }),
    message: `attribute 'norm_type': expected a string, ${ANOTHER_TYPE}`,
  },
  'epsilon negative': {
    ...attribute('epsilon', { float: -1 }),
    message: "attribute 'epsilon': expected a finite number >= 0, found -1.000000",
  },
  'epsilon not a number': {
    ...attribute('epsilon', { float: NaN }),
    message: "attribute 'epsilon': expected a finite number >= 0, found nan",
  },
  'epsilon infinite': {
    ...attribute('epsilon', { float: Infinity }),
    message: "attribute 'epsilon': expected a finite number >= 0, found inf",
  },
  'epsilon an int': {
    ...attribute('epsilon', { integer: 0 }),
    message: `attribute 'epsilon': expected a float, ${ANOTHER_TYPE}`,
  },
  ...Object.fromEntries(
    ['transposed', 'emit_norm', 'activation_quant'].flatMap((name) => [
      [
        `${name} 2`,
        { ...attribute(name, { integer: 2 }), message: `attribute '${name}': expected 0 or 1, found 2` },
      ],
      [
        `${name} -1`,
        { ...attribute(name, { integer: -1 }), message: `attribute '${name}': expected 0 or 1, found -1` },
      ],
      [
        `${name} a float`,
        {
          ...attribute(name, { float: 1 }),
          message: `attribute '${name}': expected an int, ${ANOTHER_TYPE}`,
        },
      ],
    ]),
  ),
  ...Object.fromEntries(
    ([{ float: 12 }, { string: '12' }, { integer: 12 }, { integers: [] }] as const).map((value) => [
      `splits ${JSON.stringify(value)}`,
      {
        ...attribute('splits', value),
        message: "attribute 'splits': expected ints, at least one, found none or another type",
      },
    ]),
  ),
  'a negative split': {
    ...attribute('splits', { integers: [13, -1] }, 'y', '', 'y2'),
    message: "attribute 'splits': expected widths >= 0, found -1 at index 1",
  },
  'emit_norm without a norm': {
    spec: plain,
    ...attribute('emit_norm', { integer: 1 }, 'y', 'norm'),
    message:
      "attribute 'emit_norm': expected 0 with norm_type 'none', which has no normalised input to emit, found 1",
  },
  'norm without emit_norm': {
    settings: { outputs: ['y', 'norm'] },
    message: "output 1 'norm': expected no name unless attribute 'emit_norm' is 1, found 'norm'",
  },
  'an output beyond the norm': {
    settings: { outputs: ['y', '', 'y2'] },
    message: "expected at most 2 outputs, as attributes 'splits' and 'emit_norm' say, found 3",
  },
  'an output beyond the splits': {
    ...attribute('splits', { integers: [6, 6] }, 'y', '', 'y2', 'y3'),
    message: "expected at most 3 outputs, as attributes 'splits' and 'emit_norm' say, found 4",
  },
};

/** Found when the session is created where weight, scale and zero_point are constant, else when it runs. */
export const weights: Record<string, Mistake> = {
  'splits that sum to another N': {
    ...attribute('splits', { integers: [6, 5] }, 'y', '', 'y2'),
    message: "attribute 'splits': expected widths that sum to N = 12, found [6, 5], sum 11",
  },
  'activation_quant of float weights': {
    ...attribute('activation_quant', { integer: 1 }),
    message: "attribute 'activation_quant': expected 0 unless weight is int8, found 1 with weight float",
  },
  'weight of rank 1': {
    operands: { weight: ones(float, 8) },
    message: "input 1 'weight': expected 2 dimensions [K, N], found [8]",
  },
  'weight of rank 3, transposed': {
    spec: { ...floatForm, transposed: true },
    operands: { weight: ones(float, 1, 12, 8) },
    message: "input 1 'weight': expected 2 dimensions [N, K], found [1, 12, 8]",
  },
  'weight double': {
    operands: { weight: ones(double, 8, 12) },
    message: "input 1 'weight': expected float, float16, bfloat16 or int8, found double",
  },
  'weight int32': {
    operands: { weight: ones(int32, 8, 12) },
    message: "input 1 'weight': expected float, float16, bfloat16 or int8, found int32",
  },
  'int8 without scale': {
    spec: int8Form,
    operands: { scale: undefined, zero_point: undefined },
    message: "input 5 'scale': expected a tensor: int8 weights need one, found nothing",
  },
  'scale of float weights': {
    operands: { scale: ones(float, 12) },
    message: "input 5 'scale': expected nothing: only int8 weights are scaled, weight is float, found float [12]",
  },
  'zero_point of float weights': {
    operands: { zero_point: ones(int8, 12) },
    message: "input 6 'zero_point': expected nothing: weight is float, not int8, found int8 [12]",
  },
  ...Object.fromEntries(
    ([[bfloat16, 'bfloat16'], [double, 'double'], [int8, 'int8']] as const).map(([type, name]) => [
      `scale ${name}`,
      {
        spec: int8Form,
        operands: { scale: ones(type, 12) },
        message: `input 5 'scale': expected float or float16, found ${name}`,
      },
    ]),
  ),
  ...Object.fromEntries(
    [[5], [0], [13], [1, 1, 12]].map((dims) => [
      `scale [${dims.join(', ')}]`,
      {
        spec: int8Form,
        operands: { scale: ones(float, ...dims), zero_point: undefined },
        message: `input 5 'scale': expected [G] with G dividing N = 12, or [K/B, N], found [${dims.join(', ')}]`,
      },
    ]),
  ),
  ...Object.fromEntries(
    [[3, 12], [2, 6], [0, 12], [16, 12]].map((dims) => [
      `scale [${dims.join(', ')}]`,
      {
        spec: int8Form,
        operands: { scale: ones(float, ...dims), zero_point: undefined },
        message: `input 5 'scale': expected [K/B, N] with a whole block length B and K = 8, N = 12, found [${dims.join(', ')}]`,
      },
    ]),
  ),
  'zero_point int32': {
    spec: int8Form,
    operands: { zero_point: ones(int32, 12) },
    message: "input 6 'zero_point': expected int8, found int32",
  },
  'zero_point of another shape than scale': {
    spec: int8Form,
    operands: { zero_point: ones(int8, 1) },
    message: "input 6 'zero_point': expected the shape of scale, [12], found [1]",
  },
}; // prettier-ignore

/** Found when the session runs. */
export const inputs: Record<string, Mistake> = {
  'another K': {
    operands: { input: ones(float, 2, 3, 9) },
    message: "input 0 'input': expected last dimension K = 8, as weight [8, 12] has it, found [2, 3, 9]",
  },
  'another K, transposed': {
    spec: { ...floatForm, transposed: true },
    operands: { input: ones(float, 2, 3, 12) },
    message:
      "input 0 'input': expected last dimension K = 8, as weight [12, 8] (transposed) has it, found [2, 3, 12]",
  },
  'a scalar': {
    operands: { input: ones(float) },
    message: "input 0 'input': expected at least 1 dimension [..., K], found a scalar",
  },
  'input int32': {
    operands: { input: ones(int32, 2, 3, 8) },
    message: "input 0 'input': expected float, float16 or bfloat16, found int32",
  },
  'input double': {
    operands: { input: ones(double, 2, 3, 8) },
    message: "input 0 'input': expected float, float16 or bfloat16, found double",
  },
  'gamma too short': {
    operands: { gamma: ones(float, 7) },
    message: "input 2 'gamma': expected shape [K] = [8], found [7]",
  },
  'gamma of rank 2': {
    operands: { gamma: ones(float, 1, 8) },
    message: "input 2 'gamma': expected shape [K] = [8], found [1, 8]",
  },
  'beta a scalar': {
    operands: { beta: ones(float) },
    message: "input 3 'beta': expected shape [K] = [8], found []",
  },
  'bias of length K': {
    operands: { bias: ones(float, 8) },
    message: "input 4 'bias': expected shape [N] = [12], found [8]",
  },
  'gamma float16 with float': {
    operands: { gamma: ones(float16, 8) },
    message: "input 2 'gamma': expected float, found float16",
  },
  'beta bfloat16 with float16': {
    spec: { ...floatForm, type: float16 },
    operands: { beta: ones(bfloat16, 8) },
    message: "input 3 'beta': expected float16 (as input) or float, found bfloat16",
  },
  'bias int32': {
    operands: { bias: ones(int32, 12) },
    message: "input 4 'bias': expected float, found int32",
  },
  'gamma without a norm': {
    spec: plain,
    operands: { gamma: ones(float, 8) },
    message: "input 2 'gamma': expected nothing with norm_type 'none', found float [8]",
  },
  'beta without a norm': {
    spec: plain,
    operands: { beta: ones(float, 8) },
    message: "input 3 'beta': expected nothing unless norm_type is 'layer_norm', found float [8]",
  },
  'beta of rms_norm': {
    spec: { ...floatForm, norm: 'rms_norm' },
    message: "input 3 'beta': expected nothing unless norm_type is 'layer_norm', found float [8]",
  },
};
