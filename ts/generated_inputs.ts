/** Inputs for a model of which nothing is known but its graph. */
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { QkvGemmError } from './errors.js';
import { float16Bits } from './rewrite/weights/convert.js';

/** Sizes of the dimensions that a model leaves open, by name. */
export type Sizes = Record<string, number>;

/** Elements of an input: beyond them memory is not there, or it takes minutes to fill. */
const MOST_ELEMENTS = 2 ** 30;

/** A dimension without a name is called by its input and axis. */
const nameOf = (input: string, dim: number | string, axis: number): string =>
  typeof dim === 'string' && dim !== '' ? dim : `${input}:${axis}`;

/** A size as it is, or the name under which a size is given. */
export function dimensionName(input: string, dim: number | string, axis: number): number | string {
  return isOpen(dim) ? nameOf(input, dim, axis) : dim;
}

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

/** Throws `INVALID_ARGUMENT` for a size whose name is none of the open dimensions. */
export function checkSizes(sizes: Sizes, inputs: readonly InferenceSession.ValueMetadata[]): void {
  const names = openDimensions(inputs);
  const unknown = Object.keys(sizes).find((name) => !names.includes(name));
  if (unknown !== undefined)
    throw new QkvGemmError(
      'INVALID_ARGUMENT',
      `--dims names '${unknown}', which is no dimension that the model leaves open; those are: ${names.join(', ') || 'none'}.`,
    );
}

/** Dimensions of an input with these sizes; 1 where there is none. */
export function sizedDims(
  input: InferenceSession.ValueMetadata & { isTensor: true },
  sizes: Sizes,
): number[] {
  return input.shape.map((dim, axis) =>
    isOpen(dim) ? (sizes[nameOf(input.name, dim, axis)] ?? 1) : Number(dim),
  );
}

/** Numbers between -1 and 1 that do not repeat soon: how fast a device multiplies depends on them. */
function* random(seed: number): Generator<number, never> {
  for (let state = seed >>> 0; ;) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    yield state / 2 ** 31 - 1;
  }
}

type Filled = (length: number, numbers: () => number, integer: () => number) => Tensor['data'];

const integers =
  <T>(make: (source: { length: number }, fill: () => number) => T) =>
  (length: number, _: () => number, integer: () => number): T =>
    make({ length }, integer);

/** Elements of each type that JavaScript can hold: random floats, integers as they are asked for. */
const FILLED = new Map<string, Filled>(
  Object.entries({
    float32: (length, numbers) => Float32Array.from({ length }, numbers),
    float64: (length, numbers) => Float64Array.from({ length }, numbers),
    float16: (length, numbers) => Uint16Array.from({ length }, () => float16Bits(numbers())),
    int64: (length, _, integer) => BigInt64Array.from({ length }, () => BigInt(integer())),
    uint64: (length, _, integer) => BigUint64Array.from({ length }, () => BigInt(integer())),
    int32: integers((source, fill) => Int32Array.from(source, fill)),
    uint32: integers((source, fill) => Uint32Array.from(source, fill)),
    int16: integers((source, fill) => Int16Array.from(source, fill)),
    uint16: integers((source, fill) => Uint16Array.from(source, fill)),
    int8: integers((source, fill) => Int8Array.from(source, fill)),
    uint8: integers((source, fill) => Uint8Array.from(source, fill)),
    bool: integers((source, fill) => Uint8Array.from(source, fill)),
  } satisfies Record<string, Filled>),
);

export interface Generation {
  /** Other seeds give other numbers (default 1). */
  seed?: number;
  /** Integers of these inputs are random, from 0 to below this; those of others are 0, and of masks 1. */
  below?: ReadonlyMap<string, number>;
}

/** A tensor for each input: random floats; integers that index any table; masks that mask nothing. */
export function generate(
  inputs: readonly InferenceSession.ValueMetadata[],
  sizes: Sizes,
  TensorOf: typeof Tensor,
  { seed = 1, below = new Map() }: Generation = {},
): Record<string, Tensor> {
  const stream = random(seed);
  const numbers = (): number => stream.next().value;
  return Object.fromEntries(
    inputs.map((input) => {
      const fill = input.isTensor ? FILLED.get(input.type) : undefined;
      if (!input.isTensor || fill === undefined)
        throw new QkvGemmError(
          'UNSUPPORTED_MODEL',
          `Input '${input.name}' is ${input.isTensor ? `of type ${input.type}` : 'no tensor'}; inputs are made of ${[...FILLED.keys()].join(', ')}.`,
        );
      const dims = sizedDims(input, sizes);
      const length = dims.reduce((product, dim) => product * dim, 1);
      if (length > MOST_ELEMENTS)
        throw new QkvGemmError(
          'INVALID_ARGUMENT',
          `Input '${input.name}' would be ${dims.join(' x ')}; expected at most 2^30 elements. Give smaller sizes.`,
        );
      const limit = below.get(input.name);
      const integer =
        limit !== undefined
          ? () => Math.min(limit - 1, Math.floor(((numbers() + 1) / 2) * limit))
          : () => (input.name.includes('mask') ? 1 : 0);
      const data = fill(length, numbers, integer);
      return [input.name, new TensorOf(input.type as 'float32', data as Float32Array, dims)];
    }),
  );
}
