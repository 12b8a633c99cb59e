/**
 * The operands of a fused node whose projections have integer weights already: the integers, scales and zero points of
 * the model, side by side along N. Nothing is quantised anew.
 */
import { DataType, InlineStore, MAX_TENSOR, type DataSource, type TensorStore } from '../../onnx/tensor.js';
import type { GraphIndex } from '../graph_index.js';
import { fail, type Match } from '../match.js';
import type { Projection } from '../projections/projection.js';
import { storedName, type Weights, type WeightsFailure } from './assemble.js';
import { commonBlock, SHORTEST_BLOCK, type Quantization } from './quantization.js';
import { sideBySide } from './side_by_side.js';

const bytesOf = (data: ArrayBufferView): Uint8Array =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/**
 * @param projections of one node, in order.
 * @param base names begin with this.
 * @param store takes the new matrix.
 * @returns a failure where only some of the weights are integers: floats are rounded where the user asks for it, and not
 *   because their neighbours are.
 */
export function carryQuantized(
  index: GraphIndex,
  projections: readonly Projection[],
  base: string,
  unique: (name: string) => string,
  source?: DataSource,
  store: TensorStore = new InlineStore(),
): Match<Weights> | WeightsFailure {
  const integers = projections.flatMap((p) =>
    p.quantization ? [{ ...p, quantization: p.quantization }] : [],
  );
  const float = projections.find((p) => !p.quantization);
  const [first] = integers;
  if (!first || float) {
    return fail(
      `the weight '${float?.weight.name}' is no integer, '${first?.weight.name}' is: one node has one type of weights`,
      float?.node,
    );
  }
  const { k } = first;
  const n = integers.reduce((sum, p) => sum + p.n, 0);
  let block = k;
  for (const [i, p] of integers.entries()) {
    const common = commonBlock(block, p.quantization.block);
    const shortest = Math.min(...integers.slice(0, i + 1).map(({ quantization }) => quantization.block));
    if (common < Math.min(SHORTEST_BLOCK, shortest)) {
      const lengths = integers.map(({ quantization }) => quantization.block).join(', ');
      const reason = `blocks of ${lengths} rows have no common divisor of ${SHORTEST_BLOCK} or more`;
      return { ...fail(reason, first.node), culprit: projections[i] ?? p };
    }
    block = common;
  }
  const sources = integers.map((p) => p.weight.tensor.origin);
  for (const tensor of sources) tensor.checkedLength(source); // before anything of their size is allocated
  if (k * n > MAX_TENSOR)
    return fail(`the weights together have ${k * n} bytes, expected at most ${MAX_TENSOR}`, first.node);
  const layout = joinScales(integers, k, block);
  const dims = block === k ? [n] : [k / block, n];
  const initializers: Uint8Array[][] = [];
  const add = (what: string, type: number, shape: readonly number[], data: Uint8Array): string => {
    const name = unique(`${base}.${what}`);
    initializers.push(store.add(name, type, shape, data, sources));
    return name;
  };
  const transposed = integers.every((p) => p.weightTransposed);
  const { tensor } = first.weight;
  const existing = storedName(index, first.weight);
  const asStored = integers.length === 1 && tensor.type === DataType.int8 && tensor.dims.length === 2;
  const weight =
    existing !== undefined && asStored
      ? existing
      : add(
          'weight',
          DataType.int8,
          transposed ? [n, k] : [k, n],
          sideBySide(
            integers.map((p) => ({ bytes: int8Of(p, source), n: p.n, transposed: p.weightTransposed })),
            k,
            1,
            transposed,
          ),
        );
  const scale = add('scale', DataType.float, dims, bytesOf(layout.scale));
  const zeroPoint = layout.zeroPoint && add('zero_point', DataType.int8, dims, bytesOf(layout.zeroPoint));
  return {
    ok: true,
    value: {
      weight,
      type: DataType.int8,
      transposed,
      scale,
      ...(zeroPoint === undefined ? {} : { zeroPoint }),
      scaleBlock: block,
      initializers,
    },
  };
}

/** Elements of a weight as int8 (a uint8 less 128), [N, K] or [K, N]; what pads rows of [N, K] to whole blocks is left out. */
export function int8Of({ weight, k, n, weightTransposed }: Projection, source?: DataSource): Uint8Array {
  const { tensor } = weight;
  let bytes = tensor.bytes(source);
  const stored = tensor.count / n;
  if (weightTransposed && stored > k) {
    const rows = bytes;
    bytes = new Uint8Array(n * k);
    for (let row = 0; row < n; row++) bytes.set(rows.subarray(row * stored, row * stored + k), row * k);
  }
  // Flipping the highest bit subtracts 128 in two's complement.
  return tensor.type === DataType.uint8 ? bytes.map((byte) => byte ^ 0x80) : bytes;
}

/** [K / block, N] of all projections, longer blocks repeated. */
function joinScales(
  projections: readonly (Projection & { quantization: Quantization })[],
  k: number,
  block: number,
): { scale: Float32Array; zeroPoint: Int8Array | undefined } {
  const n = projections.reduce((sum, p) => sum + p.n, 0);
  const scale = new Float32Array((k / block) * n);
  const zero = projections.some((p) => p.quantization.zeroPoint) ? new Int8Array(scale.length) : undefined;
  for (let b = 0; b < k / block; b++) {
    let at = b * n;
    for (const { n: width, alpha, quantization } of projections) {
      const from = Math.floor((b * block) / quantization.block) * width;
      for (let column = 0; column < width; column++, at++) {
        // Gemm's alpha is 1 as a rule; else the product is rounded to float32 once, as Gemm itself rounds alpha's.
        scale[at] = (quantization.scale[from + column] ?? NaN) * alpha;
        if (zero) zero[at] = quantization.zeroPoint?.[from + column] ?? 0;
      }
    }
  }
  return { scale, zeroPoint: zero };
}
