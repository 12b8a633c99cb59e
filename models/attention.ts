/** A small attention layer: norm, three projections, softmax(Q K^T) V. */
import { ModelBuilder, uniform } from './builder.js';
import { addNorm } from './qkv_block.js';
import { DataType } from '../ts/onnx/tensor.js';
import { concat } from '../ts/onnx/wire.js';

/** Length of the normalised axis. */
export const K = 16;
/** Columns of each projection. */
export const N = 8;

export interface AttentionOptions {
  /** Default layer_norm. */
  norm?: 'layer_norm' | 'rms_norm';
  /** Columns of each projection (default N). */
  n?: number;
  /** Projections that have a bias (default the query's alone). */
  biases?: readonly ('q' | 'k' | 'v')[];
  /** The normalised input is added to the result; needs n = K (default false). */
  residual?: boolean;
  /** The weights are stored in this file, as the model names it. */
  location?: string;
  /** A tensor that is not fused lies there too: the graph's result is scaled by it (default false). */
  external?: boolean;
  /** Offset of the first weight in that file (default 0). */
  offset?: number;
  /** NodeProto bytes put before the layer's own. */
  extraNodes?: readonly Uint8Array[];
  /** Value that the norm reads (default the graph's input `x`). */
  normInput?: string;
  /** In place of `x`, token ids below this many, `input_ids` [batch, sequence], which a table embeds; then the result is named
   *  `last_hidden_state`, as encoders have it. */
  tokens?: number;
  /** Without the second product nothing leads to attention and nothing can be fused (default true). */
  attention?: boolean;
}

const PROJECTIONS = ['q', 'k', 'v'] as const;

const weightValues = (projection: number, n: number): Float32Array<ArrayBuffer> =>
  uniform(K * n, 0.5, 11 + projection);

/** Contents of the external file that `location` names: the three weights, one after the other. */
export function externalBytes(): Uint8Array {
  return concat(PROJECTIONS.map((_, i) => new Uint8Array(weightValues(i, N).buffer)));
}

/** A model x [batch, sequence, K] -> y [batch, sequence, n]. */
export function attentionModel(options: AttentionOptions = {}): Uint8Array {
  const { norm = 'layer_norm', n = N, biases = ['q'], residual = false } = options;
  const { location, external = false, offset = 0 } = options;
  const { extraNodes = [], normInput = 'x', attention = true, tokens } = options;
  const model = new ModelBuilder();
  const result = tokens === undefined ? 'y' : 'last_hidden_state';
  model.output(result, ['batch', 'sequence', n]);
  if (tokens === undefined) model.input('x', ['batch', 'sequence', K]);
  else {
    model.input('input_ids', ['batch', 'sequence'], DataType.int64);
    model.node(
      'Gather',
      [model.floats('table', [tokens, K], uniform(tokens * K, 1, 31)), 'input_ids'],
      ['x'],
    );
  }
  for (const bytes of extraNodes) model.rawNode(bytes);
  const vectors = [model.floats('gamma', [K], uniform(K, 0.5, 1, 1))];
  if (norm === 'layer_norm') vectors.push(model.floats('beta', [K], uniform(K, 0.5, 2)));
  const h = addNorm(model, norm, [normInput, ...vectors], 'h');
  const projected = PROJECTIONS.map((name, i) => {
    const [weight, dims] = [`w${name}`, [K, n]];
    if (location === undefined) model.floats(weight, dims, weightValues(i, n));
    else model.external(weight, dims, { location, offset: offset + i * 4 * K * n });
    if (!biases.includes(name)) return model.node('MatMul', [h, weight], [name]);
    const bias = model.floats(`b${name}`, [n], uniform(n, 0.5, 21 + i));
    return model.node('Add', [model.node('MatMul', [h, weight], [`${name}0`]), bias], [name]);
  });
  let y = attention ? attend(model, projected) : add(model, add(model, 'q', 'k'), 'v');
  if (external && location !== undefined) {
    model.external('factor', [n], { location, offset: 0 });
    y = model.node('Mul', [y, 'factor'], ['scaled']);
  }
  if (residual) y = add(model, y, h);
  model.node('Identity', [y], [result]);
  return model.finish();
}

function attend(model: ModelBuilder, [q = '', k = '', v = '']: readonly string[]): string {
  const attributes = { perm: { integers: [0, 2, 1] } };
  const scores = model.node('MatMul', [q, model.node('Transpose', [k], ['kt'], { attributes })], ['scores']);
  return model.node('MatMul', [model.node('Softmax', [scores], ['p']), v], ['context']);
}

function add(model: ModelBuilder, a: string, b: string): string {
  return model.node('Add', [a, b], [`${a}_${b}`]);
}
