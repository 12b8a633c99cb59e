/**
 * What JavaScript can feed to a model and fetch from it: onnxruntime-node holds no bfloat16, so that such inputs and outputs
 * pass through a Cast; and values inside the graph become outputs when they are asked for. All of it in a copy in memory.
 */
import path from 'node:path';
import type { InferenceSession } from 'onnxruntime-node';
import { readModelFile } from '../files.js';
import { Model } from '../onnx/model.js';
import { encodeAttribute, encodeNode } from '../onnx/node.js';
import { DataType } from '../onnx/tensor.js';
import { MessageWriter, readFields, text } from '../onnx/wire.js';
import { GraphIndex } from '../rewrite/graph_index.js';
import { Names } from '../rewrite/names.js';
import { scopesOf } from '../rewrite/scopes.js';

export interface Boundary {
  /** What a session is made of: the file itself where nothing had to be changed. */
  model: string | Uint8Array;
  /** Options that the session needs besides. */
  options: InferenceSession.SessionOptions;
  /** Name of an input or output in the session, of those that were renamed. */
  inputs: Map<string, string>;
  outputs: Map<string, string>;
}

/** A model file as far as its boundary is looked at. */
export class OpenModel {
  readonly index: GraphIndex;
  private readonly bytes: Uint8Array;

  /** @throws QkvGemmError as `readModelFile`, and `INVALID_MODEL`. */
  constructor(readonly file: string) {
    this.bytes = readModelFile(file);
    this.index = new GraphIndex(new Model(this.bytes));
  }

  /** Names of the values that nodes of the main graph produce and that are no outputs, in graph order. */
  get inside(): string[] {
    const { graph } = this.index.model;
    return graph.nodes
      .flatMap((node) => node.outputs)
      .filter((name) => name !== '' && !this.index.isGraphOutput(name));
  }

  /** @param more values inside the graph that are to be outputs too. */
  boundary(more: readonly string[] = []): Boundary {
    const { graph } = this.index.model;
    const half = (name: string, stated: number | undefined): boolean =>
      (stated ?? this.index.typeOf(name)) === DataType.bfloat16;
    const inputs = graph.inputs.filter(({ name, type }) => !graph.initializers.has(name) && half(name, type));
    const outputs = graph.outputs.filter(({ name, type }) => half(name, type));
    if (inputs.length + outputs.length + more.length === 0)
      return { model: this.file, options: {}, inputs: new Map(), outputs: new Map() };
    const names = new Names(scopesOf(this.index.model).map(({ index }) => index.graph));
    const renamed = (list: readonly { name: string }[]): Map<string, string> =>
      new Map(list.map(({ name }) => [name, names.unique(`${name}/float32`)]));
    const result = {
      inputs: renamed(inputs),
      outputs: renamed([
        ...outputs,
        ...more.filter((name) => half(name, undefined)).map((name) => ({ name })),
      ]),
    };
    return {
      model: this.edited(result.inputs, result.outputs, more),
      // Where a model that is given as bytes has its external data.
      options: {
        extra: {
          session: { model_external_initializers_file_folder_path: path.resolve(path.dirname(this.file)) },
        },
      },
      ...result,
    };
  }

  private edited(
    inputs: ReadonlyMap<string, string>,
    outputs: ReadonlyMap<string, string>,
    more: readonly string[],
  ): Uint8Array {
    const cast = (from: string, to: string, type: number): Uint8Array =>
      encodeNode({
        opType: 'Cast',
        inputs: [from],
        outputs: [to],
        attributes: [encodeAttribute('to', { integer: type })],
      });
    const graph = (message: Uint8Array): Uint8Array[] => {
      const writer = new MessageWriter();
      for (const [name, fed] of inputs) writer.bytes(1, cast(fed, name, DataType.bfloat16));
      for (const field of readFields(message, 'the graph')) {
        const renames = field.number === 11 ? inputs : field.number === 12 ? outputs : undefined;
        const name = renames?.get(nameOf(field.value));
        if (name === undefined) writer.copy(field.span);
        else writer.bytes(field.number, asFloat(field.value, name));
      }
      for (const [name, fetched] of outputs) writer.bytes(1, cast(name, fetched, DataType.float));
      // An output that names no type has the one that is inferred.
      for (const name of more)
        writer.bytes(12, new MessageWriter().string(1, outputs.get(name) ?? name).finish());
      return writer.parts();
    };
    const writer = new MessageWriter();
    for (const field of readFields(this.bytes, 'the model')) {
      if (field.number === 7) writer.bytes(7, graph(field.value));
      else writer.copy(field.span);
    }
    return writer.finish();
  }
}

/** ValueInfoProto: name 1, type 2 { tensor_type 1 { elem_type 1, shape 2 } }. */
function nameOf(message: Uint8Array): string {
  const name = readFields(message, 'a value info').find((field) => field.number === 1);
  return name ? text(name) : '';
}

/** A ValueInfoProto with this name, of float32; its shape stays. */
function asFloat(message: Uint8Array, name: string): Uint8Array {
  const inner = (bytes: Uint8Array, number: number): Uint8Array =>
    readFields(bytes, 'a value info').find((field) => field.number === number)?.value ?? new Uint8Array();
  const tensor = new MessageWriter().integer(1, DataType.float);
  for (const field of readFields(inner(inner(message, 2), 1), 'a tensor type'))
    if (field.number !== 1) tensor.copy(field.span);
  const type = new MessageWriter().bytes(1, tensor.finish()).finish();
  return new MessageWriter().string(1, name).bytes(2, type).finish();
}
