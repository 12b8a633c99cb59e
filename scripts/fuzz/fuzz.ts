/** The rewriter against mutated models, in a worker thread with limits of time and memory. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { attentionModel, externalBytes } from '../../models/attention.js';
import { ModelBuilder, uniform } from '../../models/builder.js';
import { corpusModel, corpusModels } from '../../models/corpus.js';
import { FUNCTION_DOMAIN, functionOf } from '../../models/functions.js';
import { encodeNode } from '../../ts/onnx/node.js';
import { DataType } from '../../ts/onnx/tensor.js';
import { MessageWriter } from '../../ts/onnx/wire.js';
import { mutate, Random } from './mutate.js';
import type { Answer, Task } from './worker.js';

export interface FuzzOptions {
  seed: number;
  /** Stop after so many inputs ... */
  count?: number;
  /** ... or so many seconds. */
  seconds?: number;
  /** Folder for inputs that are findings. */
  save: string;
  /** For one input. */
  limits?: { seconds: number; megabytes: number };
}

export interface FuzzResult {
  inputs: number;
  outcomes: Record<string, number>;
  /** Each with the file of the input. */
  findings: { file: string; finding: string }[];
}

const LIMITS = { seconds: 10, megabytes: 512 };
const DTYPES = ['keep', 'keep', 'fp16', 'bf16', 'int8'] as const;

/** Small layers of all kinds, and the corpus where it is. */
function originals(): Uint8Array[] {
  const inner = new ModelBuilder();
  inner.output(inner.node('Neg', ['x'], ['inside']));
  const branch = new MessageWriter().string(1, 'then_branch').bytes(6, inner.graph()).integer(20, 5).finish();
  const extraNodes = [encodeNode({ opType: 'If', inputs: ['x'], outputs: ['i'], attributes: [branch] })];
  const generated = [
    attentionModel(),
    attentionModel({ norm: 'rms_norm', biases: [] }),
    attentionModel({ biases: ['q', 'k', 'v'], n: 16, residual: true }),
    attentionModel({ location: 'weights.bin', external: true }),
    attentionModel({ extraNodes }),
    functionModel(),
    branchModel(),
  ];
  // The small models are mutated as often as the many large ones: they are the faster ones.
  const corpus = corpusModels().map(corpusModel);
  const copies = Math.max(1, Math.round((2 * corpus.length) / generated.length));
  return [...Array.from({ length: copies }, () => generated).flat(), ...corpus];
}

/** A norm with projections in a function, and the same in a branch of an If in it. */
function functionModel(): Uint8Array {
  const [k, n] = [16, 8];
  const layer = (m: ModelBuilder, prefix: string): string => {
    const gamma = m.constant(`${prefix}gamma`, [k], uniform(k, 0.5, 1, 1));
    const h = m.node('LayerNormalization', ['x', gamma], [`${prefix}h`]);
    const [q = '', v = ''] = ['q', 'v'].map((name, i) => {
      const w = m.constant(`${prefix}w${name}`, [k, n], uniform(k * n, 0.5, 11 + i));
      return m.node('MatMul', [h, w], [prefix + name]);
    });
    const attributes = { perm: { integers: [0, 2, 1] } };
    const turned = m.node('Transpose', [v], [`${prefix}t`], { attributes });
    return m.node('MatMul', [q, turned], [`${prefix}y`]);
  };
  const branch = new ModelBuilder();
  branch.output(layer(branch, 'b_'));
  const body = new ModelBuilder();
  layer(body, 'a_');
  body.node('If', ['c'], ['z'], { graphs: { then_branch: branch, else_branch: branch } });
  const model = new ModelBuilder({ [FUNCTION_DOMAIN]: 1 });
  model.input('x', ['batch', 'sequence', k]);
  model.input('c', [], DataType.bool);
  model.node('Block', ['x', 'c'], ['y', 'z'], { domain: FUNCTION_DOMAIN });
  model.output('y');
  model.output('z');
  model.function(functionOf('Block', body, { inputs: ['x', 'c'], outputs: ['a_y', 'z'] }));
  return model.finish();
}

/** A norm whose projections stand in both branches of an If, in one of them behind a Cast and a Transpose of its rows. */
function branchModel(): Uint8Array {
  const [k, n] = [16, 8];
  const turn = (m: ModelBuilder, value: string, name: string, perm: number[]): string =>
    m.node('Transpose', [value], [name], { attributes: { perm: { integers: perm } } });
  const branch = (prefix: string, type: number, rows: (m: ModelBuilder) => string): ModelBuilder => {
    const m = new ModelBuilder();
    const h = rows(m);
    const [q = '', v = ''] = ['q', 'v'].map((name, i) => {
      const w = m.floats(`${prefix}w${name}`, [k, n], uniform(k * n, 0.5, 11 + i), type);
      return m.node('MatMul', [h, w], [prefix + name]);
    });
    const y = m.node('MatMul', [q, turn(m, v, `${prefix}t`, [0, 2, 1])], [`${prefix}y`]);
    const attributes = { to: { integer: DataType.float } };
    m.output(m.node('Cast', [y], [`${prefix}f`], { attributes }));
    return m;
  };
  const model = new ModelBuilder();
  model.input('x', ['batch', 'sequence', k]);
  model.input('c', [], DataType.bool);
  model.node('LayerNormalization', ['x', model.floats('gamma', [k], uniform(k, 0.5, 1, 1))], ['h']);
  const then = branch('a_', DataType.float16, (m) => {
    const attributes = { to: { integer: DataType.float16 } };
    return turn(m, m.node('Cast', ['h'], ['low'], { attributes }), 'moved', [1, 0, 2]);
  });
  const graphs = { then_branch: then, else_branch: branch('b_', DataType.float, () => 'h') };
  model.output(model.node('If', ['c'], ['y'], { graphs }));
  return model.finish();
}

