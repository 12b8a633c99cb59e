/** The rows and columns of a block's result at which it is checked against float64. */
import { blockSpec, type Block } from '../../models/qkv_block.js';
import type { Operand, Operands } from '../../models/qkv_gemm.js';
import { reference } from '../../models/qkv_gemm_reference.js';
import { DataType } from '../../ts/onnx/tensor.js';

export interface Sample {
  rows: readonly number[];
  columns: readonly number[];
}

/** First, last and some rows and columns between, so that edges of tiles and of the three outputs are among them. */
export function sampleOf(block: Block, m: number): Sample {
  const spread = (count: number, most: number): number[] =>
    Array.from({ length: Math.min(count, most) }, (_, i) =>
      Math.round((i * (count - 1)) / Math.max(1, Math.min(count, most) - 1)),
    );
  const edges = block.splits.map((_, i) => block.splits.slice(0, i).reduce((sum, c) => sum + c, 0));
  const columns = [...spread(block.n, 61), ...edges, ...edges.slice(1).map((edge) => edge - 1)];
  return { rows: [...new Set(spread(m, 3))], columns: [...new Set(columns)] };
}

/** The operands of these columns alone: what a check needs of a block once its models are made. */
export function sampledOperands({ k }: Block, operands: Operands, { columns }: Sample): Operands {
  const result: Operands = { ...operands };
  for (const name of ['weight', 'bias', 'scale'] as const) {
    const operand = operands[name];
    if (operand) result[name] = selectColumns(operand, name === 'weight' ? k : 1, columns);
  }
  return result;
}

function selectColumns({ type, dims, values }: Operand, rows: number, columns: readonly number[]): Operand {
  const width = values.length / rows;
  const selected = new Float32Array(rows * columns.length);
  for (let row = 0; row < rows; row++)
    columns.forEach(
      (column, i) => (selected[row * columns.length + i] = values[row * width + column] ?? NaN),
    );
  return { type, dims: [...dims.slice(0, -1), columns.length], values: selected };
}

/** The result for the block's input `x`, row by row; `operands` are those of the sampled columns. */
export function sampledReference(
  { norm, k }: Block,
  operands: Operands,
  x: Float32Array,
  { rows, columns }: Sample,
): Float64Array {
  const values = new Float32Array(rows.length * k);
  rows.forEach((row, i) => {
    values.set(x.subarray(row * k, (row + 1) * k), i * k);
  });
  const input = { type: DataType.float, dims: [rows.length, k], values };
  const spec = blockSpec({ norm, k, n: columns.length }, rows.length);
  return reference(spec, { ...operands, input }).y?.values ?? new Float64Array();
}

/** The same places of the outputs, which hold `block.splits` columns each. */
export function pick(
  block: Block,
  outputs: readonly Float32Array[],
  { rows, columns }: Sample,
): Float64Array {
  const places = columns.map((column) => {
    let output = 0;
    let rest = column;
    while (rest >= (block.splits[output] ?? Infinity)) rest -= block.splits[output++] ?? 0;
    return { output, rest, width: block.splits[output] ?? 0 };
  });
  return Float64Array.from(
    rows.flatMap((row) =>
      places.map(({ output, rest, width }) => outputs[output]?.[row * width + rest] ?? NaN),
    ),
  );
}
