/** Where new weights go, and how those that a model has already leave it: into one data file beside the output. */
import { QkvGemmError } from './errors.js';
import type { LocatedSource } from './located_source.js';
import { externalTensors, HOLDERS } from './onnx/external_tensors.js';
import {
  elementSize,
  encodeExternalTensor,
  encodeTensor,
  moveTensor,
  Tensor,
  type ExternalData,
  type TensorStore,
} from './onnx/tensor.js';
import { MessageWriter, readFields } from './onnx/wire.js';

/** Smaller tensors stay in the model, where shape inference reads them (onnx.save_model has the same threshold). */
export const SMALLEST_EXTERNAL = 1024;

/** Tensors begin at multiples of this in a data file, so that a runtime can map them into memory. */
const ALIGNMENT = 4096;

/** Where the next tensor begins in a data file. */
export const placeBehind = (end: number): number => Math.ceil(end / ALIGNMENT) * ALIGNMENT;

/** A data file that takes tensors one behind the other. */
export interface WeightFile {
  /** The name by which the model knows it. */
  readonly location: string;
  /** Takes one tensor's elements; returns where they lie. */
  append(data: Uint8Array): ExternalData;
  /** Takes a range of another file; yields the bytes of each piece. */
  copy(from: string, offset: number, length: number): Generator<number, ExternalData>;
}

/**
 * Puts a new tensor into the data file where its sources were external, where all weights are to leave the model, or where
 * the model would become larger than a protobuf message may be; else into the model.
 */
export class WeightStore implements TensorStore {
  /** Names of the tensors in the data file. */
  readonly moved = new Set<string>();
  private readonly replaced = new Set<Tensor>();

  /** @param room bytes that the model may still grow by. */
  constructor(
    private readonly data: Pick<WeightFile, 'append'>,
    private readonly always: boolean,
    private room: number,
  ) {}

  add(
    name: string,
    type: number,
    dims: readonly number[],
    data: Uint8Array,
    sources: readonly Tensor[],
  ): Uint8Array[] {
    for (const tensor of sources) {
      if (!this.replaced.has(tensor)) this.room += tensor.rawData?.length ?? 0;
      this.replaced.add(tensor);
    }
    const external = this.always || sources.some((tensor) => tensor.external) || data.length > this.room;
    if (!external || data.length < SMALLEST_EXTERNAL) {
      this.room -= data.length;
      return encodeTensor(name, type, dims, data);
    }
    this.moved.add(name);
    return [encodeExternalTensor(name, type, dims, this.data.append(data))];
  }
}

export interface MoveOptions {
  data: WeightFile;
  source: LocatedSource;
  /** Names of tensors that are in the data file already. */
  moved: ReadonlySet<string>;
  /** Tensors that lie in other files are moved too: the model then needs the data file alone. */
  everything: boolean;
}

type Kind = keyof typeof HOLDERS;

/**
 * Moves initialisers of at least SMALLEST_EXTERNAL bytes out of a model, subgraphs included, and with `everything` all
 * tensors that lie in other files. Yields the bytes moved.
 *
 * @returns the model's bytes, in parts; what is not moved stays byte for byte.
 */
export function* moveTensors(model: Uint8Array, options: MoveOptions): Generator<number, Uint8Array[]> {
  const { data, source } = options;
  if (options.everything) checkOverlap(model, options);
  const places = new Map<string, ExternalData>();

  function* moveOne(message: Uint8Array, inline: boolean): Generator<number, Uint8Array | undefined> {
    const tensor = new Tensor(message, 'a tensor');
    if (isMoved(tensor, options)) return undefined;
    if (tensor.external) {
      if (!options.everything) return undefined;
      const { file, offset, length } = rangeOf(tensor, tensor.external, source);
      const key = `${offset}:${length}:${file}`;
      // Tensors that share their elements go on sharing them.
      const place = places.get(key) ?? (yield* data.copy(file, offset, length));
      places.set(key, place);
      return moveTensor(message, place, 'a tensor');
    }
    if (!inline) return undefined;
    const elements = tensor.rawData ?? (elementSize(tensor.type) === undefined ? undefined : tensor.bytes());
    if (!elements || elements.length < SMALLEST_EXTERNAL) return undefined;
    const place = data.append(elements);
    yield elements.length;
    return moveTensor(message, place, 'a tensor');
  }

  /** The message with its tensors moved, or undefined where none was. */
  function* walk(message: Uint8Array, kind: Kind): Generator<number, Uint8Array[] | undefined> {
    const inner = HOLDERS[kind] as Record<number, Kind | 'tensor'>;
    const writer = new MessageWriter();
    let changed = false;
    for (const field of readFields(message, `a ${kind}`)) {
      const next = field.wire === 2 ? inner[field.number] : undefined;
      let value: Uint8Array | Uint8Array[] | undefined;
      if (next === 'tensor') value = yield* moveOne(field.value, kind === 'graph');
      else if (next) value = yield* walk(field.value, next);
      if (value) writer.bytes(field.number, value);
      else writer.copy(field.span);
      changed ||= value !== undefined;
    }
    return changed ? writer.parts() : undefined;
  }

  return (yield* walk(model, 'model')) ?? [model];
}

function isMoved(tensor: Tensor, { data, moved }: MoveOptions): boolean {
  return tensor.external?.location === data.location && moved.has(tensor.name);
}

/** File and bytes of an external tensor; without a stated length, as many as its shape says, or else all that follow. */
function rangeOf(
  tensor: Tensor,
  external: ExternalData,
  source: LocatedSource,
): { file: string; offset: number; length: number } {
  const { file, size } = source.locate(external, tensor.name);
  const length =
    elementSize(tensor.type) === undefined
      ? (external.length ?? size - external.offset)
      : tensor.checkedLength(source);
  return { file, offset: external.offset, length };
}

/** Different ranges that together are longer than their file would make the copy grow without end. */
function checkOverlap(model: Uint8Array, options: MoveOptions): void {
  const files = new Map<string, { size: number; total: number; ranges: Set<string> }>();
  for (const tensor of externalTensors(model)) {
    if (isMoved(tensor, options) || !tensor.external) continue;
    const { file, offset, length } = rangeOf(tensor, tensor.external, options.source);
    const entry = files.get(file) ?? {
      size: options.source.locate(tensor.external, tensor.name).size,
      total: 0,
      ranges: new Set<string>(),
    };
    files.set(file, entry);
    const range = `${offset}:${length}`;
    if (entry.ranges.has(range)) continue;
    entry.ranges.add(range);
    entry.total += length;
    if (entry.total > entry.size) {
      throw new QkvGemmError(
        'EXTERNAL_DATA',
        `The tensors in '${file}' overlap: up to '${tensor.name}' they need ${entry.total} bytes of its ${entry.size}. Leave the file as it is, without --external-data-file.`,
      );
    }
  }
}
