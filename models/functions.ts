/** Model-local functions for tests: FunctionProto bytes from a graph's nodes. */
import { MessageWriter } from '../ts/onnx/wire.js';
import { OPSET, type ModelBuilder } from './builder.js';

export interface FunctionSettings {
  inputs: readonly string[];
  outputs: readonly string[];
  /** Names of attributes that each call gives. */
  attributes?: readonly string[];
  /** Opset imports (default ONNX's own, 17). */
  opsets?: Record<string, number>;
  domain?: string;
}

export const FUNCTION_DOMAIN = 'com.example';

/**
 * FunctionProto: name 1, input 4, output 5, attribute 6, node 7, opset_import 9, domain 10.
 *
 * @param body gives the nodes; its constants have to be Constant nodes, since a function has no initialisers.
 */
export function functionOf(name: string, body: ModelBuilder, settings: FunctionSettings): Uint8Array {
  const { inputs, outputs, attributes = [], opsets = {}, domain = FUNCTION_DOMAIN } = settings;
  const writer = new MessageWriter().string(1, name);
  for (const input of inputs) writer.string(4, input);
  for (const output of outputs) writer.string(5, output);
  for (const attribute of attributes) writer.string(6, attribute);
  for (const node of body.nodeBytes()) writer.bytes(7, node);
  for (const [imported, version] of Object.entries({ '': OPSET, ...opsets }))
    writer.bytes(9, new MessageWriter().string(1, imported).integer(2, version).finish());
  return writer.string(10, domain).finish();
}
