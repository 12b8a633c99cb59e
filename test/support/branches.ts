/** Graphs within graphs: what the tests of subgraphs are made of. */
import * as ort from 'onnxruntime-node';
import { ModelBuilder } from '../../models/builder.js';
import { DataType } from '../../ts/onnx/tensor.js';
import { attend, betaOf, gammaOf, K, layerNorm, threeMatMul, weight } from './layers.js';

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

/** An attention layer of `x` with its own weights; its result is the graph's output. */
export function attentionBody(prefix: string, x = 'x', norm = layerNorm): ModelBuilder {
  const m = new Prefixed(prefix);
  m.output(attend(m, threeMatMul(m, norm(m, x))));
  return m;
}

/** The same with the weights, scale and shift of the graph around it. */
export function borrowingBody(
  prefix: string,
  names: readonly string[] = ['w_q', 'w_k', 'w_v'],
  x = 'x',
): ModelBuilder {
  const m = new Prefixed(prefix);
  const h = m.node('LayerNormalization', [x, 'gamma', 'beta'], ['h']);
  m.output(attend(m, names.map((name, i) => m.node('MatMul', [h, name], [['q', 'k', 'v'][i] ?? ''])))); // prettier-ignore
  return m;
}

export const outerWeights = (m: ModelBuilder): void => {
  gammaOf(m);
  betaOf(m);
  ['w_q', 'w_k', 'w_v'].forEach((name, i) => weight(m, name, i));
};

/** Of a function's body: constants are nodes, since a function has no initialisers. */
export class BodyBuilder extends ModelBuilder {
  override floats(...[name, dims, values, type]: Parameters<ModelBuilder['floats']>): string {
    return this.constant(name, dims, values, type);
  }
}
