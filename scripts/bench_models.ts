/**
 * Whole models on the CPU, stock in float32 against what the rewriter makes of all their projections (`--targets
 * qkv,mlp,linear`): BERT-base over 128 tokens, and a Llama-style decoder of a billion parameters that decodes one token
 * behind 128 others.
 *
 *   npm run bench:models [-- --seconds S] [--threads T] [--only bert|llama] [--folder DIR]
 *
 * Outputs are compared before anything is timed; a difference beyond the bounds ends the run with exit code 1. The models
 * are generated into a temporary folder (12 GB of disk, 16 GB of memory with Llama), which is removed.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { Tensor } from 'onnxruntime-node';
import { BERT_BASE, bertEncoder } from '../models/bert_base.js';
import { uniform } from '../models/builder.js';
import { LLAMA_1B, writeLlamaStack } from '../models/llama_stack.js';
import { benchModels } from '../ts/bench/bench.js';
import { machineLine } from '../ts/bench/machine.js';
import { fuseFile } from '../ts/fuse_file.js';
import type { FuseOptions } from '../ts/rewrite/options.js';

const TOKENS = 128;
/** As a fraction of the largest output: what weights of 8 bits cost in so many layers, all products taken together. */
const ALLOWED = { keep: 1e-3, bf16: 5e-2, int8: 1e-1 } as const;

interface Variant {
  name: string;
  dtype: keyof typeof ALLOWED;
  activationQuant?: boolean;
}
const VARIANTS: Variant[] = [
  { name: 'fp32', dtype: 'keep' },
  { name: 'bf16', dtype: 'bf16' },
  { name: 'int8', dtype: 'int8' },
  { name: 'int8, activation_quant', dtype: 'int8', activationQuant: true },
];

interface Subject {
  name: string;
  /** Rounding rows to 8 bits in so many layers of random weights costs this model more than is allowed. */
  exactRows?: boolean;
  write: (folder: string) => string;
  feeds: () => Record<string, Tensor>;
}

const floats = (dims: number[], seed: number): Tensor =>
  new Tensor(
    'float32',
    uniform(
      dims.reduce((all, dim) => all * dim, 1),
      1,
      seed,
    ),
    dims,
  );

const SUBJECTS: Record<string, Subject> = {
  bert: {
    name: `BERT-base, ${TOKENS} tokens`,
    write(folder) {
      const file = path.join(folder, 'model.onnx');
      fs.writeFileSync(file, bertEncoder(BERT_BASE));
      return file;
    },
    feeds: () => ({ x: floats([1, TOKENS, BERT_BASE.hidden], 3) }),
  },
  llama: {
    name: `Llama 1B, one token behind ${TOKENS}`,
    exactRows: true,
    write: (folder) => writeLlamaStack(folder, LLAMA_1B),
    feeds() {
      const { layers, hidden, kvHeads, headSize } = LLAMA_1B;
      const past = Array.from({ length: layers }, (_, layer) =>
        ['key', 'value'].map(
          (what, i) =>
            [`past_${what}_${layer}`, floats([1, kvHeads, TOKENS, headSize], 2 * layer + i + 5)] as const,
        ),
      ).flat();
      return {
        x: floats([1, 1, hidden], 3),
        seqlens_k: new Tensor('int32', [TOKENS], [1]),
        total_sequence_length: new Tensor('int32', [TOKENS + 1], [1]),
        ...Object.fromEntries(past),
      };
    },
  },
};

/** Bytes of the files that a model is made of, itself included. */
function bytesOf(folder: string, names: (name: string) => boolean): number {
  return fs
    .readdirSync(folder)
    .filter(names)
    .reduce((sum, name) => sum + fs.statSync(path.join(folder, name)).size, 0);
}

async function bench(subject: Subject, folder: string, seconds: number, threads: number): Promise<void> {
  const model = subject.write(folder);
  const feeds = subject.feeds();
  const whole = bytesOf(folder, () => true);
  console.log(`\n### ${subject.name}\n`);
  console.log(
    '| weights | nodes | MB | stock fp32, ms | fused, ms | times faster | 95 % | of the largest output |',
  );
  console.log('|---|---:|---:|---:|---:|---:|---:|---:|');
  for (const { name, dtype, activationQuant } of VARIANTS) {
    if (subject.exactRows && activationQuant) continue;
    const options: FuseOptions = {
      dtype,
      targets: ['qkv', 'mlp', 'linear'],
      ...(activationQuant === undefined ? {} : { activationQuant }),
    };
    const out = path.join(folder, 'out');
    fs.mkdirSync(out);
    const fused = path.join(out, 'fused.onnx');
    const { report } = await fuseFile(model, fused, {
      ...options,
      externalDataFile: 'fused.data',
      verify: false,
    });
    const bytes = bytesOf(out, () => true);
    const given = { seconds, threads, feeds, memory: false, maxError: ALLOWED[dtype] };
    const { models, ratio, verified } = await benchModels(model, { ...given, against: fused });
    const [stock, own] = models.map(({ p50 }) => (p50 / 1000).toFixed(1));
    const worst = Math.max(...(verified?.outputs ?? []).map(({ maxError }) => maxError));
    const cells = [
      name,
      report.fused.length,
      `${(whole / 1e6).toFixed(0)} to ${(bytes / 1e6).toFixed(0)}`,
      ...[stock, own, ratio?.value.toFixed(2), ratio && `${ratio.low.toFixed(2)}-${ratio.high.toFixed(2)}`],
      worst.toExponential(1),
    ];
    console.log(`| ${cells.join(' | ')} |`);
    fs.rmSync(out, { recursive: true });
  }
}

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '10' },
    threads: { type: 'string', default: '2' },
    only: { type: 'string' },
    folder: { type: 'string', default: os.tmpdir() },
  },
});
const [seconds, threads] = [Number(values.seconds), Number(values.threads)];
const chosen = Object.entries(SUBJECTS).filter(([key]) => values.only === undefined || values.only === key);
if (!(seconds > 0) || !Number.isInteger(threads) || threads < 1 || chosen.length === 0) {
  console.error(
    `bench:models: expected --seconds > 0, --threads >= 1 and --only ${Object.keys(SUBJECTS).join(' or ')}.`,
  );
  process.exitCode = 2;
} else {
  console.log(`${machineLine()}, ${threads} threads`);
  for (const [, subject] of chosen) {
    const folder = fs.mkdtempSync(path.join(values.folder, 'qkvgemm-bench-'));
    const remove = (): void => fs.rmSync(folder, { recursive: true, force: true });
    process.once('SIGINT', () => {
      remove();
      process.exit(130);
    });
    try {
      await bench(subject, folder, seconds, threads);
    } catch (error) {
      console.error(`bench:models failed: ${(error as Error).message}`);
      process.exitCode = 1;
    } finally {
      remove();
    }
  }
}
