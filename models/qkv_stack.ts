/**
 * Layers of norm + query, key and value projections in float16, one behind the other: the stock graph, the fused one, and
 * the same in float32 as a reference. Weights are float16, or int8 with a scale for each column, which the stock graph
 * holds dequantised.
 *
 * A layer's outputs are added up to the next layer's input, which costs little beside the projections and leaves nothing
 * to be optimised away. Callers feed and fetch a few columns in float32, so that copies to and from a device are small.
 */
import { DataType } from '../ts/onnx/tensor.js';
import { DOMAIN, OP } from '../ts/rewrite/function_body.js';
import { fromFloat32 } from '../ts/rewrite/weights/convert.js';
import { ModelBuilder, uniform } from './builder.js';
import {
  addNorm,
  EPSILON,
  makeBlock,
  OUTPUTS,
  storedOperands,
  type Block,
  type BlockShape,
} from './qkv_block.js';

const { float, float16, int8 } = DataType;

/** Columns of the input `x` and the output `probe`. */
export const PROBE = 16;

export type StackForm = 'stock' | 'fused' | 'reference';
export type StackWeights = 'fp16' | 'int8';

type Bytes = Uint8Array<ArrayBuffer>;

/** The matrices and vectors of one layer; the others have the same with their rows exchanged. */
export interface StackParts {
  block: Block;
  weights: StackWeights;
  /** [K, N], in float16 or int8. */
  packed: Bytes;
  /** [K, columns] of each projection, in float16: what the stock graph multiplies. */
  projections: Bytes[];
  /** Of int8 weights, [N]. */
  scale: Float32Array<ArrayBuffer>;
}

/** Generates the weights, once for all forms. */
export function stackParts(shape: BlockShape, weights: StackWeights): StackParts {
  const block = makeBlock(shape);
  const { k, n, splits } = block;
  const { weight, scale } = storedOperands(block, weights);
  const scales = scale?.values ?? new Float32Array();
  const exact = scale ? weight.values.map((value, i) => value * (scales[i % n] ?? NaN)) : weight.values;
  const projections: Bytes[] = [];
  let start = 0;
  for (const columns of splits) {
    const part = new Float32Array(k * columns);
    for (let row = 0; row < k; row++)
      part.set(exact.subarray(row * n + start, row * n + start + columns), row * columns);
    projections.push(fromFloat32(part, float16));
    start += columns;
  }
  const packed =
    weights === 'int8'
      ? new Uint8Array(new Int8Array(weight.values).buffer)
      : fromFloat32(weight.values, float16);
  return { block, weights, packed, projections, scale: scales };
}

/** Rows moved down by `shift`, the last ones to the top: other numbers in other memory at the cost of a copy. */
function moved(matrix: Bytes, rows: number, shift: number): Bytes {
  const at = (shift % rows) * (matrix.byteLength / rows);
  const result = new Uint8Array(matrix.byteLength);
  result.set(matrix.subarray(0, matrix.byteLength - at), at);
  result.set(matrix.subarray(matrix.byteLength - at), 0);
  return result;
}

/** A model x [M, PROBE] -> y [M, K], probe [M, PROBE], all float32. */
export function stackModel(parts: StackParts, layers: number, form: StackForm): Uint8Array {
  const { k } = parts.block;
  const type = form === 'reference' ? float : float16;
  const model = new ModelBuilder({ [DOMAIN]: 1 });
  model.input('x', ['M', PROBE]);
  model.output('y', ['M', k]);
  model.output('probe', ['M', PROBE]);
  const wide = model.node('Tile', ['x', model.integers('repeats', [2], [1, k / PROBE])], ['wide']);
  const pattern = model.floats('pattern', [k], uniform(k, 0.5, 7, 1));
  let h = cast(model, model.node('Mul', [wide, pattern], ['patterned']), type, 'h0');
  for (let layer = 0; layer < layers; layer++) h = addLayer(model, parts, layer, form, h);
  // By way of y, which is not copied to the host unless it is fetched.
  cast(model, h, float, 'y');
  const bounds = [model.integers('from', [1], [0]), model.integers('to', [1], [PROBE])];
  model.node('Slice', ['y', ...bounds, model.integers('axis', [1], [1])], ['probe']);
  return model.finish();
}

