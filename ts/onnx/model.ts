/** ModelProto: the outermost message. A model in which nothing changes comes out byte for byte. */
import { QkvGemmError } from '../errors.js';
import { FunctionBody } from './function.js';
import { Graph } from './graph.js';
import { readOpsets } from './opsets.js';
import { integer, MessageWriter, readFields, type Field } from './wire.js';

const FIELD = { irVersion: 1, graph: 7, opsetImport: 8, functions: 25 } as const;

export class Model {
  private readonly fields: Field[];
  readonly irVersion: number;
  /** Domain ('' for ONNX's own) to version. */
  readonly opsets: ReadonlyMap<string, number>;
  private readonly functionOf = new Map<Field, FunctionBody>();
  readonly graph: Graph;
  private newIrVersion: number;
  private readonly addedOpsets: { domain: string; version: number }[] = [];
  private readonly addedFunctions: Uint8Array[] = [];

  /** @throws QkvGemmError `INVALID_MODEL` for bytes that are no ONNX model. */
  constructor(readonly bytes: Uint8Array) {
    this.fields = readFields(bytes, 'the model');
    const last = (number: number): Field | undefined =>
      this.fields.findLast((field) => field.number === number);
    const ir = last(FIELD.irVersion);
    const graph = last(FIELD.graph);
    if (!ir || !graph || graph.wire !== 2) {
      throw new QkvGemmError(
        'INVALID_MODEL',
        `Not a valid ONNX model: it has no ${ir ? 'graph' : 'ir_version'}. The file may be truncated or something else than ONNX.`,
      );
    }
    if (this.fields.filter((field) => field.number === FIELD.graph).length > 1)
      throw new QkvGemmError('INVALID_MODEL', 'Not a valid ONNX model: it has more than one graph.');
    this.irVersion = this.newIrVersion = integer(ir);
    this.opsets = readOpsets(this.fields, FIELD.opsetImport);
    for (const field of this.fields)
      if (field.number === FIELD.functions) this.functionOf.set(field, new FunctionBody(field.value));
    this.graph = new Graph(graph.value);
  }

  /** The model-local functions. */
  get functionBodies(): FunctionBody[] {
    return [...this.functionOf.values()];
  }

  /** `domain:name` of the model-local functions. */
  get functions(): string[] {
    return this.functionBodies.map(({ domain, name }) => `${domain}:${name}`);
  }

  /** Version of ONNX's own operators; 0 where the model names none. */
  get opset(): number {
    return this.opsets.get('') ?? 0;
  }

  /** Raises the IR version to at least this. */
  requireIrVersion(version: number): void {
    this.newIrVersion = Math.max(this.newIrVersion, version);
  }

  addOpset(domain: string, version: number): void {
    if (!this.opsets.has(domain)) this.addedOpsets.push({ domain, version });
  }

  /** @param message a FunctionProto's bytes. */
  addFunction(message: Uint8Array): void {
    this.addedFunctions.push(message);
  }

  get resultingIrVersion(): number {
    return this.newIrVersion;
  }

  /** The model's bytes, in parts that refer to the original where nothing changed. */
  encode(): Uint8Array[] {
    const untouched =
      !this.graph.changed &&
      !this.functionBodies.some((body) => body.changed) &&
      this.newIrVersion === this.irVersion &&
      this.addedOpsets.length === 0 &&
      this.addedFunctions.length === 0;
    if (untouched) return [this.bytes];
    const writer = new MessageWriter();
    const lastOpset = this.fields.findLastIndex((field) => field.number === FIELD.opsetImport);
    this.fields.forEach((field, index) => {
      if (field.number === FIELD.irVersion) writer.integer(FIELD.irVersion, this.newIrVersion);
      else if (field.number === FIELD.graph && this.graph.changed)
        writer.bytes(FIELD.graph, this.graph.encode());
      else if (this.functionOf.get(field)?.changed)
        writer.bytes(FIELD.functions, this.functionOf.get(field)?.encode() ?? []);
      else writer.copy(field.span);
      if (index === lastOpset) {
        for (const { domain, version } of this.addedOpsets) {
          writer.bytes(FIELD.opsetImport, new MessageWriter().string(1, domain).integer(2, version).finish());
        }
      }
    });
    for (const message of this.addedFunctions) writer.bytes(FIELD.functions, message);
    return writer.parts();
  }
}
