/** The corpus of exported models, where it is present: ONNX's backend-test layout, one folder a model. */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import * as ort from 'onnxruntime-node';
import { Model } from '../ts/onnx/model.js';
import { DataType, Tensor } from '../ts/onnx/tensor.js';
import { concat, MessageWriter, readFields } from '../ts/onnx/wire.js';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');
export const corpusFolder = process.env.QKVGEMM_CORPUS ?? path.resolve(root, '..', 'shared', 'corpus');

/** Names of the corpus models; empty, with a note on the console, where the corpus is not there. */
export function corpusModels(): string[] {
  if (!fs.existsSync(corpusFolder)) {
    console.log(`  (the model corpus is not at ${corpusFolder}; set QKVGEMM_CORPUS to test with it)`);
    return [];
  }
  return modelsIn(corpusFolder);
}

/** Names of the models in a folder of that layout. */
export function modelsIn(folder: string): string[] {
  return fs
    .readdirSync(folder)
    .filter((name) => fs.existsSync(path.join(folder, name, 'model.onnx')))
    .sort();
}

export function corpusModel(name: string): Uint8Array {
  return new Uint8Array(fs.readFileSync(path.join(corpusFolder, name, 'model.onnx')));
}

/** The inputs that come with a model, in the order of its graph inputs. */
export function corpusInputs(name: string, root = corpusFolder): ort.Tensor[] {
  const folder = path.join(root, name, 'test_data_set_0');
  const files = fs.readdirSync(folder).filter((file) => /^input_\d+\.pb$/.test(file));
  return files.map((_, i) =>
    toOrt(new Tensor(new Uint8Array(fs.readFileSync(path.join(folder, `input_${i}.pb`))), `input ${i}`)),
  );
}

function toOrt(tensor: Tensor): ort.Tensor {
  const data = tensor.bytes().slice().buffer;
  const dims = [...tensor.dims];
  switch (tensor.type) {
    case DataType.float: return new ort.Tensor('float32', new Float32Array(data), dims);
    case DataType.int64: return new ort.Tensor('int64', new BigInt64Array(data), dims);
    case DataType.int32: return new ort.Tensor('int32', new Int32Array(data), dims);
    case DataType.bool: return new ort.Tensor('bool', new Uint8Array(data), dims);
    case DataType.float16: return new ort.Tensor('float16', new Uint16Array(data), dims);
    default: throw new Error(`corpus input of type ${tensor.type}`);
  } // prettier-ignore
}

/** Every Dropout at inference: a model exported in training mode gives other results at each run. */
export function withoutTraining(bytes: Uint8Array): Uint8Array {
  const model = new Model(bytes);
  for (const node of model.graph.nodes) {
    if (!node.is('Dropout') || node.inputs.length < 3) continue;
    const writer = new MessageWriter();
    let inputs = 0;
    for (const field of readFields(node.message, node.label)) {
      if (field.number !== 1 || ++inputs < 3) writer.copy(field.span);
    }
    model.graph.insertNode(node, writer.finish());
    model.graph.removeNode(node);
  }
  return concat(model.encode());
}
