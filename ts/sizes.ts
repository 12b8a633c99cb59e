/** Sizes of dimensions as text. */
import type { Sizes } from './generated_inputs.js';

/** `batch=1,sequence=128`. */
export function parseDims(text: string): Sizes {
  const sizes = new Map<string, number>();
  for (const part of text.split(',')) {
    const at = part.lastIndexOf('=');
    const name = part.slice(0, Math.max(at, 0)).trim();
    if (name === '') throw new Error(`expected NAME=SIZE, found '${part}'`);
    if (sizes.has(name)) throw new Error(`'${name}' has two sizes; repeat the option for another run`);
    sizes.set(name, parseCount(part.slice(at + 1)));
  }
  return Object.fromEntries(sizes);
}

/** A size or a number of threads. */
export function parseCount(text: string, most = 999_999_999): number {
  const count = /^ *\d+ *$/.test(text) ? Number(text) : 0;
  if (count < 1 || count > most) throw new Error(`expected a number from 1 to ${most}, found '${text}'`);
  return count;
}
