/**
 * BERT-base's encoder without its embeddings, in float32 with random weights: 12 layers of self-attention and MLP, each with
 * a residual and a LayerNormalization behind it. 85 million parameters.
 */
import { ModelBuilder, uniform } from './builder.js';

export interface BertShape {
  layers: number;
  /** Length of the normalised axis. */
  hidden: number;
  heads: number;
  /** Columns of the MLP's first product. */
  mlp: number;
}

export const BERT_BASE: BertShape = { layers: 12, hidden: 768, heads: 12, mlp: 3072 };

/** The model's bytes. Input `x` and output `y` are [batch, sequence, hidden]. */
export function bertEncoder({ layers, hidden, heads, mlp }: BertShape): Uint8Array {
  const model = new ModelBuilder();
  const dims = ['batch', 'sequence', hidden];
  let seed = 1;
  const dense = (from: string, name: string, rows: number, columns: number): string => {
    const weight = model.floats(
      `${name}.weight`,
      [rows, columns],
      uniform(rows * columns, 1.7 * rows ** -0.5, seed++),
    );
    const product = model.node('MatMul', [from, weight], [`${name}.product`]);
    return model.node(
      'Add',
      [product, model.floats(`${name}.bias`, [columns], uniform(columns, 0.1, seed++))],
      [name],
    );
  };
  const norm = (from: string, name: string): string => {
    const gamma = model.floats(`${name}.gamma`, [hidden], uniform(hidden, 0.2, seed++, 1));
    const beta = model.floats(`${name}.beta`, [hidden], uniform(hidden, 0.1, seed++));
    return model.node('LayerNormalization', [from, gamma, beta], [name], {
      attributes: { axis: { integer: -1 }, epsilon: { float: 1e-12 } },
    });
  };
  const split = model.integers('split', [4], [0, 0, heads, hidden / heads]);
  const joined = model.integers('joined', [3], [0, 0, hidden]);
  const scale = model.floats('scale', [], [(hidden / heads) ** -0.5]);
  const [half, one, root] = [0.5, 1, Math.SQRT2].map((value, i) => model.floats(`gelu_${i}`, [], [value]));
  if (half === undefined || one === undefined || root === undefined) throw new Error('no constants');
  let x = norm(model.input('x', dims), 'embedded');
  for (let layer = 0; layer < layers; layer++) {
    const own = (name: string): string => `layer${layer}.${name}`;
    const head = (name: string, perm: number[]): string => {
      const parts = model.node(
        'Reshape',
        [dense(x, own(name), hidden, hidden), split],
        [own(`${name}_heads`)],
      );
      const attributes = { perm: { integers: perm } };
      return model.node('Transpose', [parts], [own(`${name}_moved`)], { attributes });
    };
    const [q, k, v] = [head('q', [0, 2, 1, 3]), head('k', [0, 2, 3, 1]), head('v', [0, 2, 1, 3])];
    const scores = model.node('Mul', [model.node('MatMul', [q, k], [own('qk')]), scale], [own('scores')]);
    const shares = model.node('Softmax', [scores], [own('shares')], {
      attributes: { axis: { integer: -1 } },
    });
    const context = model.node('MatMul', [shares, v], [own('context')]);
    const moved = model.node('Transpose', [context], [own('back')], {
      attributes: { perm: { integers: [0, 2, 1, 3] } },
    });
    const attention = model.node('Reshape', [moved, joined], [own('attention')]);
    const attended = model.node('Add', [dense(attention, own('o'), hidden, hidden), x], [own('attended')]);
    const middle = norm(attended, own('attention_norm'));
    const up = dense(middle, own('up'), hidden, mlp);
    const erf = model.node('Erf', [model.node('Div', [up, root], [own('scaled')])], [own('erf')]);
    const gate = model.node('Mul', [up, model.node('Add', [erf, one], [own('erf_1')])], [own('gate')]);
    const gelu = model.node('Mul', [gate, half], [own('gelu')]);
    const sum = model.node('Add', [dense(gelu, own('down'), mlp, hidden), middle], [own('sum')]);
    x = norm(sum, own('norm'));
  }
  model.output(model.node('Identity', [x], ['y']), dims);
  return model.finish();
}
