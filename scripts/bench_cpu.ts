/**
 * The op on the CPU against the stock graph: norm + query, key and value projections with bias, two threads.
 *
 *   npm run bench:cpu [-- --seconds S] [--threads T] [--k 768|4096] [--m 1,8,128,512]
 *
 * Prints a markdown table; every result is checked before it is timed, and a wrong one ends the run with exit code 1.
 */
import { parseArgs } from 'node:util';
import type { BlockShape } from '../models/qkv_block.js';
import { Comparison, TOLERANCE, type Measured } from './bench/compare.js';
import { lastLevelCache, machineLine } from '../ts/bench/machine.js';
import { duration } from '../ts/bench/timing.js';

const shapes: BlockShape[] = [768, 4096].map((k) => ({
  name: `K=${k}, N=${3 * k}`,
  norm: 'layer_norm',
  k,
  splits: [k, k, k],
  bias: true,
}));

function row(block: { k: number; n: number }, result: Measured): string {
  const { median, p10, p90, samples } = result.timing;
  const flops = 2 * result.m * block.k * block.n;
  const cells = [
    result.m,
    result.name === 'stock' ? 'stock graph fp32' : `QKVGemm ${result.name}`,
    median.toFixed(1),
    `${p10.toFixed(1)} - ${p90.toFixed(1)}`,
    samples,
    (result.weightBytes / median / 1e3).toFixed(1),
    (flops / median / 1e3).toFixed(1),
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
): Promise<void> {
  const started = Date.now();
  const say = (line: string): void =>
    console.error(`[${shape.name}, ${((Date.now() - started) / 1000).toFixed(0)} s] ${line}`);
  say('making weights and sessions');
  const comparison = await Comparison.create(shape, {
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    executionMode: 'sequential',
  });
  const rows: string[] = [];
  for (const m of ms) {
    say(`M=${m}: verifying and timing`);
    const results = await comparison.measure(m, { seconds });
    rows.push(...results.map((result) => row(comparison.block, result)));
  }
  const overhead = await comparison.callOverhead();
  await comparison.release();
  console.log(`\n### ${shape.name}, LayerNorm, bias, ${threads} threads\n`);
  const bytes = comparison.block.operands.weight.values.byteLength;
  const cache = lastLevelCache();
  const fits = (size: number): string =>
    `${(size / 1e6).toFixed(0)} MB${cache === undefined ? '' : size <= cache ? ' (fits L3)' : ' (does not fit L3)'}`;
  console.log(
    `Weights: fp32 ${fits(bytes)}, fp16 and bf16 ${fits(bytes / 2)}, int8 ${fits(bytes / 4)}. ` +
      'Those that fit stay in the cache from call to call, and their GB/s is no measure of memory.',
  );
  console.log(
    `Times in microseconds per call from JavaScript, of which the call itself takes ${duration(overhead.median)}.\n`,
  );
  console.log(
    '| M | | median | P10 - P90 | samples | weights GB/s | GFLOP/s | times stock | error | against stock |',
  );
  console.log('|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|');
  for (const line of rows) console.log(line);
}

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '15' },
    threads: { type: 'string', default: '2' },
    k: { type: 'string' },
    m: { type: 'string', default: '1,8,128,512' },
  },
});
const seconds = Number(values.seconds);
const threads = Number(values.threads);
const ms = values.m.split(',').map(Number);
const chosen = shapes.filter(({ k }) => values.k === undefined || k === Number(values.k));
if (
  !(seconds > 0) ||
  !Number.isInteger(threads) ||
  threads < 1 ||
  chosen.length === 0 ||
  !ms.every((m) => Number.isInteger(m) && m > 0)
) {
  console.error(
    'bench:cpu: expected --seconds > 0, --threads >= 1, --k 768 or 4096 and --m with numbers of rows.',
  );
  process.exitCode = 2;
} else {
  console.log(machineLine());
  try {
    for (const shape of chosen) await bench(shape, ms, threads, seconds);
  } catch (error) {
    console.error(`bench:cpu failed: ${(error as Error).message}`);
    process.exit(1);
  }
  console.log(
    '\nOf each row: samples are taken in turn over the five; a sample is one call, or several within 4 ms. "times stock" is the\n' +
      'stock graph\'s median over the row\'s in the same run. "error" is the largest difference from float64 with the stored\n' +
      `weights at sampled rows and columns, of the largest output (more than ${TOLERANCE} ends the run); "against stock" is that of\n` +
      'all outputs from the stock graph, so that it holds the rounding of the weights.',
  );
}
