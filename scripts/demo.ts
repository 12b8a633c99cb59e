/**
 * Recognises a line of text with a pretrained transformer, as it is and fused, then times generated attention blocks.
 * Exits with 1 where a text is wrong or the two models disagree.
 *
 *   npm run demo [-- PICTURE.png TEXT]
 */
import fs from 'node:fs';
import { performance } from 'node:perf_hooks';
import { fileURLToPath } from 'node:url';
import Table from 'cli-table3';
import * as ort from 'onnxruntime-node';
import { describe } from '../ts/cli/fuse.js';
import { fuse, withQkvGemm } from '../ts/index.js';
import type { BlockShape } from '../models/qkv_block.js';
import { Comparison, type Measured } from './bench/compare.js';
import { machineLine } from '../ts/bench/machine.js';
import { relativeDifference } from './bench/difference.js';
import { duration, interleaved } from '../ts/bench/timing.js';
import { decode, lineTensor, readClasses, recogniserModel } from './demo/recogniser.js';

const fixture = fileURLToPath(new URL('../models/fixtures/text_line.png', import.meta.url));
const [picture = fixture, expected = 'Fused QKV GEMM 2026'] = process.argv.slice(2);
/** Of the largest output. */
const TOLERANCE = 2e-5;

const blocks: BlockShape[] = [
  {
    name: 'BERT-base (K=768, N=2304, LayerNorm, bias)',
    norm: 'layer_norm',
    k: 768,
    splits: [768, 768, 768],
    bias: true,
  },
  {
    name: 'Llama (K=4096, N=6144, RMSNorm)',
    norm: 'rms_norm',
    k: 4096,
    splits: [4096, 1024, 1024],
    bias: false,
  },
];

const start = performance.now();
function say(line: string): void {
  console.error(`[demo ${((performance.now() - start) / 1000).toFixed(0).padStart(2)} s] ${line}`);
}

/** @returns what is wrong, line by line. */
async function recognise(): Promise<string[]> {
  say('fusing the text recogniser (PP-OCRv4)');
  const original = fs.readFileSync(recogniserModel);
  const { model, report } = await fuse(original);
  console.log(`\nText recognition (PP-OCRv4)\n${describe(report, false)}\n`);

  say('recognising the picture with both models');
  const quiet: ort.InferenceSession.SessionOptions = { logSeverityLevel: 3 };
  const before = await ort.InferenceSession.create(original, quiet);
  const after = await ort.InferenceSession.create(model, withQkvGemm(quiet));
  const x = lineTensor(picture);
  const run = async (session: ort.InferenceSession): Promise<Float32Array> => {
    const results = await session.run({ [session.inputNames[0] as string]: x });
    return results[session.outputNames[0] as string]?.data as Float32Array;
  };
  const classes = readClasses();
  const scores = [await run(before), await run(after)] as const;
  const texts = scores.map((values) => decode(values, classes));
  const difference = relativeDifference(scores[0], scores[1]);
  const times = await interleaved(
    [
      { name: 'original', run: () => run(before) },
      { name: 'fused', run: () => run(after) },
    ],
    { seconds: 2 },
  );
  const table = new Table({ head: ['model', 'text read', 'median time'], style: { head: [], border: [] } });
  ['original', 'fused'].forEach((name, i) =>
    table.push([name, texts[i] ?? '', duration(times[i]?.median ?? NaN)]),
  );
  console.log(table.toString());
  console.log(`Largest difference of the outputs: ${difference.toExponential(1)} of the largest.`);
  await before.release();
  await after.release();

  const wrong: string[] = [];
  if (report.fused.length !== 2) wrong.push(`${report.fused.length} blocks were fused, expected 2.`);
  texts.forEach((text, i) => {
    if (text !== expected)
      wrong.push(`The ${i === 0 ? 'original' : 'fused'} model read '${text}', expected '${expected}'.`);
  });
  if (!(difference <= TOLERANCE))
    wrong.push(`The outputs differ by ${difference.toExponential(1)} of the largest, allowed ${TOLERANCE}.`);
  return wrong;
}

async function timeBlock(shape: BlockShape): Promise<void> {
  say(`${shape.name}: making weights and sessions`);
  const comparison = await Comparison.create(shape);
  const sizes = [1, 16, 128];
  const measured: Measured[][] = [];
  for (const m of sizes) {
    say(`${shape.name}: M=${m}, verifying and timing`);
    measured.push(await comparison.measure(m, { seconds: 3 }));
  }
  const overhead = await comparison.callOverhead();
  await comparison.release();
  const table = new Table({
    head: ['norm + Q, K, V', ...sizes.map((m) => `M=${m}`), 'difference'],
    style: { head: [], border: [] },
  });
  measured[0]?.forEach(({ name }, i) => {
    const stock = name === 'stock';
    const row = measured.map((all) => all[i] as Measured);
    table.push([
      stock ? 'stock graph, fp32' : `fused, ${name}`,
      ...row.map(({ timing, ratio }) => duration(timing.median) + (stock ? '' : `, ${ratio.toFixed(2)}x`)),
      stock ? '' : Math.max(...row.map(({ fromStock }) => fromStock)).toExponential(1),
    ]);
  });
  console.log(`\n${shape.name}\n${table.toString()}`);
  console.log(`Times include the call from JavaScript, ${duration(overhead.median)} by itself.`);
}

console.log(machineLine());
try {
  const wrong = await recognise();
  if (wrong.length > 0) throw new Error(wrong.join('\n'));
  say('both models read the text right, and their outputs agree');
  for (const shape of blocks) await timeBlock(shape);
  console.log(
    '\nMedian times at M rows (tokens) at a time, with the speed against the stock graph. The difference is relative to the\n' +
      'largest output of the stock graph; for fp16, bf16 and int8 it is the rounding of the weights. Each result was first\n' +
      'checked against float64.',
  );
  say('done');
} catch (error) {
  console.error(`demo failed: ${(error as Error).message}`);
  process.exitCode = 1;
}
