/** Graphs within graphs: what the tests of subgraphs are made of. */
import * as ort from 'onnxruntime-node';
import { ModelBuilder } from '../../models/builder.js';
import { DataType } from '../../ts/onnx/tensor.js';
import { K } from './layers.js';

export const flag = (value: boolean): ort.Tensor => new ort.Tensor('bool', [value], []);
export const yes = (m: ModelBuilder): string => m.tensor('yes', DataType.bool, [], new Uint8Array([1]));

/** Names of a graph's own get a prefix, so that no two graphs have one in common. */
export class Prefixed extends ModelBuilder {
  private readonly own = new Set<string>();

  constructor(private readonly prefix: string) {
    super();
  }

  override node(...[opType, inputs, outputs, settings = {}]: Parameters<ModelBuilder['node']>): string {
    const read = inputs.map((name) => (this.own.has(name) ? this.prefix + name : name));
    const made = outputs.map((name) => this.named(name));
    return super.node(opType, read, made, { ...settings, name: `${made[0] ?? opType}_node` });
  }

  override floats(...[name, ...rest]: Parameters<ModelBuilder['floats']>): string {
    return super.floats(this.named(name), ...rest);
  }

  private named(name: string): string {
    this.own.add(name);
    return this.prefix + name;
  }
}

/** x [2, 5, K] and a condition into an If of two bodies. */
export function choice(then: ModelBuilder, otherwise: ModelBuilder, more: (m: ModelBuilder) => void = () => undefined, opsets: Record<string, number> = {}): Uint8Array {
  const m = new ModelBuilder(opsets);
  m.input('x', ['batch', 'sequence', K]);
  m.input('condition', [], DataType.bool);
  more(m);
  m.output(m.node('If', ['condition'], ['chosen'], { graphs: { then_branch: then, else_branch: otherwise } }));
  return m.finish();
} // prettier-ignore
