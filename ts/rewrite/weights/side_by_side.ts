/** Matrices put side by side along N. */
import { transpose } from './convert.js';

/** A matrix's elements: [K, N], or [N, K] when `transposed`. */
export interface Part {
  bytes: Uint8Array;
  n: number;
  transposed: boolean;
}

/** All in one matrix: [K, N], or [N, K] when `transposed`; elements of `size` bytes. Not transposed, no part need be so. */
export function sideBySide(
  parts: readonly Part[],
  k: number,
  size: number,
  transposed: boolean,
): Uint8Array<ArrayBuffer> {
  const n = parts.reduce((sum, part) => sum + part.n, 0);
  const result = new Uint8Array(k * n * size);
  if (transposed) {
    let at = 0;
    for (const { bytes } of parts) {
      result.set(bytes, at);
      at += bytes.length;
    }
    return result;
  }
  let column = 0;
  for (const part of parts) {
    const width = part.n;
    const bytes = part.transposed ? transpose(part.bytes, width, k, size) : part.bytes;
    for (let row = 0; row < k; row++)
      result.set(bytes.subarray(row * width * size, (row + 1) * width * size), (row * n + column) * size);
    column += width;
  }
  return result;
}
