/** Where in a model tensors lie, and which of them are stored elsewhere. */
import { QkvGemmError } from '../errors.js';
import { Tensor } from './tensor.js';
import { readFields } from './wire.js';

/** Submessages in which tensors can lie: for each message, field number to message. */
export const HOLDERS = {
  model: { 7: 'graph', 25: 'function' },
  function: { 7: 'node' },
  graph: { 1: 'node', 5: 'tensor', 15: 'sparse' },
  node: { 5: 'attribute' },
  attribute: { 5: 'tensor', 6: 'graph', 10: 'tensor', 11: 'graph', 22: 'sparse', 23: 'sparse' },
  sparse: { 1: 'tensor', 2: 'tensor' },
} as const;

/** Every tensor of a model that is stored elsewhere, those in subgraphs, functions and attributes included. */
export function externalTensors(model: Uint8Array): Tensor[] {
  const found: Tensor[] = [];
  const walk = (message: Uint8Array, kind: keyof typeof HOLDERS, depth: number): void => {
    if (depth > 100) throw new QkvGemmError('INVALID_MODEL', 'The graphs are nested more than 100 deep.');
    const inner = HOLDERS[kind] as Record<number, keyof typeof HOLDERS | 'tensor'>;
    for (const field of readFields(message, `a ${kind}`)) {
      const next = field.wire === 2 ? inner[field.number] : undefined;
      if (next === 'tensor') {
        const tensor = new Tensor(field.value, 'a tensor');
        if (tensor.external) found.push(tensor);
      } else if (next) walk(field.value, next, depth + 1);
    }
  };
  walk(model, 'model', 0);
  return found;
}
