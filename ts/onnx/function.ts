/**
 * FunctionProto: a model-local function, whose body is a graph in all but its layout. It has no initialisers: constants are
 * Constant nodes, which take their place here. Its opset imports are its own.
 */
import { Graph, type GraphLayout } from './graph.js';
import { readOpsets } from './opsets.js';
import { MessageWriter, readFields, text } from './wire.js';

const FIELD = { name: 1, opsetImport: 9, domain: 10, overload: 13 } as const;

/** Inputs and outputs of a function are names alone. */
const LAYOUT: GraphLayout = { node: 7, input: 4, output: 5, valueInfo: 12, stated: false };

export class FunctionBody extends Graph {
  /** `domain:name`, or `domain:name:overload`. */
  readonly id: string;
  readonly name: string;
  readonly domain: string;
  readonly overload: string;
  /** Domain ('' for ONNX's own) to version. */
  readonly opsets: ReadonlyMap<string, number>;
  private readonly addedOpsets: Uint8Array[] = [];

  /** @param message a FunctionProto's bytes. */
  constructor(message: Uint8Array) {
    super(message, LAYOUT, 'a function');
    const fields = readFields(message, 'a function');
    const [name, domain, overload] = [FIELD.name, FIELD.domain, FIELD.overload].map((number) => {
      const field = fields.find((f) => f.number === number);
      return field ? text(field) : '';
    }) as [string, string, string];
    this.name = name;
    this.domain = domain === 'ai.onnx' ? '' : domain;
    this.overload = overload;
    this.id = [domain, name, ...(overload === '' ? [] : [overload])].join(':');
    this.opsets = readOpsets(fields, FIELD.opsetImport);
  }

  addOpset(domain: string, version: number): void {
    if (this.opsets.has(domain) || this.addedOpsets.length > 0) return;
    const message = new MessageWriter().string(1, domain).integer(2, version).finish();
    this.addedOpsets.push(new MessageWriter().bytes(FIELD.opsetImport, message).finish());
  }

  override get changed(): boolean {
    return super.changed || this.addedOpsets.length > 0;
  }

  protected override get addedFields(): readonly Uint8Array[] {
    return this.addedOpsets;
  }
}
