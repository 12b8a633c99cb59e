/** OperatorSetIdProto: domain 1, version 2. */
import { integer, readFields, text, type Field } from './wire.js';

/** Opset imports among a message's fields: domain ('' for ONNX's own) to version. */
export function readOpsets(fields: readonly Field[], number: number): Map<string, number> {
  const opsets = new Map<string, number>();
  for (const field of fields) {
    if (field.number !== number) continue;
    const parts = readFields(field.value, 'an opset import');
    const domain = parts.find((f) => f.number === 1);
    const version = parts.find((f) => f.number === 2);
    const name = domain ? text(domain) : '';
    opsets.set(name === 'ai.onnx' ? '' : name, version ? integer(version) : 0);
  }
  return opsets;
}
