/** The stock graph of a block against the fused node with each weight type: verified, then timed. */
import * as ort from 'onnxruntime-node';
import { withQkvGemm } from '../../ts/session/index.js';
import { uniform } from '../../models/builder.js';
import {
  emptyModel,
  fusedModel,
  makeBlock,
  OUTPUTS,
  stockModel,
  storedOperands,
  weightBytes,
  weightTypes,
  type Block,
  type BlockShape,
  type BlockWeightType,
} from '../../models/qkv_block.js';
import { dynamicModel, halfModel, nbitsModel } from '../../models/qkv_peers.js';
import type { Operands } from '../../models/qkv_gemm.js';
import { DataType } from '../../ts/onnx/tensor.js';
import { fuseBytes } from '../../ts/rewrite/fuse.js';
import { relativeDifference } from './difference.js';
import { roundingOf } from './rounding.js';
import { pick, sampledOperands, sampledReference, sampleOf } from './sample.js';
import { interleaved, type Timing, type TimingOptions } from '../../ts/bench/timing.js';

/**
 * Largest difference allowed, of the largest output: from the float64 result with the weights as stored, beside what
 * kernels round of the rows.
 */
export const TOLERANCE = 2e-5;

/**
 * What rows rounded to 8 bits may cost, which are a hundred times as coarse as the weights' own rounding allows for; and sums
 * in float16, which is how ONNX Runtime's CPU provider multiplies such tensors on some processors.
 */
const ROUNDED_TOLERANCE = 5e-2;

/** ONNX Runtime multiplies float16 on the CPU some hundred times as slowly as float32: more would be all that a run does. */
const MOST_HALF_PRODUCTS = 8 * 768 * 2304;

/** What one contender may be away. */
export function toleranceOf(name: Contender['name']): number {
  if (name === 'stock fp16' || (QUANTISED as readonly string[]).includes(name)) return ROUNDED_TOLERANCE;
  const types: Partial<Record<Contender['name'], number>> = { bf16: DataType.bfloat16, int8: DataType.int8 };
  return TOLERANCE + roundingOf(types[name] ?? DataType.float);
}

/**
 * Those whose rows or weights are rounded to 8 bits otherwise than the int8 node's: this operator asked to, ONNX Runtime's
 * operators for such weights, and what the rewriter makes of those.
 */
const QUANTISED = [
  'int8 x int8',
  'MatMulNBits',
  'fused MatMulNBits',
  'DynamicQuantizeMatMul',
  'fused DynamicQuantizeMatMul',
] as const;

export interface Contender {
  name: 'stock' | 'stock fp16' | BlockWeightType | (typeof QUANTISED)[number];
  session: ort.InferenceSession;
  /** Bytes of weights that a call reads. */
  weightBytes: number;
  /** Of the columns that are checked, the weight as stored. */
  sampled: Operands;
}

export interface Measured {
  name: Contender['name'];
  m: number;
  timing: Timing;
  /** Time of the stock graph over this one's. */
  ratio: number;
  weightBytes: number;
  /** Of the largest output: from float64 with the stored weights, and from the stock graph's whole output. */
  fromReference: number;
  fromStock: number;
}

export class Comparison {
  private constructor(
    readonly block: Block,
    private readonly contenders: readonly Contender[],
    private readonly empty: ort.InferenceSession,
  ) {}

