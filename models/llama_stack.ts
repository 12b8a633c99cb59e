/**
 * A stack of Llama's decoder layers with random weights in an external file, of any size: weights are written as a stream. RMSNorm, query, key and value projections, GroupQueryAttention, output projection, residual; RMSNorm, gated
 * MLP, residual.
 */
import fs from 'node:fs';
import path from 'node:path';
import { DataType, elementSize } from '../ts/onnx/tensor.js';
import { fromFloat32 } from '../ts/rewrite/weights/convert.js';
import { ModelBuilder, uniform } from './builder.js';

export interface LlamaShape {
  layers: number;
  /** Length of the normalised axis. */
  hidden: number;
  heads: number;
  kvHeads: number;
  headSize: number;
  /** Columns of the MLP's gate and up projections. */
  mlp: number;
  /** Element type of weights and activations (default float16). */
  type?: number;
  /** Keys and values of former tokens are inputs, `past_key_0` and the like [batch, kvHeads, past, headSize]. */
  cache?: boolean;
}

/** Llama 3 8B without its embedding and its head. */
export const LLAMA_8B: LlamaShape = {
  layers: 32,
  hidden: 4096,
  heads: 32,
  kvHeads: 8,
  headSize: 128,
  mlp: 14336,
};

/** Llama 3.2 1B without its embedding and its head, in float32: 973 million parameters. */
export const LLAMA_1B: LlamaShape = {
  layers: 16,
  hidden: 2048,
  heads: 32,
  kvHeads: 8,
  headSize: 64,
  mlp: 8192,
  type: DataType.float,
  cache: true,
};

/** A fiftieth of the layers' size of 8B. */
export const LLAMA_SMALL: LlamaShape = {
  layers: 4,
  hidden: 512,
  heads: 8,
  kvHeads: 2,
  headSize: 64,
  mlp: 1792,
};

export const WEIGHTS = 'weights.bin';

/** Bytes of the weights of one layer. */
export function layerBytes({ type = DataType.float16, ...shape }: LlamaShape): number {
  const { hidden, heads, kvHeads, headSize, mlp } = shape;
  return (elementSize(type) ?? 0) * hidden * (2 * heads * headSize + 2 * kvHeads * headSize + 3 * mlp);
}

/** Random numbers that go round and round, so that making them takes no time. */
class WeightStream {
  private readonly block: Uint8Array;
  private readonly handle: number;
  private end = 0;

  constructor(file: string, type: number) {
    this.block = fromFloat32(uniform(2 ** 22, 0.05, 5), type);
    this.handle = fs.openSync(file, 'wx');
  }

  /** Writes `bytes` bytes; returns their offset. */
  add(bytes: number): number {
    const offset = this.end;
    // From elsewhere in the block each time, so that no two tensors are alike.
    let from = ((offset / 2) % 65537) & ~3;
    for (let done = 0; done < bytes;) {
      const piece = this.block.subarray(from, from + bytes - done);
      done += fs.writeSync(this.handle, piece, 0, piece.length, offset + done);
      from = 0;
    }
    this.end += bytes;
    return offset;
  }

  close(): void {
    fs.closeSync(this.handle);
  }
}

/** Writes `model.onnx` and its weights into a folder; returns the model's path. */
export function writeLlamaStack(folder: string, shape: LlamaShape): string {
  const { layers, hidden, heads, kvHeads, headSize, mlp, type = DataType.float16, cache = false } = shape;
  const [q, kv] = [heads * headSize, kvHeads * headSize];
  const { int32 } = DataType;
  const bytes = elementSize(type) ?? 0;
  const weights = new WeightStream(path.join(folder, WEIGHTS), type);
  const model = new ModelBuilder({ 'com.microsoft': 1 });
  const hiddenDims = ['batch', 'sequence', hidden];
  let x = model.input('x', hiddenDims, type);
  model.input('seqlens_k', ['batch'], int32);
  model.input('total_sequence_length', [1], int32);
  const project = (from: string, name: string, rows: number, columns: number): string => {
    const place = { location: WEIGHTS, offset: weights.add(bytes * rows * columns) };
    return model.node(
      'MatMul',
      [from, model.external(`${name}.weight`, [rows, columns], place, type)],
      [name],
    );
  };
  const norm = (from: string, name: string): string => {
    const gamma = model.floats(`${name}.gamma`, [hidden], uniform(hidden, 0.2, 9, 1), type);
    const attributes = { axis: { integer: -1 }, epsilon: { float: 1e-5 } };
    return model.node('SimplifiedLayerNormalization', [from, gamma], [name], { attributes });
  };
  for (let layer = 0; layer < layers; layer++) {
    const own = (name: string): string => `layer${layer}.${name}`;
    const h = norm(x, own('input_norm'));
    const past = cache
      ? ['key', 'value'].map((what) =>
          model.input(`past_${what}_${layer}`, ['batch', kvHeads, 'past', headSize], type),
        )
      : ['', ''];
    const inputs = [
      ...[
        project(h, own('q'), hidden, q),
        project(h, own('k'), hidden, kv),
        project(h, own('v'), hidden, kv),
      ],
      ...[...past, 'seqlens_k', 'total_sequence_length'],
    ];
    const outputs = ['attention', 'present_key', 'present_value'].map(own);
    model.node('GroupQueryAttention', inputs, outputs, {
      domain: 'com.microsoft',
      attributes: { num_heads: { integer: heads }, kv_num_heads: { integer: kvHeads } },
    });
    x = model.node('Add', [x, project(own('attention'), own('o'), q, hidden)], [own('attended')]);
    const m = norm(x, own('mlp_norm'));
    const gate = project(m, own('gate'), hidden, mlp);
    const silu = model.node('Mul', [gate, model.node('Sigmoid', [gate], [own('sigmoid')])], [own('silu')]);
    const product = model.node('Mul', [silu, project(m, own('up'), hidden, mlp)], [own('product')]);
    x = model.node('Add', [x, project(product, own('down'), mlp, hidden)], [own('out')]);
  }
  model.output(model.node('Identity', [x], ['y']), hiddenDims, type);
  weights.close();
  const file = path.join(folder, 'model.onnx');
  fs.writeFileSync(file, model.finish());
  return file;
}
