/** Layers whose activations are quantised when they run, in the forms that quantisers write. */
import { uniform, type ModelBuilder } from '../../models/builder.js';
import { DataType } from '../../ts/onnx/tensor.js';
import { bytesOf, integers, layerOf, NAMES, unsigned, type Integers } from './quantized.js';

export const MICROSOFT = 'com.microsoft';
export const opsets = { [MICROSOFT]: 1 };
const { float, int8, uint8 } = DataType;
export const K = 48;

export interface Form {
  unsigned?: boolean;
  /** One scale and zero point for the whole weight. */
  perTensor?: boolean;
  zeroPoint?: boolean;
  /** How the sum is scaled. */
  scaling?: 'product' | 'product swapped' | 'activations first' | 'weight first';
  bias?: boolean;
}

export interface Stored {
  q: string;
  scale: string;
  zero: string;
}

export function store(m: ModelBuilder, name: string, w: Integers, form: Form): Stored {
  const type = form.unsigned ? uint8 : int8;
  const bytes = (values: Int8Array): Uint8Array => (form.unsigned ? unsigned(values) : bytesOf(values));
  const [dims, count] = form.perTensor ? [[], 1] : [[w.n], w.n];
  return {
    q: m.tensor(`q_${name}`, type, [w.k, w.n], bytes(w.values)),
    scale: m.floats(`s_${name}`, dims, w.scale.slice(0, count)),
    zero:
      form.zeroPoint === false ? '' : m.tensor(`z_${name}`, type, dims, bytes(w.zeroPoint.slice(0, count))),
  };
}

export const quantize = (m: ModelBuilder, h: string): string =>
  m.node('DynamicQuantizeLinear', [h], ['h_q', 'h_s', 'h_z']);

/** One projection behind DynamicQuantizeLinear, as quantize_dynamic writes it. */
export function chain(m: ModelBuilder, name: string, w: Integers, form: Form = {}): string {
  const { q, scale, zero } = store(m, name, w, form);
  const sum = m.node('MatMulInteger', ['h_q', q, 'h_z', zero].slice(0, zero ? 4 : 3), [`i_${name}`]);
  const cast = m.node('Cast', [sum], [`f_${name}`], { attributes: { to: { integer: float } } });
  const output = form.bias ? `p_${name}` : name;
  const mul = (a: string, b: string, to: string): string => m.node('Mul', [a, b], [to]);
  const { scaling = 'product' } = form;
  if (scaling === 'product') mul(cast, mul('h_s', scale, `ss_${name}`), output);
  else if (scaling === 'product swapped') mul(mul(scale, 'h_s', `ss_${name}`), cast, output);
  else if (scaling === 'activations first') mul(mul(cast, 'h_s', `a_${name}`), scale, output);
  else mul(mul(cast, scale, `a_${name}`), 'h_s', output);
  return form.bias ? m.node('Add', [biasOf(m, name, w.n), output], [name]) : name;
}

export const biasValues = (n: number): Float32Array => uniform(n, 1, 9);
export const biasOf = (m: ModelBuilder, name: string, n: number): string =>
  m.floats(`b_${name}`, [n], biasValues(n));

export type Write = (m: ModelBuilder, name: string, w: Integers) => string;

/** Three projections that share one DynamicQuantizeLinear. */
export const build = (
  weights: readonly Integers[],
  write: Write,
  after?: (m: ModelBuilder, h: string) => void,
): Uint8Array =>
  layerOf(
    K,
    (m, h) => {
      quantize(m, h);
      return weights.map((w, i) => write(m, NAMES[i] ?? '', w));
    },
    { opsets, ...(after ? { after } : {}) },
  );

export function weightsFor(form: Form): Integers[] {
  return [8, 16, 16].map((n, i) => {
    const w = integers(K, n, 30 + i, K, form.zeroPoint === false);
    if (form.zeroPoint === false && form.unsigned) w.zeroPoint.fill(-128);
    if (!form.perTensor) return w;
    return { ...w, scale: w.scale.fill(w.scale[0] ?? 1), zeroPoint: w.zeroPoint.fill(w.zeroPoint[0] ?? 0) };
  });
}