/** A worker does not inherit the loader of TypeScript modules on every release of Node. */
const START =
  "const { loader, script } = require('worker_threads').workerData; " +
  'import(loader).then((tsx) => { tsx.register(); return import(script); });';

/** The worker, which is replaced after an input that hung or ran out of memory. */
class Runner {
  private worker: Worker | undefined;

  constructor(
    private readonly folder: string,
    private readonly limits: { seconds: number; megabytes: number },
  ) {}

  run(task: Task): Promise<Answer> {
    const worker = (this.worker ??= new Worker(START, {
      eval: true,
      execArgv: [],
      workerData: {
        folder: this.folder,
        loader: import.meta.resolve('tsx/esm/api'),
        script: new URL('./worker.ts', import.meta.url).href,
      },
      resourceLimits: { maxOldGenerationSizeMb: this.limits.megabytes },
    }));
    const before = process.memoryUsage.rss();
    return new Promise((resolve) => {
      const finish = (answer: Answer, reusable: boolean): void => {
        clearTimeout(timer);
        worker.removeAllListeners('message').removeAllListeners('error').removeAllListeners('exit');
        if (!reusable) {
          this.worker = undefined;
          worker.on('error', () => undefined);
          void worker.terminate();
        }
        resolve(answer);
      };
      const timer = setTimeout(() => {
        finish({ outcome: 'hang', finding: `no answer within ${this.limits.seconds} seconds` }, false);
      }, this.limits.seconds * 1000);
      worker.once('message', (answer: Answer) => {
        const grown = (process.memoryUsage.rss() - before) / 2 ** 20;
        const large = `took ${grown.toFixed(0)} MB, expected at most ${this.limits.megabytes}`;
        finish(grown > this.limits.megabytes ? { outcome: 'memory', finding: large } : answer, true);
      });
      worker.once('error', (error) => {
        finish({ outcome: 'crash', finding: `the worker died: ${String(error)}` }, false);
      });
      worker.once('exit', (code) => {
        finish({ outcome: 'crash', finding: `the worker ended with ${code}` }, false);
      });
      worker.postMessage(task);
    });
  }

  async close(): Promise<void> {
    await this.worker?.terminate();
  }
}

/** Mutates, rewrites and counts until the count or the time is reached. The same inputs for the same seed. */
export async function fuzz(options: FuzzOptions): Promise<FuzzResult> {
  const { seed, count = Infinity, seconds = Infinity, save, limits = LIMITS } = options;
  const models = originals();
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-fuzz-'));
  fs.writeFileSync(path.join(folder, 'weights.bin'), externalBytes());
  const runner = new Runner(folder, limits);
  const result: FuzzResult = { inputs: 0, outcomes: {}, findings: [] };
  const end = performance.now() + seconds * 1000;
  try {
    while (result.inputs < count && performance.now() < end) {
      // A seed of its own for each input: a finding is made again without those before it.
      const random = new Random(seed + result.inputs);
      const model = mutate(random.pick(models), random.pick(models), random);
      const task = { model, options: { dtype: random.pick(DTYPES), fallback: random.below(4) > 0 } };
      const { outcome, finding } = await runner.run(task);
      result.outcomes[outcome] = (result.outcomes[outcome] ?? 0) + 1;
      if (finding !== undefined) {
        const file = path.join(save, `seed-${seed + result.inputs}.onnx`);
        fs.mkdirSync(save, { recursive: true });
        fs.writeFileSync(file, model);
        result.findings.push({ file, finding: `${JSON.stringify(task.options)}: ${finding}` });
      }
      result.inputs++;
    }
  } finally {
    await runner.close();
    fs.rmSync(folder, { recursive: true });
  }
  return result;
}

/** The result as lines of text. */
export function describeFuzz({ inputs, outcomes, findings }: FuzzResult): string {
  const counts = Object.entries(outcomes).sort(([, a], [, b]) => b - a);
  return [
    `${inputs} inputs: ${counts.map(([outcome, count]) => `${outcome} ${count}`).join(', ')}`,
    ...findings.map(({ file, finding }) => `${file}: ${finding}`),
  ].join('\n');
}
