/** What a node costs before and behind its kernel, beside the least that a custom op can cost. */
import * as ort from 'onnxruntime-node';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { ModelBuilder, uniform } from '../../models/builder.js';
import { EPSILON } from '../../models/qkv_block.js';
import { interleaved } from '../../ts/bench/timing.js';
import { withCustomOps, withQkvGemm } from '../../ts/session/index.js';

const library = path.resolve(
  path.dirname(fileURLToPath(import.meta.url)),
  ...['..', '..', 'build', 'Release', 'libqkvgemm_no_op.so'],
);
const NODES = 64;
/** So few that the product takes no time to speak of. */
const COLUMNS = 8;

/** Nodes that have nothing to do with each other, so that a call's own cost is shared among many. */
function model(k: number, fused: boolean): Uint8Array {
  const domain = fused ? 'com.deepspeed' : 'com.deepspeed.bench';
  const builder = new ModelBuilder({ [domain]: 1 });
  builder.input('x', [1, k]);
  const inputs = ['x', builder.floats('w', [k, COLUMNS], uniform(k * COLUMNS, 0.1, 1))];
  inputs.push(
    builder.floats('gamma', [k], uniform(k, 0.5, 2, 1)),
    builder.floats('beta', [k], uniform(k, 0.5, 3)),
  );
  inputs.push(builder.floats('bias', [COLUMNS], uniform(COLUMNS, 0.5, 4)));
  for (let i = 0; i < NODES; i++) {
    if (fused)
      builder.node('QKVGemm', inputs, [`y${i}`], { domain, attributes: { epsilon: { float: EPSILON } } });
    else builder.node('NoOp', ['x'], [`y${i}`], { domain, attributes: { columns: { integer: COLUMNS } } });
    builder.output(`y${i}`, [1, COLUMNS]);
  }
  return builder.finish();
}

/**
 * Microseconds that a node of one row, LayerNorm, bias and eight columns takes more than a custom op that does nothing, norm
 * and product included: the medians of models of 64 such nodes, in turn.
 */
export async function nodeOverhead(
  k: number,
  seconds: number,
  options: ort.InferenceSession.SessionOptions,
): Promise<number> {
  const sessions = [
    await ort.InferenceSession.create(model(k, false), withCustomOps(options, [library])),
    await ort.InferenceSession.create(model(k, true), withQkvGemm(options)),
  ];
  const feeds = { x: new ort.Tensor('float32', uniform(k, 2, 5, 0.25), [1, k]) };
  const timings = await interleaved(
    sessions.map((session, i) => ({ name: i === 0 ? 'NoOp' : 'QKVGemm', run: () => session.run(feeds) })),
    { seconds },
  );
  for (const session of sessions) await session.release();
  const [none = NaN, fused = NaN] = timings.map(({ median }) => median);
  return (fused - none) / NODES;
}