  /** Builds the models one after another, so that only one lies in memory beside the sessions. */
  static async create(
    shape: BlockShape,
    options: ort.InferenceSession.SessionOptions = {},
    { peers = false } = {},
  ): Promise<Comparison> {
    const block = makeBlock(shape);
    const contenders: Contender[] = [];
    const add = (name: Contender['name'], session: ort.InferenceSession, operands: Operands): void => {
      const sampled = sampledOperands(block, operands, sampleOf(block, 1));
      contenders.push({ name, session, weightBytes: weightBytes(operands), sampled });
    };
    const stock = await ort.InferenceSession.create(stockModel(block), options);
    add('stock', stock, block.operands);
    for (const name of weightTypes) {
      const operands = storedOperands(block, name);
      const session = await ort.InferenceSession.create(fusedModel(block, operands), withQkvGemm(options));
      add(name, session, operands);
    }
    if (peers) {
      const int8 = storedOperands(block, 'int8');
      const own = fusedModel(block, int8, { activationQuant: true });
      add('int8 x int8', await ort.InferenceSession.create(own, withQkvGemm(options)), int8);
      const half = await ort.InferenceSession.create(halfModel(block), options);
      add('stock fp16', half, storedOperands(block, 'fp16'));
      for (const [name, model] of [
        ['MatMulNBits', nbitsModel(block)],
        ['DynamicQuantizeMatMul', dynamicModel(block)],
      ] as const) {
        add(name, await ort.InferenceSession.create(model, options), int8);
        const fused = fuseBytes(model, { targets: ['qkv', 'mlp'] });
        if (fused.report.fused.length !== 1)
          throw new Error(`the ${name} model was not fused: ${JSON.stringify(fused.report.refused)}`);
        add(`fused ${name}`, await ort.InferenceSession.create(fused.model, withQkvGemm(options)), int8);
      }
    }
    return new Comparison(block, contenders, await ort.InferenceSession.create(emptyModel(shape), options));
  }

  /**
   * Verifies all contenders at `m` rows, then times them in turn.
   * @throws Error where an output is off by more than `toleranceOf` allows.
   */
  async measure(m: number, timing: TimingOptions): Promise<Measured[]> {
    const x = uniform(m * this.block.k, 2, 5, 0.25);
    const feeds = { x: new ort.Tensor('float32', x, [m, this.block.k]) };
    const sample = sampleOf(this.block, m);
    const checks: { fromReference: number; fromStock: number }[] = [];
    let stock: Float32Array[] = [];
    const contenders = this.contenders.filter(
      ({ name }) => name !== 'stock fp16' || m * this.block.k * this.block.n <= MOST_HALF_PRODUCTS,
    );
    for (const { name, session, sampled } of contenders) {
      const results = await session.run(feeds);
      const outputs = OUTPUTS.map((output) => results[output]?.data as Float32Array);
      if (name === 'stock') stock = outputs;
      const expected = sampledReference(this.block, sampled, x, sample);
      const fromReference = relativeDifference(expected, pick(this.block, outputs, sample));
      const tolerance = toleranceOf(name);
      if (!(fromReference <= tolerance)) {
        throw new Error(
          `${this.block.name}, M=${m}, ${name}: ${fromReference.toExponential(1)} of the largest output away from the float64 result; ${tolerance.toExponential(1)} is allowed.`,
        );
      }
      const fromStock = Math.max(...stock.map((o, i) => relativeDifference(o, outputs[i] ?? [])));
      checks.push({ fromReference, fromStock });
    }
    const timings = await interleaved(
      contenders.map(({ name, session }) => ({ name, run: () => session.run(feeds) })),
      timing,
    );
    const first = timings[0]?.median ?? NaN;
    return contenders.map(({ name, weightBytes }, i) => {
      const own = timings[i] as Timing;
      const check = checks[i] as { fromReference: number; fromStock: number };
      return { name, m, timing: own, ratio: first / own.median, weightBytes, ...check };
    });
  }

  /** What a call from JavaScript costs without any work: part of every time. */
  async callOverhead(): Promise<Timing> {
    const feeds = { x: new ort.Tensor('float32', new Float32Array(this.block.k), [1, this.block.k]) };
    const run = (): Promise<unknown> => this.empty.run(feeds);
    const [timing] = await interleaved([{ name: 'empty', run }], { seconds: 0.5 });
    return timing as Timing;
  }

  async release(): Promise<void> {
    for (const { session } of this.contenders) await session.release();
    await this.empty.release();
  }
}
