/**
 * The op on the CPU against the stock graph, and against what ONNX Runtime has for 8-bit weights: norm + query, key and value
 * projections with bias, two threads.
 *
 *   npm run bench:cpu [-- --seconds S] [--threads T] [--k 768,4096] [--n 2304,12288] [--m 1,8,128,512] [--no-peers]
 *
 * Prints a markdown table; every result is checked before it is timed, and a wrong one ends the run with exit code 1.
 */
import { parseArgs } from 'node:util';
import type { BlockShape } from '../models/qkv_block.js';
import { Comparison, TOLERANCE, type Measured } from './bench/compare.js';
import { nodeOverhead } from './bench/node_overhead.js';
import { measureLimits, type Limits } from './bench/limits.js';
import { lastLevelCache, machineLine } from '../ts/bench/machine.js';
import { duration } from '../ts/bench/timing.js';

const shape = (k: number, splits: BlockShape['splits'], norm: BlockShape['norm']): BlockShape => ({
  name: `K=${k}, N=${splits.reduce((sum, columns) => sum + columns, 0)}`,
  ...{ norm, k, splits },
  bias: true,
});
/** BERT-base, Llama 1B, Llama 8B, that without shared keys, Llama 70B. */
const SHAPES = [
  shape(768, [768, 768, 768], 'layer_norm'),
  shape(2048, [2048, 512, 512], 'rms_norm'),
  shape(4096, [4096, 1024, 1024], 'rms_norm'),
  shape(4096, [4096, 4096, 4096], 'layer_norm'),
  shape(8192, [8192, 1024, 1024], 'rms_norm'),
];

/** Elements of a row up to which a node's own time is measured: beyond, it is that of reading weights. */
const MOST_CACHED = 1024;

/** GFLOP/s of the products that a contender's weights are made for. */
function peakOf(name: Measured['name'], { gflops }: Limits): number {
  if (name === 'bf16') return gflops.bfloat16 ?? gflops.float;
  const integers = name === 'int8' || name === 'int8 x int8' || name.includes('MatMul');
  return (integers ? gflops.int8 : undefined) ?? gflops.float;
}

function labelOf(name: Measured['name']): string {
  if (name === 'stock' || name === 'stock fp16') return `stock graph ${name === 'stock' ? 'fp32' : 'fp16'}`;
  return name.includes('MatMul') ? name : `QKVGemm ${name}`;
}

function row(block: { k: number; n: number }, result: Measured, limits: Limits): string {
  const { median, p10, p90, samples } = result.timing;
  const flops = 2 * result.m * block.k * block.n;
  const bandwidth = result.weightBytes / median / 1e3;
  const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;
  const cells = [
    result.m,
    labelOf(result.name),
    median.toFixed(1),
    `${p10.toFixed(1)} - ${p90.toFixed(1)}`,
    samples,
    bandwidth.toFixed(1),
    percent(bandwidth / limits.gbPerSecond),
    (flops / median / 1e3).toFixed(1),
    percent(flops / median / 1e3 / peakOf(result.name, limits)),
    result.ratio.toFixed(2),
    result.fromReference.toExponential(1),
    result.fromStock.toExponential(1),
  ];
  return `| ${cells.join(' | ')} |`;
}

