/** Mutations of models: of their bytes, and of their fields at any depth with lengths that fit again. */
import { HOLDERS } from '../../ts/onnx/external_tensors.js';
import { MessageWriter, readFields, type Field } from '../../ts/onnx/wire.js';

/** Random numbers from a seed (xorshift32). */
export class Random {
  private state: number;

  constructor(seed: number) {
    this.state = (Math.imul(seed, 0x9e3779b9) ^ 0x5bd1e995) | 1;
  }

  /** An integer in [0, n). */
  below(n: number): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return (this.state >>> 0) % n;
  }

  pick<T>(list: readonly T[]): T {
    return list[this.below(list.length)] as T;
  }
}

type Bytes = Uint8Array;
type Kind = keyof typeof HOLDERS;

/** Encodings that decoders trip over: 2^31, 2^32, 2^53, -1, 2^63, one too long, one cut off. */
const VARINTS = [
  [0],
  [0x80, 0x80, 0x80, 0x80, 0x08],
  [0x80, 0x80, 0x80, 0x80, 0x10],
  [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10],
  [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
  [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
  [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01],
  [0x80],
].map((bytes) => Uint8Array.from(bytes));

function replaced(bytes: Bytes, at: number, removed: number, inserted: Bytes): Bytes {
  const result = new Uint8Array(bytes.length - removed + inserted.length);
  result.set(bytes.subarray(0, at));
  result.set(inserted, at);
  result.set(bytes.subarray(at + removed), at + inserted.length);
  return result;
}

const BYTE_MUTATIONS: ((bytes: Bytes, random: Random, other: Bytes) => Bytes)[] = [
  // Bit flips.
  (bytes, random) => {
    const result = bytes.slice();
    for (let n = 1 + random.below(8); n > 0; n--) {
      const at = random.below(result.length);
      result[at] = (result[at] ?? 0) ^ (1 << random.below(8));
    }
    return result;
  },
  // Truncation.
  (bytes, random) => bytes.slice(0, random.below(bytes.length)),
  // A varint in the place of some bytes.
  (bytes, random) => replaced(bytes, random.below(bytes.length - 16), random.below(4), random.pick(VARINTS)),
  // A piece of another model.
  (bytes, random, other) => {
    const piece = other.subarray(random.below(other.length)).subarray(0, 1 + random.below(64));
    return replaced(bytes, random.below(bytes.length - 64), random.below(64), piece);
  },
];

const copied = (field: Field): Bytes => field.span;

/** Mutations of one field of a message, as the spans that take its place. */
const FIELD_MUTATIONS: ((field: Field, all: readonly Field[], random: Random) => Bytes[])[] = [
  (field) => [field.span, field.span],
  (field) => Array.from({ length: 50 }, () => field.span),
  () => [],
  (_field, all, random) => [copied(random.pick(all))],
  (field, all, random) => [field.span, copied(random.pick(all))],
  // Another number in the field, or bytes where a number was.
  (field, _all, random) => [new MessageWriter().integer(field.number, random.pick([0, 1, 2, 7, 16, 2 ** 31, 2 ** 53, -1])).finish()], // prettier-ignore
  (field, _all, random) => [new MessageWriter().bytes(field.number, random.pick(VARINTS)).finish()],
  // The bytes of a field under another number.
  (field, _all, random) => [new MessageWriter().bytes(1 + random.below(30), field.value).finish()],
  // The value of another field: the name of another value, say.
  (field, all, random) => [new MessageWriter().bytes(field.number, random.pick(all).value).finish()],
  // A length that is not the value's.
  (field, _all, random) => {
    const lying = field.span.slice();
    if (lying.length > 1) lying[1] = random.below(256);
    return [lying];
  },
];

function mutateFields(message: Bytes, random: Random, kind: Kind | undefined, depth: number): Bytes {
  let fields: Field[];
  try {
    fields = readFields(message, 'a message');
  } catch {
    fields = [];
  }
  if (fields.length === 0) return message;
  const holders: Record<number, string> = kind ? HOLDERS[kind] : {};
  const inner = fields.filter(({ wire, number }) => wire === 2 && (!kind || number in holders));
  const descend = inner.length > 0 && depth < 12 && random.below(5) > 0;
  const target = random.pick(descend ? inner : fields);
  const next = holders[target.number];
  const writer = new MessageWriter();
  for (const field of fields) {
    if (field !== target) writer.copy(field.span);
    else if (descend) {
      const known = next !== undefined && next in HOLDERS ? (next as Kind) : undefined;
      writer.bytes(field.number, mutateFields(field.value, random, known, depth + 1));
    } else for (const span of random.pick(FIELD_MUTATIONS)(field, fields, random)) writer.copy(span);
  }
  return writer.finish();
}

/** One to three mutations of a model; `other` lends pieces. The same for the same random numbers. */
export function mutate(model: Bytes, other: Bytes, random: Random): Bytes {
  let result = model;
  for (let n = 1 + random.below(3); n > 0; n--) {
    if (result.length < 128) break;
    result =
      random.below(3) === 0
        ? random.pick(BYTE_MUTATIONS)(result, random, other)
        : mutateFields(result, random, 'model', 0);
  }
  return result;
}
