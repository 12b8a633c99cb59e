/**
 * Protocol-buffer wire format on byte spans: which fields a message has and where their bytes lie, without decoding
 * them. What is not looked at is copied through as it is, unknown fields included.
 *
 * Source: https://protobuf.dev/programming-guides/encoding/
 */
import protobuf from 'protobufjs/minimal.js';
import { QkvGemmError } from '../errors.js';

export const WIRE = { varint: 0, fixed64: 1, bytes: 2, fixed32: 5 } as const;

/** One field of a message. */
export interface Field {
  number: number;
  wire: number;
  /** The field with its tag. */
  span: Uint8Array;
  /** The value: of a length-delimited field without its length, else the encoded number. */
  value: Uint8Array;
}

/** A message of more fields than this would fill the memory with views of them; real graphs have some 100 000. */
const MAX_FIELDS = 2 ** 20;

function invalid(what: string, where: string, offset: number): QkvGemmError {
  return new QkvGemmError(
    'INVALID_MODEL',
    `Not a valid ONNX model: ${what} at byte ${offset} of ${where}. The file may be truncated or something else than ONNX.`,
  );
}

/** The fields of a message, in order; throws `INVALID_MODEL` where the bytes are no message. `where` names it. */
export function readFields(message: Uint8Array, where: string): Field[] {
  const fields: Field[] = [];
  let at = 0;
  // A varint's value up to 2^53; `at` moves behind it.
  const varint = (): number => {
    let value = 0;
    let scale = 1;
    for (let i = 0; i < 10; i++) {
      const byte = message[at++];
      if (byte === undefined) throw invalid('the bytes end inside a number', where, at - 1);
      value += (byte & 0x7f) * scale;
      scale *= 128;
      if (byte < 0x80) return value;
    }
    throw invalid('a number is longer than 10 bytes', where, at);
  };
  while (at < message.length) {
    const start = at;
    const tag = varint();
    const number = Math.floor(tag / 8);
    const wire = tag % 8;
    if (number === 0 || number > 0x1fffffff) throw invalid(`field number ${number}`, where, start);
    let valueStart = at;
    let end: number;
    if (wire === WIRE.bytes) {
      const length = varint();
      valueStart = at;
      end = at + length;
    } else if (wire === WIRE.varint) {
      varint();
      end = at;
    } else if (wire === WIRE.fixed64 || wire === WIRE.fixed32) {
      end = at + (wire === WIRE.fixed64 ? 8 : 4);
    } else {
      throw invalid(`wire type ${wire}, which ONNX does not use,`, where, start);
    }
    if (end > message.length) {
      throw invalid(
        `field ${number} says ${end - valueStart} bytes, ${message.length - valueStart} are left,`,
        where,
        start,
      );
    }
    if (fields.length >= MAX_FIELDS) throw invalid(`more than ${MAX_FIELDS} fields`, where, start);
    fields.push({
      number,
      wire,
      span: message.subarray(start, end),
      value: message.subarray(valueStart, end),
    });
    at = end;
  }
  return fields;
}

/** Names are written anew in places: what is decoded must be encoded as the same bytes. */
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** A field's value as text. */
export function text(field: Field): string {
  try {
    return decoder.decode(field.value);
  } catch (error) {
    throw new QkvGemmError('INVALID_MODEL', 'Not a valid ONNX model: a name in it is not UTF-8.', {
      cause: error,
    });
  }
}

/** A varint field's value as a signed 64-bit integer, in a double: exact up to 2^53. */
export function integer(field: Field): number {
  return Number(signed(field));
}

function signed(field: Field): bigint {
  if (field.wire === WIRE.bytes) {
    throw new QkvGemmError(
      'INVALID_MODEL',
      `Not a valid ONNX model: field ${field.number} holds ${field.value.length} bytes where a number is expected.`,
    );
  }
  let value = 0n;
  for (let i = field.value.length - 1; i >= 0; i--)
    value = (value << 7n) | BigInt((field.value[i] ?? 0) & 0x7f);
  return BigInt.asIntN(64, value);
}

/** Values of a repeated integer field, packed or not. */
export function integers(fields: readonly Field[], number: number): number[] {
  const values: number[] = [];
  for (const field of fields) {
    if (field.number !== number) continue;
    if (field.wire !== WIRE.bytes) {
      values.push(integer(field));
      continue;
    }
    const reader = protobuf.Reader.create(field.value);
    try {
      while (reader.pos < reader.len) values.push(Number(reader.int64()));
    } catch (error) {
      throw new QkvGemmError('INVALID_MODEL', 'Not a valid ONNX model: a list of integers ends too early.', {
        cause: error,
      });
    }
  }
  return values;
}

/** Makes messages field by field. */
export class MessageWriter {
  private readonly chunks: Uint8Array[] = [];

  /** Copies a field, tag included, as it is. */
  copy(span: Uint8Array): this {
    this.chunks.push(span);
    return this;
  }

  bytes(number: number, value: Uint8Array | readonly Uint8Array[]): this {
    const parts = value instanceof Uint8Array ? [value] : value;
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    this.head(number, WIRE.bytes, length);
    for (const part of parts) this.chunks.push(part); // not spread: a graph has more parts than a call takes arguments
    return this;
  }

  string(number: number, value: string): this {
    return this.bytes(number, new TextEncoder().encode(value));
  }

  /** A non-negative integer up to 2^53, or a negative one as 64 bits. */
  integer(number: number, value: number): this {
    const writer = protobuf.Writer.create().uint32(number * 8 + WIRE.varint);
    this.chunks.push(writer.int64(value).finish());
    return this;
  }

  float(number: number, value: number): this {
    this.chunks.push(
      protobuf.Writer.create()
        .uint32(number * 8 + WIRE.fixed32)
        .float(value)
        .finish(),
    );
    return this;
  }

  private head(number: number, wire: number, length: number): void {
    const writer = protobuf.Writer.create().uint32(number * 8 + wire);
    this.chunks.push(writer.uint64(length).finish());
  }

  /** The message's bytes, in parts: large ones are references, not copies. */
  parts(): Uint8Array[] {
    return this.chunks;
  }

  finish(): Uint8Array {
    return concat(this.chunks);
  }
}

/** One array of several. */
export function concat(parts: readonly Uint8Array[]): Uint8Array {
  const result = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    result.set(part, at);
    at += part.length;
  }
  return result;
}
