/**
 * Norm + query, key and value projections with generated weights: as the stock graph (norm, MatMul, Add) and as one
 * `com.deepspeed.QKVGemm` node, for each weight type.
 */
import { DataType, elementSize } from '../ts/onnx/tensor.js';
import { quantizeInt8 } from '../ts/rewrite/weights/convert.js';
import { ModelBuilder, uniform } from './builder.js';
import { qkvGemmModel, roundTo, type Operand, type Operands, type QkvGemmSpec } from './qkv_gemm.js';

export type Norm = 'layer_norm' | 'rms_norm';

export interface BlockShape {
  name: string;
  norm: Norm;
  k: number;
  /** Columns of query, key and value. */
  splits: readonly [number, number, number];
  bias: boolean;
}

export interface Block extends BlockShape {
  /** Columns of all three. */
  n: number;
  /** In float32, all but the input; the weight is [k, n], query, key and value side by side. */
  operands: Operands & { weight: Operand };
}

export const EPSILON = 1e-5;
export const OUTPUTS = ['q', 'k', 'v'] as const;
export const weightTypes = ['fp32', 'fp16', 'bf16', 'int8'] as const;
export type BlockWeightType = (typeof weightTypes)[number];

const { float } = DataType;

export function makeBlock(shape: BlockShape): Block {
  const { k, splits, bias, norm } = shape;
  const n = splits.reduce((sum, columns) => sum + columns, 0);
  const vector = (values: Float32Array<ArrayBuffer>): Operand => ({
    type: float,
    dims: [values.length],
    values,
  });
  const weight = uniform(k * n, Math.sqrt(3 / k), 3); // outputs of about 1
  const operands = {
    weight: { type: float, dims: [k, n], values: weight },
    gamma: vector(uniform(k, 0.5, 1, 1)),
    ...(norm === 'layer_norm' ? { beta: vector(uniform(k, 0.2, 2)) } : {}),
    ...(bias ? { bias: vector(uniform(n, 0.5, 4)) } : {}),
  };
  return { ...shape, n, operands };
}

/** Adds one node that normalises over the last axis; `inputs` are its input, gamma and, for LayerNorm, beta. */
export function addNorm(model: ModelBuilder, norm: Norm, inputs: readonly string[], output: string): string {
  const opType = norm === 'layer_norm' ? 'LayerNormalization' : 'SimplifiedLayerNormalization';
  const attributes = { axis: { integer: -1 }, epsilon: { float: EPSILON } };
  return model.node(opType, inputs, [output], { attributes });
}

/** Adds the block's norm of `x`. */
export function normOf(model: ModelBuilder, { norm, operands }: Block): string {
  const vectors = (['gamma', 'beta'] as const).flatMap((name) => {
    const operand = operands[name];
    return operand ? [model.floats(name, operand.dims, operand.values)] : [];
  });
  return addNorm(model, norm, ['x', ...vectors], 'normalised');
}

/** Weight [k, columns] and bias of query, key or value alone. */
export function columnsOf(
  { k, n, splits, operands }: Block,
  which: number,
): { weight: Float32Array<ArrayBuffer>; bias: Float32Array<ArrayBuffer> | undefined } {
  const columns = splits[which] ?? 0;
  const start = splits.slice(0, which).reduce((sum, count) => sum + count, 0);
  const weight = new Float32Array(k * columns);
  for (let row = 0; row < k; row++) {
    const from = row * n + start;
    weight.set(operands.weight.values.subarray(from, from + columns), row * columns);
  }
  return { weight, bias: operands.bias?.values.slice(start, start + columns) };
}

/** The norm, then a MatMul and an Add each for query, key and value. */
export function stockModel(block: Block): Uint8Array {
  const { k, splits } = block;
  const model = blockModel(k, splits);
  const normalised = normOf(model, block);
  splits.forEach((columns, i) => {
    const output = OUTPUTS[i] as string;
    const { weight, bias } = columnsOf(block, i);
    const inputs = [normalised, model.floats(`w_${output}`, [k, columns], weight)];
    if (bias) {
      const product = model.node('MatMul', inputs, [`${output}_product`]);
      model.node('Add', [product, model.floats(`b_${output}`, [columns], bias)], [output]);
    } else {
      model.node('MatMul', inputs, [output]);
    }
  });
  return model.finish();
}

/** The block's operands with the weight as a type stores it. */
export function storedOperands({ k, n, operands }: Block, type: BlockWeightType): Block['operands'] {
  const { weight } = operands;
  if (type === 'int8') {
    const { data, scale } = quantizeInt8(weight.values, k, n, false);
    const values = new Float32Array(new Int8Array(data.buffer, data.byteOffset, data.byteLength));
    return {
      ...operands,
      weight: { type: DataType.int8, dims: weight.dims, values },
      scale: { type: float, dims: [n], values: new Float32Array(scale) },
    };
  }
  const dataType = { fp32: float, fp16: DataType.float16, bf16: DataType.bfloat16 }[type];
  return { ...operands, weight: { ...weight, type: dataType, values: roundTo(weight.values, dataType) } };
}

/** The operator that `rows` rows of the block take. */
export function blockSpec({ norm, k, n }: Pick<Block, 'norm' | 'k' | 'n'>, rows: number): QkvGemmSpec {
  return { dims: [rows, k], n, norm, epsilon: EPSILON };
}

/** One node with those operands; they have no input. */
export function fusedModel(block: Block, operands: Operands, spec: Partial<QkvGemmSpec> = {}): Uint8Array {
  const { k, splits } = block;
  const input = { type: float, dims: [0, k], values: new Float32Array() };
  const form = { inputDims: ['M', k], outputs: ['q', '', 'k', 'v'] };
  return qkvGemmModel({ ...blockSpec(block, 0), splits, ...spec }, { ...operands, input }, form).bytes;
}

/** Bytes of weights and scales that a call reads. */
export function weightBytes({ weight, scale }: Operands): number {
  const bytes = ({ type, values }: Operand): number => values.length * (elementSize(type) ?? NaN);
  return (weight ? bytes(weight) : 0) + (scale ? bytes(scale) : 0);
}

/** A model x -> q, k, v that hardly computes: what a call costs by itself. */
export function emptyModel({ k }: BlockShape): Uint8Array {
  const model = blockModel(k, [1, 1, 1]);
  const bounds = [model.integers('from', [1], [0]), model.integers('to', [1], [1])];
  const axis = model.integers('axis', [1], [1]);
  for (const output of OUTPUTS) model.node('Slice', ['x', ...bounds, axis], [output]);
  return model.finish();
}

/** A graph x [M, k] -> q, k, v, without its nodes. */
export function blockModel(
  k: number,
  splits: readonly number[],
  opsets: Record<string, number> = {},
): ModelBuilder {
  const model = new ModelBuilder(opsets);
  model.input('x', ['M', k]);
  OUTPUTS.forEach((name, i) => model.output(name, ['M', splits[i] ?? 0]));
  return model;
}
