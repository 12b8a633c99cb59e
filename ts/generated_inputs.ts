/** Inputs for a model that is run for its times and not for its results. */
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { QkvGemmError } from './errors.js';

/** Sizes of the dimensions that a model leaves open, by name. */
export type Sizes = Record<string, number>;

/** Elements of an input: beyond them memory is not there, or it takes minutes to fill. */
const MOST_ELEMENTS = 2 ** 30;

/** A dimension without a name is called by its input and axis. */
const nameOf = (input: string, dim: number | string, axis: number): string =>
  typeof dim === 'string' && dim !== '' ? dim : `${input}:${axis}`;

const isOpen = (dim: number | string): boolean => typeof dim === 'string' || dim < 0;

/** Names of the dimensions that the inputs leave open, each once. */
export function openDimensions(inputs: readonly InferenceSession.ValueMetadata[]): string[] {
  const names = inputs.flatMap((input) =>
    input.isTensor
      ? input.shape.flatMap((dim, axis) => (isOpen(dim) ? [nameOf(input.name, dim, axis)] : []))
      : [],
  );
  return [...new Set(names)];
}

/** Numbers between -1 and 1 that do not repeat soon: how fast a device multiplies depends on them. */
function* random(): Generator<number, never> {
  for (let state = 1; ;) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    yield state / 2 ** 31 - 1;
  }
}

/** Bits of halves with exponents from 2^-3 to 2^0, of either sign, for a number between -1 and 1. */
function half(number: number): number {
  const bits = Math.floor((number + 1) * 0x1000);
  return bits < 0x1000 ? 0x3000 + bits : 0xa000 + bits;
}

/** @param integer gives the integers, each. */
type Make = (length: number, dims: readonly number[], integer: () => number, numbers: () => number) => Tensor;

function makersOf(TensorOf: typeof Tensor): Map<string, Make> {
  return new Map<string, Make>([
    [
      'float32',
      (length, dims, _, numbers) => new TensorOf('float32', Float32Array.from({ length }, numbers), dims),
    ],
    [
      'float16',
      (length, dims, _, numbers) =>
        new TensorOf(
          'float16',
          Uint16Array.from({ length }, () => half(numbers())),
          dims,
        ),
    ],
    [
      'int64',
      (length, dims, integer) =>
        new TensorOf(
          'int64',
          BigInt64Array.from({ length }, () => BigInt(integer())),
          dims,
        ),
    ],
    ['int32', (length, dims, integer) => new TensorOf('int32', Int32Array.from({ length }, integer), dims)],
    ['bool', (length, dims, integer) => new TensorOf('bool', Uint8Array.from({ length }, integer), dims)],
  ]);
}

/**
 * A tensor for each input: random floats; masks that mask nothing; integers that are random where a range is given, and
 * else zeros, which index any table.
 *
 * @param ranges integers of an input are at least 0 and below this.
 */
export function generate(
  inputs: readonly InferenceSession.ValueMetadata[],
  sizes: Sizes,
  TensorOf: typeof Tensor,
  ranges: ReadonlyMap<string, number> = new Map(),
): Record<string, Tensor> {
  const numbers = random();
  const makers = makersOf(TensorOf);
  return Object.fromEntries(
    inputs.map((input) => {
      const make = input.isTensor ? makers.get(input.type) : undefined;
      if (!input.isTensor || make === undefined)
        throw new QkvGemmError(
          'UNSUPPORTED_MODEL',
          `Input '${input.name}' is ${input.isTensor ? `of type ${input.type}` : 'no tensor'}; inputs are made of ${[...makers.keys()].join(', ')}.`,
        );
      const dims = input.shape.map((dim, axis) =>
        isOpen(dim) ? (sizes[nameOf(input.name, dim, axis)] ?? 1) : Number(dim),
      );
      const length = dims.reduce((product, dim) => product * dim, 1);
      if (length > MOST_ELEMENTS)
        throw new QkvGemmError(
          'INVALID_ARGUMENT',
          `Input '${input.name}' would be ${dims.join(' x ')}; expected at most 2^30 elements. Give smaller sizes.`,
        );
      const number = (): number => numbers.next().value;
      const range = ranges.get(input.name);
      const fixed = input.name.includes('mask') ? 1 : 0;
      const integer = (): number =>
        range === undefined || fixed === 1 ? fixed : Math.floor(((number() + 1) / 2) * range);
      return [input.name, make(length, dims, integer, number)];
    }),
  );
}
