/** Stacks of norm + Q, K, V layers on the device: stock graph against fused graph, checked, then timed. */
import * as ort from 'onnxruntime-node';
import { uniform } from '../../../models/builder.js';
import type { BlockShape } from '../../../models/qkv_block.js';
import {
  PROBE,
  stackModel,
  stackParts,
  type StackForm,
  type StackWeights,
} from '../../../models/qkv_stack.js';
import { withQkvGemm } from '../../../ts/session/index.js';
import { relativeDifference } from '../difference.js';
import { interleaved } from '../../../ts/bench/timing.js';
import { copies, placement } from './profile.js';
import { scientific, type Report } from './report.js';

type Options = ort.InferenceSession.SessionOptions;

export const stackShapes: BlockShape[] = [
  { name: 'BERT-base', norm: 'layer_norm', k: 768, splits: [768, 768, 768], bias: true },
  { name: 'Llama-8B', norm: 'rms_norm', k: 4096, splits: [4096, 1024, 1024], bias: false },
];

export interface StackSettings {
  layers: number;
  rows: readonly number[];
  seconds: number;
  /** Options with the execution provider that is tested, and the name that the profile should show. */
  options: Options;
  provider: string;
}

/**
 * Both graphs round to float16 in different places: the stock graph its norm and every sum, the kernel the weights with
 * gamma in them. So the fused graph may be as far from the float32 reference as twice the stock graph, and neither
 * farther than this, of the largest output.
 */
const FACTOR = 2;
const MOST = 3e-2;

const inputOf = (m: number): ort.Tensor =>
  new ort.Tensor('float32', uniform(m * PROBE, 2, 5, 0.25), [m, PROBE]);

async function output(session: ort.InferenceSession, m: number): Promise<Float32Array> {
  const { y } = await session.run({ x: inputOf(m) }, ['y']);
  return y?.data as Float32Array;
}

/** Outputs of the reference, which computes in float32 with the weights as stored, by number of rows. */
async function references(
  model: Uint8Array,
  rows: readonly number[],
  options: Options,
): Promise<Float32Array[]> {
  // Unoptimised, or the casts of all weights would be done on the CPU when it is loaded.
  const session = await ort.InferenceSession.create(model, {
    ...options,
    graphOptimizationLevel: 'disabled',
  });
  const outputs: Float32Array[] = [];
  for (const m of rows) outputs.push(await output(session, m));
  await session.release();
  return outputs;
}

export async function checkStack(
  shape: BlockShape,
  weights: StackWeights,
  settings: StackSettings,
  report: Report,
): Promise<void> {
  const { layers, rows, seconds, options } = settings;
  const parts = stackParts(shape, weights);
  const create = (form: StackForm, depth = layers): Promise<ort.InferenceSession> => {
    const model = stackModel(parts, depth, form);
    return ort.InferenceSession.create(model, form === 'fused' ? withQkvGemm(options) : options);
  };
  const expected = await references(stackModel(parts, layers, 'reference'), rows, options);
  const [stock, fused, empty] = [await create('stock'), await create('fused'), await create('stock', 0)];
  const name = `${shape.name}, ${weights}`;
  const { k, n } = parts.block;
  report.heading(`${name} weights: ${layers} layers of K=${k}, N=${n}, ${shape.norm}, float16`);
  report.columns(
    'M',
    'stock us',
    'fused us',
    'faster',
    'a layer: stock',
    'fused',
    'error: stock',
    'fused',
    '',
  );
  for (const [i, m] of rows.entries()) {
    const reference = expected[i] ?? new Float32Array();
    const ofStock = relativeDifference(reference, await output(stock, m));
    const ofFused = relativeDifference(reference, await output(fused, m));
    const right = ofFused <= Math.min(FACTOR * ofStock, MOST) && ofStock <= MOST;
    const feeds = { x: inputOf(m) };
    const timings = await interleaved(
      [stock, fused, empty].map((s, at) => ({ name: String(at), run: () => s.run(feeds, ['probe']) })),
      { seconds },
    );
    const [a = NaN, b = NaN, none = NaN] = timings.map(({ median }) => median);
    const layer = (time: number): string => ((time - none) / layers).toFixed(1);
    report.row(
      m,
      a.toFixed(0),
      b.toFixed(0),
      `${(a / b).toFixed(2)}x`,
      layer(a),
      layer(b),
      scientific(ofStock),
      scientific(ofFused),
      report.check(
        right,
        `${name}, M=${m}: fused ${scientific(ofFused)} and stock ${scientific(ofStock)} from float32; ${FACTOR} times the stock's and ${MOST} are allowed`,
      ),
    );
  }
  for (const session of [stock, fused, empty]) await session.release();
  const placed = await placement(stackModel(parts, layers, 'fused'), [inputOf(16)], withQkvGemm(options));
  const count = placed.ops.QKVGemm ?? 0;
  console.log(
    `\nProfile: ${count} QKVGemm nodes on ${placed.providers.join(', ') || 'nothing'}, ${copies(placed)} Memcpy nodes.`,
  );
  report.check(
    count === layers && String(placed.providers) === settings.provider && copies(placed) === 0,
    `${name}: expected ${layers} QKVGemm nodes on ${settings.provider} and no Memcpy node, found ${JSON.stringify(placed)}`,
  );
}
