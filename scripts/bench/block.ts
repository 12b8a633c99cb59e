/**
 * Norm + query, key and value projections with generated weights: as the stock graph (norm, MatMul, Add) and as one
 * `com.deepspeed.QKVGemm` node, for each weight type.
 */
import { encodeAttribute, encodeNode, type NewNode } from '../../ts/onnx/node.js';
import { DataType, encodeTensor } from '../../ts/onnx/tensor.js';
import { MessageWriter } from '../../ts/onnx/wire.js';
import { fromFloat32, quantizeInt8, toFloat32 } from '../../ts/rewrite/weights/convert.js';

export interface BlockShape {
  name: string;
  norm: 'layer_norm' | 'rms_norm';
  k: number;
  /** Columns of query, key and value. */
  splits: [number, number, number];
  bias: boolean;
}

export interface Block extends BlockShape {
  n: number;
  gamma: Float32Array<ArrayBuffer>;
  /** LayerNorm only. */
  beta?: Float32Array<ArrayBuffer>;
  /** [k, n], query, key and value side by side. */
  weight: Float32Array<ArrayBuffer>;
  biases?: Float32Array<ArrayBuffer>;
}

export const EPSILON = 1e-5;
export const OUTPUTS = ['q', 'k', 'v'] as const;
export const weightTypes = ['fp32', 'fp16', 'bf16', 'int8'] as const;
export type BlockWeightType = (typeof weightTypes)[number];

/** Uniform numbers in [-limit, limit) around `centre`, the same for the same seed (xorshift32). */
export function uniform(count: number, limit: number, seed: number, centre = 0): Float32Array<ArrayBuffer> {
  const result = new Float32Array(count);
  let state = (seed * 0x9e3779b9) | 1;
  for (let i = 0; i < count; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    result[i] = centre + (state / 0x80000000) * limit;
  }
  return result;
}

export function makeBlock(shape: BlockShape): Block {
  const n = shape.splits.reduce((sum, columns) => sum + columns, 0);
  return {
    ...shape,
    n,
    gamma: uniform(shape.k, 0.5, 1, 1),
    ...(shape.norm === 'layer_norm' ? { beta: uniform(shape.k, 0.2, 2) } : {}),
    weight: uniform(shape.k * n, Math.sqrt(3 / shape.k), 3), // outputs of about 1
    ...(shape.bias ? { biases: uniform(n, 0.5, 4) } : {}),
  };
}

/** LayerNormalization or SimplifiedLayerNormalization, then a MatMul and an Add each for query, key and value. */
export function stockModel(block: Block): Uint8Array {
  const model = new ModelParts(block.k, block.splits);
  const normInputs = ['x', model.floats('gamma', [block.k], block.gamma)];
  if (block.beta) normInputs.push(model.floats('beta', [block.k], block.beta));
  model.node({
    opType: block.norm === 'layer_norm' ? 'LayerNormalization' : 'SimplifiedLayerNormalization',
    inputs: normInputs,
    outputs: ['normalised'],
    attributes: [encodeAttribute('axis', { integer: -1 }), encodeAttribute('epsilon', { float: EPSILON })],
  });
  let start = 0;
  block.splits.forEach((columns, i) => {
    const output = OUTPUTS[i] as string;
    const part = new Float32Array(block.k * columns);
    for (let r = 0; r < block.k; r++) {
      const from = r * block.n + start;
      part.set(block.weight.subarray(from, from + columns), r * columns);
    }
    const product = block.biases ? `${output}_product` : output;
    model.node({
      opType: 'MatMul',
      inputs: ['normalised', model.floats(`w_${output}`, [block.k, columns], part)],
      outputs: [product],
    });
    if (block.biases) {
      const bias = block.biases.slice(start, start + columns);
      model.node({
        opType: 'Add',
        inputs: [product, model.floats(`b_${output}`, [columns], bias)],
        outputs: [output],
      });
    }
    start += columns;
  });
  return model.finish();
}

export interface FusedBlock {
  model: Uint8Array;
  /** Bytes of weights and scales that a call reads. */
  weightBytes: number;
  /** An element of the weight as stored, index into [k, n]. */
  stored: (i: number) => number;
}

