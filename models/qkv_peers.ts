/**
 * A block in float16, and as ONNX Runtime's own operators multiply 8-bit weights: MatMulNBits with a scale for each 64 rows of a column, and
 * DynamicQuantizeMatMul, which rounds rows to uint8 when it runs, with a scale for each column.
 *
 * Source: onnxruntime/docs/ContribOperators.md, com.microsoft.
 */
import { DataType } from '../ts/onnx/tensor.js';
import { fromFloat32, quantizeInt8 } from '../ts/rewrite/weights/convert.js';
import type { ModelBuilder } from './builder.js';
import { addNorm, blockModel, columnsOf, normOf, OUTPUTS, type Block } from './qkv_block.js';

const domain = 'com.microsoft';
const opsets = { [domain]: 1 };
/** Rows of a column that share a scale. */
const NBITS_BLOCK = 64;
/** Rows are rounded to int8 in blocks as weights are: the fastest that MatMulNBits has. */
const ACCURACY_LEVEL = 4;

/** @throws Error where K is no multiple of 64. */
export function nbitsModel(block: Block): Uint8Array {
  const { k } = block;
  if (k % NBITS_BLOCK !== 0) throw new Error(`K is ${k}, expected a multiple of ${NBITS_BLOCK}`);
  const blocks = k / NBITS_BLOCK;
  return projected(block, (model, x, name, columns, weight, bias) => {
    const data = new Uint8Array(columns * k);
    const scales = new Float32Array(columns * blocks);
    for (let column = 0; column < columns; column++)
      for (let b = 0; b < blocks; b++) {
        let largest = 0;
        for (let i = 0; i < NBITS_BLOCK; i++)
          largest = Math.max(largest, Math.abs(weight[(b * NBITS_BLOCK + i) * columns + column] ?? NaN));
        const scale = largest / 127;
        scales[column * blocks + b] = scale;
        for (let i = 0; i < NBITS_BLOCK; i++) {
          const row = b * NBITS_BLOCK + i;
          data[column * k + row] = 128 + Math.round((weight[row * columns + column] ?? NaN) / scale);
        }
      }
    const inputs = [
      x,
      model.tensor(`w_${name}`, DataType.uint8, [columns, blocks, NBITS_BLOCK], data),
      model.floats(`s_${name}`, [columns, blocks], scales),
      ...(bias ? ['', '', model.floats(`b_${name}`, [columns], bias)] : []),
    ];
    const numbers = { K: k, N: columns, bits: 8, block_size: NBITS_BLOCK, accuracy_level: ACCURACY_LEVEL };
    const attributes = Object.fromEntries(
      Object.entries(numbers).map(([key, integer]) => [key, { integer }]),
    );
    model.node('MatMulNBits', inputs, [name], { domain, attributes });
  });
}

export function dynamicModel(block: Block): Uint8Array {
  return projected(block, (model, x, name, columns, weight, bias) => {
    const { data, scale } = quantizeInt8(weight, block.k, columns, false);
    const inputs = [
      x,
      model.tensor(`w_${name}`, DataType.int8, [block.k, columns], data),
      model.floats(`s_${name}`, [columns], scale),
      ...(bias ? ['', model.floats(`b_${name}`, [columns], bias)] : []),
    ];
    model.node('DynamicQuantizeMatMul', inputs, [name], { domain });
  });
}

type Project = (
  model: ModelBuilder,
  x: string,
  name: string,
  columns: number,
  weight: Float32Array<ArrayBuffer>,
  bias: Float32Array<ArrayBuffer> | undefined,
) => void;

/** The stock graph in float16 throughout, between casts of its input and outputs. */
export function halfModel(block: Block): Uint8Array {
  const { float16, float } = DataType;
  const model = blockModel(block.k, block.splits);
  const cast = (from: string, to: number, output: string): string =>
    model.node('Cast', [from], [output], { attributes: { to: { integer: to } } });
  const half = (name: string, dims: readonly number[], values: Float32Array<ArrayBuffer>): string =>
    model.tensor(name, float16, dims, fromFloat32(values, float16));
  const { gamma, beta } = block.operands;
  const vectors = Object.entries({ gamma, beta }).flatMap(([name, operand]) =>
    operand ? [half(name, operand.dims, operand.values)] : [],
  );
  const normalised = addNorm(model, block.norm, [cast('x', float16, 'x_half'), ...vectors], 'normalised');
  block.splits.forEach((columns, i) => {
    const name = OUTPUTS[i] as string;
    const { weight, bias } = columnsOf(block, i);
    let y = model.node('MatMul', [normalised, half(`w_${name}`, [block.k, columns], weight)], [`${name}_0`]);
    if (bias) y = model.node('Add', [y, half(`b_${name}`, [columns], bias)], [`${name}_1`]);
    cast(y, float, name);
  });
  return model.finish();
}

/** The norm, then what `project` adds for query, key and value. */
function projected(block: Block, project: Project): Uint8Array {
  const model = blockModel(block.k, block.splits, opsets);
  const x = normOf(model, block);
  block.splits.forEach((columns, i) => {
    const { weight, bias } = columnsOf(block, i);
    project(model, x, OUTPUTS[i] as string, columns, weight, bias);
  });
  return model.finish();
}