async function bench(
  shape: BlockShape,
  ms: readonly number[],
  threads: number,
  seconds: number,
  peers: boolean,
): Promise<void> {
  const started = Date.now();
  const say = (line: string): void =>
    console.error(`[${shape.name}, ${((Date.now() - started) / 1000).toFixed(0)} s] ${line}`);
  say('making weights and sessions');
  const sessionOptions = {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    executionMode: 'sequential',
  } as const;
  const comparison = await Comparison.create(shape, sessionOptions, { peers });
  const limits = measureLimits(threads);
  const rows: string[] = [];
  for (const m of ms) {
    say(`M=${m}: verifying and timing`);
    const results = await comparison.measure(m, { seconds });
    rows.push(...results.map((result) => row(comparison.block, result, limits)));
  }
  const overhead = await comparison.callOverhead();
  await comparison.release();
  const more =
    shape.k <= MOST_CACHED ? await nodeOverhead(shape.k, Math.min(seconds, 2), sessionOptions) : NaN;
  console.log(
    `\n### ${shape.name}, ${shape.norm === 'layer_norm' ? 'LayerNorm' : 'RMSNorm'}, bias, ${threads} threads\n`,
  );
  const bytes = comparison.block.operands.weight.values.byteLength;
  const cache = lastLevelCache();
  const fits = (size: number): string =>
    `${(size / 1e6).toFixed(0)} MB${cache === undefined ? '' : size <= cache ? ' (fits L3)' : ' (does not fit L3)'}`;
  console.log(
    `Weights: fp32 ${fits(bytes)}, fp16 and bf16 ${fits(bytes / 2)}, int8 ${fits(bytes / 4)}. ` +
      'Those that fit stay in the cache from call to call, and their GB/s is no measure of memory.',
  );
  console.log(
    `Limits, measured before: ${limits.gbPerSecond} GB/s read from memory; of registers, in GFLOP/s, ${Object.entries(
      limits.gflops,
    )
      .map(([type, rate]) => `${type} ${rate}`)
      .join(', ')} (${limits.isa}).`,
  );
  console.log(
    `Times in microseconds per call from JavaScript, of which the call itself takes ${duration(overhead.median)}.` +
      (Number.isNaN(more)
        ? '\n'
        : ` A node of one row and eight columns, norm included, takes ${more.toFixed(1)} us more than a custom op that does nothing.\n`),
  );
  console.log(
    '| M | | median | P10 - P90 | samples | weights GB/s | of memory | GFLOP/s | of peak | times stock | error | against stock |',
  );
  console.log('|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|');
  for (const line of rows) console.log(line);
}

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '15' },
    threads: { type: 'string', default: '2' },
    k: { type: 'string' },
    n: { type: 'string' },
    'no-peers': { type: 'boolean', default: false },
    m: { type: 'string', default: '1,8,128,512' },
  },
});
const seconds = Number(values.seconds);
const threads = Number(values.threads);
const ms = values.m.split(',').map(Number);
const wanted = (list: string | undefined, number: number): boolean =>
  list === undefined || list.split(',').map(Number).includes(number);
const chosen = SHAPES.filter(
  ({ k, splits }) =>
    wanted(values.k, k) &&
    wanted(
      values.n,
      splits.reduce((sum, columns) => sum + columns, 0),
    ),
);
if (
  !(seconds > 0) ||
  !Number.isInteger(threads) ||
  threads < 1 ||
  chosen.length === 0 ||
  !ms.every((m) => Number.isInteger(m) && m > 0)
) {
  console.error(
    `bench:cpu: expected --seconds > 0, --threads >= 1, --m with numbers of rows, and --k and --n of ${SHAPES.map(({ name }) => name).join('; ')}.`,
  );
  process.exitCode = 2;
} else {
  console.log(machineLine());
  try {
    for (const shape of chosen) await bench(shape, ms, threads, seconds, !values['no-peers']);
  } catch (error) {
    console.error(`bench:cpu failed: ${(error as Error).message}`);
    process.exit(1);
  }
  console.log(
    '\nOf each row: samples are taken in turn over all of them; a sample is one call, or several within 4 ms. "times stock" is the\n' +
      'stock graph\'s median over the row\'s in the same run. "error" is the largest difference from float64 with the stored\n' +
      `weights at sampled rows and columns, of the largest output (more than ${TOLERANCE}, and what rows are rounded, ends the run); "against stock" is that of\n` +
      'all outputs from the stock graph, so that it holds the rounding of the weights. "of peak" is of the registers\' products of the type that the weights are made for;\n' +
      'rows of two int8 digits, which int8 weights have without activation_quant, need each product twice.',
  );
}
