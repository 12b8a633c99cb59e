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
const NODES = 8;
/** So few that the product takes no time to speak of. */
const COLUMNS = 8;

/** Nodes that have nothing to do with each other; so few that all their weights stay in a processor's own cache. */
function model(k: number, fused: boolean): Uint8Array {
  const domain = fused ? 'com.deepspeed' : 'com.deepspeed.bench';
  const builder = new ModelBuilder({ [domain]: 1 });
  builder.input('x', [1, k]);
  const operand = (name: string, ...dims: readonly number[]): string =>
    builder.floats(
      name,
      dims,
      uniform(
        dims.reduce((product, dim) => product * dim, 1),
        0.1,
        dims.length,
      ),
    );
  const operands = (): string[] => [
    operand('weight', k, COLUMNS),
    ...[operand('gamma', k), operand('beta', k), operand('bias', COLUMNS)],
  ];
  const inputs = ['x', ...(fused ? operands() : [])];
  for (let i = 0; i < NODES; i++) {
    const attributes = fused ? { epsilon: { float: EPSILON } } : { columns: { integer: COLUMNS } };
    builder.node(fused ? 'QKVGemm' : 'NoOp', inputs, [`y${i}`], { domain, attributes });
    builder.output(`y${i}`, [1, COLUMNS]);
  }
  return builder.finish();
}

/**
 * Microseconds that a node of one row, LayerNorm, bias and eight columns takes more than a custom op that does nothing, norm
 * and product included: the medians of models of eight such nodes, in turn.
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