function addLayer(model: ModelBuilder, parts: StackParts, layer: number, form: StackForm, h: string): string {
  const { block } = parts;
  const { norm, operands } = block;
  const own = (name: string): string => `l${layer}_${name}`;
  // Vectors are those of float16 in every form.
  const vector = (name: 'gamma' | 'beta' | 'bias'): string => {
    const operand = operands[name];
    if (!operand) return '';
    const stored = model.tensor(own(name), float16, operand.dims, fromFloat32(operand.values, float16));
    return form === 'reference' ? cast(model, stored, float, own(`${name}_float`)) : stored;
  };
  const [gamma, beta, bias] = [vector('gamma'), vector('beta'), vector('bias')];
  const outputs = OUTPUTS.map(own);
  if (form === 'fused') {
    addFused(model, parts, layer, [h, gamma, beta, bias], outputs);
  } else {
    const normalised = addNorm(model, norm, [h, gamma, ...(beta ? [beta] : [])], own('normalised'));
    addProjections(model, parts, layer, form, [normalised, bias], outputs);
  }
  return connect(model, block, outputs, own('h'));
}

function addFused(
  model: ModelBuilder,
  { block: { norm, k, n, splits }, weights, packed, scale }: StackParts,
  layer: number,
  [h = '', gamma = '', beta = '', bias = '']: readonly string[],
  [q = '', ...others]: readonly string[],
): void {
  const shift = shiftOf(layer);
  const weight = model.tensor(
    `l${layer}_w`,
    weights === 'int8' ? int8 : float16,
    [k, n],
    moved(packed, k, shift),
  );
  const inputs = [h, weight, gamma, beta, bias];
  if (weights === 'int8') inputs.push(model.floats(`l${layer}_scale`, [n], scale));
  while (inputs.at(-1) === '') inputs.pop();
  model.node(OP, inputs, [q, '', ...others], {
    domain: DOMAIN,
    name: `l${layer}_qkv`,
    attributes: {
      norm_type: { string: norm },
      epsilon: { float: EPSILON },
      splits: { integers: splits },
    },
  });
}

/** The layers' rows are moved by different distances. */
const shiftOf = (layer: number): number => layer * 97;

function addProjections(
  model: ModelBuilder,
  { block: { k, n, splits }, weights, packed, projections, scale }: StackParts,
  layer: number,
  form: StackForm,
  [normalised = '', bias = '']: readonly string[],
  outputs: readonly string[],
): void {
  const own = (name: string): string => `l${layer}_${name}`;
  const shift = shiftOf(layer);
  if (form === 'reference') {
    // One product with the weights as they are stored, in float32.
    const stored = model.tensor(
      own('w'),
      weights === 'int8' ? int8 : float16,
      [k, n],
      moved(packed, k, shift),
    );
    let weight = cast(model, stored, float, own('w_float'));
    if (weights === 'int8')
      weight = model.node('Mul', [weight, model.floats(own('scale'), [n], scale)], [own('w_scaled')]);
    let product = model.node('MatMul', [normalised, weight], [own('product')]);
    if (bias) product = model.node('Add', [product, bias], [own('sum')]);
    const attributes = { axis: { integer: -1 } };
    model.node('Split', [product, model.integers(own('splits'), [3], splits)], outputs, { attributes });
    return;
  }
  const biases = bias ? splits.map((_, i) => own(`bias_${i}`)) : [];
  if (bias) {
    // Slices of the one vector, which ONNX Runtime folds when it loads the model.
    model.node('Split', [bias, model.integers(own('splits'), [3], splits)], biases);
  }
  projections.forEach((projection, i) => {
    const output = outputs[i] ?? '';
    const dims = [k, splits[i] ?? 0];
    const weight = model.tensor(own(`w${i}`), float16, dims, moved(projection, k, shift));
    const product = model.node('MatMul', [normalised, weight], [bias ? `${output}_product` : output]);
    const added = biases[i];
    if (added !== undefined) model.node('Add', [product, added], [output]);
  });
}

/** The sum of the three, the narrower ones repeated: an input for the next layer. */
function connect(
  model: ModelBuilder,
  { k, splits }: Block,
  [q = '', key = '', value = '']: readonly string[],
  name: string,
): string {
  const columns = splits[1];
  const repeats = k / (2 * columns);
  const others =
    columns === k
      ? model.node('Add', [key, value], [`${name}_kv`])
      : model.node('Concat', Array.from({ length: repeats }, () => [key, value]).flat(), [`${name}_kv`], {
          attributes: { axis: { integer: -1 } },
        });
  return model.node('Add', [q, others], [name]);
}

function cast(model: ModelBuilder, value: string, type: number, name: string): string {
  return model.node('Cast', [value], [name], { attributes: { to: { integer: type } } });
}
