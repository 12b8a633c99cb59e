/** A small attention layer as ONNX bytes: LayerNormalization, three projections, softmax(Q K^T) V. */
import fs from 'node:fs';
import path from 'node:path';
import { encodeAttribute, encodeNode } from '../../ts/onnx/node.js';
import { DataType, encodeTensor } from '../../ts/onnx/tensor.js';
import { concat, MessageWriter } from '../../ts/onnx/wire.js';

export const K = 16;
/** Columns of each projection. */
export const N = 8;

export interface AttentionOptions {
  /** The weights are stored in this file, as the model names it. */
  location?: string;
  /** A tensor that is not fused lies there too: the graph's result is scaled by it (default false). */
  external?: boolean;
  /** Offset of the first weight in that file (default 0). */
  offset?: number;
  /** NodeProto bytes put before the layer's own. */
  extraNodes?: readonly Uint8Array[];
  /** Value that the norm reads (default the graph's input `x`). */
  normInput?: string;
  /** Without the second product nothing leads to attention and nothing can be fused (default true). */
  attention?: boolean;
}

/** Deterministic values in [-0.5, 0.5). */
export function values(count: number, seed: number): Float32Array {
  let state = seed >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return state / 2 ** 32 - 0.5;
  });
}

const raw = (data: Float32Array): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

function valueInfo(name: string, last: number): Uint8Array {
  const dim = (value: Uint8Array): Uint8Array => new MessageWriter().bytes(1, value).finish();
  const shape = concat([
    dim(new MessageWriter().string(2, 'batch').finish()),
    dim(new MessageWriter().string(2, 'sequence').finish()),
    dim(new MessageWriter().integer(1, last).finish()),
  ]);
  const tensor = new MessageWriter().integer(1, DataType.float).bytes(2, shape).finish();
  return new MessageWriter().string(1, name).bytes(2, new MessageWriter().bytes(1, tensor).finish()).finish();
}

function externalTensor(name: string, dims: readonly number[], location: string, offset: number): Uint8Array {
  const writer = new MessageWriter();
  for (const dim of dims) writer.integer(1, dim);
  writer.integer(2, DataType.float).string(8, name);
  const bytes = 4 * dims.reduce((product, dim) => product * dim, 1);
  const entries = { location, offset: String(offset), length: String(bytes) };
  for (const [key, value] of Object.entries(entries))
    writer.bytes(13, new MessageWriter().string(1, key).string(2, value).finish());
  return writer.integer(14, 1).finish();
}

const weightData = (['wq', 'wk', 'wv'] as const).map((name, i) => ({ name, data: values(K * N, 11 + i) }));

/** Contents of the external file that `location` names: the three weights, one after the other. */
export function externalBytes(): Uint8Array {
  return concat(weightData.map(({ data }) => raw(data)));
}

export function attentionModel(options: AttentionOptions = {}): Uint8Array {
  const {
    location,
    external = false,
    offset = 0,
    extraNodes = [],
    normInput = 'x',
    attention = true,
  } = options;
  const graph = new MessageWriter();
  const node = (opType: string, inputs: string[], outputs: string[], attributes: Uint8Array[] = []): void =>
    void graph.bytes(1, encodeNode({ opType, name: `${outputs[0]}_node`, inputs, outputs, attributes }));
  for (const bytes of extraNodes) graph.bytes(1, bytes);
  node('LayerNormalization', [normInput, 'gamma', 'beta'], ['h'], [
    encodeAttribute('axis', { integer: -1 }),
    encodeAttribute('epsilon', { float: 1e-5 }),
  ]); // prettier-ignore
  for (const [w, y] of [['wq', 'q0'], ['wk', 'k'], ['wv', 'v']] as const) node('MatMul', ['h', w], [y]); // prettier-ignore
  node('Add', ['q0', 'bq'], ['q']);
  if (attention) {
    node('Transpose', ['k'], ['kt'], [encodeAttribute('perm', { integers: [0, 2, 1] })]);
    node('MatMul', ['q', 'kt'], ['scores']);
    node('Softmax', ['scores'], ['p'], [encodeAttribute('axis', { integer: -1 })]);
    node('MatMul', ['p', 'v'], [external ? 'pv' : 'y']);
    if (external) node('Mul', ['pv', 'factor'], ['y']);
  } else {
    node('Add', ['q', 'k'], ['qk']);
    node('Add', ['qk', 'v'], ['y']);
  }
  graph.string(2, 'attention');
  weightData.forEach(({ name, data }, i) =>
    graph.bytes(
      5,
      location === undefined
        ? concat(encodeTensor(name, DataType.float, [K, N], raw(data)))
        : externalTensor(name, [K, N], location, offset + i * data.byteLength),
    ),
  );
  if (external && location !== undefined) graph.bytes(5, externalTensor('factor', [N], location, 0));
  for (const [name, length] of [['gamma', K], ['beta', K], ['bq', N]] as const) {
    const data = values(length, length + name.length);
    graph.bytes(5, concat(encodeTensor(name, DataType.float, [length], raw(data))));
  } // prettier-ignore
  graph.bytes(11, valueInfo('x', K)).bytes(12, valueInfo('y', N));
  const opset = new MessageWriter().string(1, '').integer(2, 17).finish();
  return new MessageWriter().integer(1, 8).bytes(7, graph.finish()).bytes(8, opset).finish();
}

/** Writes the model, and with `location` the external file beside it; returns the model's path. */
export function writeAttentionModel(folder: string, options: AttentionOptions = {}): string {
  const file = path.join(folder, 'model.onnx');
  fs.writeFileSync(file, attentionModel(options));
  if (options.location !== undefined) {
    const data = path.resolve(folder, options.location);
    fs.mkdirSync(path.dirname(data), { recursive: true });
    fs.writeFileSync(data, externalBytes());
  }
  return file;
}