export function fusedModel(block: Block, type: BlockWeightType): FusedBlock {
  const model = new ModelParts(block.k, block.splits);
  const inputs = ['x', 'w', model.floats('gamma', [block.k], block.gamma)];
  inputs.push(block.beta ? model.floats('beta', [block.k], block.beta) : '');
  inputs.push(block.biases ? model.floats('b', [block.n], block.biases) : '');
  let weightBytes: number;
  let stored: FusedBlock['stored'];
  const dims = [block.k, block.n];
  if (type === 'int8') {
    const { data, scale } = quantizeInt8(block.weight, block.k, block.n, false);
    const scales = Float32Array.from(scale);
    model.tensor('w', DataType.int8, dims, data);
    inputs.push(model.floats('scale', [block.n], scales));
    weightBytes = data.byteLength + scales.byteLength;
    const values = new Int8Array(data.buffer, data.byteOffset, data.byteLength);
    stored = (i) => (values[i] ?? 0) * (scales[i % block.n] ?? 0);
  } else {
    const dataType = { fp32: DataType.float, fp16: DataType.float16, bf16: DataType.bfloat16 }[type];
    const data = fromFloat32(block.weight, dataType);
    model.tensor('w', dataType, dims, data);
    weightBytes = data.byteLength;
    const size = data.byteLength / block.weight.length;
    stored = (i) => toFloat32(data.slice(i * size, (i + 1) * size), dataType)[0] ?? NaN;
  }
  while (inputs.at(-1) === '') inputs.pop();
  model.node({
    opType: 'QKVGemm',
    domain: 'com.deepspeed',
    name: 'qkv',
    inputs,
    outputs: ['q', '', 'k', 'v'],
    attributes: [
      encodeAttribute('norm_type', { string: block.norm }),
      encodeAttribute('epsilon', { float: EPSILON }),
      encodeAttribute('splits', { integers: block.splits }),
    ],
  });
  return { model: model.finish(), weightBytes, stored };
}

/** A model x -> q, k, v that hardly computes: what a call costs by itself. */
export function emptyModel(block: BlockShape): Uint8Array {
  const model = new ModelParts(block.k, [1, 1, 1]);
  const int64 = (name: string, value: number): string => {
    const bytes = new Uint8Array(new BigInt64Array([BigInt(value)]).buffer);
    model.tensor(name, DataType.int64, [1], bytes);
    return name;
  };
  const bounds = [int64('from', 0), int64('to', 1), int64('axis', 1)];
  for (const output of OUTPUTS) model.node({ opType: 'Slice', inputs: ['x', ...bounds], outputs: [output] });
  return model.finish();
}

/** The parts of a ModelProto with the input `x` [M, k] and the outputs `q`, `k`, `v`. */
class ModelParts {
  private readonly nodes: Uint8Array[] = [];
  private readonly initialisers: Uint8Array[][] = [];

  constructor(
    private readonly k: number,
    private readonly splits: readonly number[],
  ) {}

  node(node: NewNode): void {
    this.nodes.push(encodeNode(node));
  }

  tensor(name: string, type: number, dims: readonly number[], data: Uint8Array): void {
    this.initialisers.push(encodeTensor(name, type, dims, data));
  }

  floats(name: string, dims: readonly number[], values: Float32Array<ArrayBuffer>): string {
    this.tensor(name, DataType.float, dims, fromFloat32(values, DataType.float));
    return name;
  }

  /** ModelProto: ir_version 1, graph 7, opset_import 8. GraphProto: node 1, name 2, initializer 5, input 11, output 12. */
  finish(): Uint8Array {
    const graph = new MessageWriter();
    for (const node of this.nodes) graph.bytes(1, node);
    graph.string(2, 'block');
    for (const initialiser of this.initialisers) graph.bytes(5, initialiser);
    graph.bytes(11, valueInfo('x', this.k));
    OUTPUTS.forEach((name, i) => graph.bytes(12, valueInfo(name, this.splits[i] ?? 0)));
    const opset = (domain: string, version: number): Uint8Array =>
      new MessageWriter().string(1, domain).integer(2, version).finish();
    return new MessageWriter()
      .integer(1, 8)
      .bytes(7, graph.parts())
      .bytes(8, opset('', 17))
      .bytes(8, opset('com.deepspeed', 1))
      .finish();
  }
}

/** float32 [M, columns]. ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1; its elem_type 1, shape 2. */
function valueInfo(name: string, columns: number): Uint8Array {
  const dim = (fill: (writer: MessageWriter) => MessageWriter): Uint8Array =>
    fill(new MessageWriter()).finish();
  const shape = new MessageWriter()
    .bytes(
      1,
      dim((w) => w.string(2, 'M')),
    )
    .bytes(
      1,
      dim((w) => w.integer(1, columns)),
    )
    .finish();
  const tensor = new MessageWriter().integer(1, DataType.float).bytes(2, shape).finish();
  const type = new MessageWriter().bytes(1, tensor).finish();
  return new MessageWriter().string(1, name).bytes(2, type).finish();
}
