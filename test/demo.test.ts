import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect } from 'chai';
import * as ort from 'onnxruntime-node';
import { makeBlock, type Block, type BlockShape } from '../models/qkv_block.js';
import type { Operand } from '../models/qkv_gemm.js';
import { Comparison, TOLERANCE, toleranceOf } from '../scripts/bench/compare.js';
import { pick, sampledOperands, sampledReference, sampleOf } from '../scripts/bench/sample.js';
import { summary } from '../ts/bench/timing.js';
import { planes, resize } from '../scripts/demo/picture.js';
import { decode, lineTensor, readClasses, recogniserModel } from '../scripts/demo/recogniser.js';
import { relativeDifference, worstDifference } from '../scripts/bench/difference.js';
import { fuse } from '../ts/index.js';
import { DataType } from '../ts/onnx/tensor.js';
import { withQkvGemm } from '../ts/session/index.js';
import { quiet, runModel } from './support/run.js';

const picture = fileURLToPath(new URL('../models/fixtures/text_line.png', import.meta.url));

describe('demo', () => {
  it('reads the picture with the pretrained recogniser, fused or not', async () => {
    const original = fs.readFileSync(recogniserModel);
    const { model, report } = await fuse(original);
    expect(report.fused.map(({ k, splits }) => [k, ...splits])).to.deep.equal([
      [120, 360],
      [120, 360],
    ]);
    const x = lineTensor(picture);
    const classes = readClasses();
    const expected = await runModel(original, [x]);
    expect(decode(expected[0] as Float32Array, classes)).to.equal('Fused QKV GEMM 2026');
    for (const [name, options] of [
      ['kernel', withQkvGemm(quiet)],
      ['function body', quiet],
    ] as const) {
      const actual = await runModel(model, [x], options);
      expect(worstDifference(expected, actual), name).to.be.at.most(2e-5);
      expect(decode(actual[0] as Float32Array, classes), name).to.equal('Fused QKV GEMM 2026');
    }
  });

  it('has as many classes as the recogniser', async () => {
    const session = await ort.InferenceSession.create(recogniserModel, quiet);
    const results = await session.run({ [session.inputNames[0] as string]: lineTensor(picture) });
    expect(results[session.outputNames[0] as string]?.dims.at(-1)).to.equal(readClasses().length);
    await session.release();
  });

  it('decodes greedily: repetitions once, blanks separate', () => {
    const classes = ['', 'a', 'b', ' '];
    const steps = [1, 1, 0, 1, 2, 2, 3, 0, 2];
    const scores = Float32Array.from(
      steps.flatMap((best) => classes.map((_, i) => (i === best ? 0.9 : 0.1))),
    );
    expect(decode(scores, classes)).to.equal('aab b');
  });

  it('prepares a picture: bilinear, planes in the order blue, green, red, range -1 to 1', () => {
    const two = { width: 2, height: 1, rgb: Float32Array.of(0, 255, 51, 255, 255, 51) };
    const four = resize(two, 4, 2);
    const row = [0, 63.75, 191.25, 255];
    expect([...four.rgb].filter((_, i) => i % 3 === 0)).to.deep.equal([...row, ...row]);
    const values = [...planes(two)];
    expect(values.map((value) => Number(value.toFixed(6)))).to.deep.equal([-0.6, -0.6, 1, 1, -1, 1]);
  });
});

describe('timing of blocks', () => {
  const shapes: BlockShape[] = [
    { name: 'layer norm', norm: 'layer_norm', k: 40, splits: [24, 24, 24], bias: true },
    { name: 'rms norm', norm: 'rms_norm', k: 72, splits: [64, 16, 16], bias: false },
  ];
  for (const shape of shapes) {
    it(`verifies and measures each weight type: ${shape.name}`, async () => {
      const comparison = await Comparison.create(shape, quiet);
      for (const m of [1, 5]) {
        const results = await comparison.measure(m, { seconds: 0, samples: [2, 2] });
        expect(results.map(({ name }) => name)).to.deep.equal(['stock', 'fp32', 'fp16', 'bf16', 'int8']);
        const rounding = [0, TOLERANCE, 1e-3, 1e-2, 3e-2];
        results.forEach(({ name, fromReference, fromStock, timing, ratio }, i) => {
          expect(fromReference, name).to.be.at.most(toleranceOf(name));
          expect(fromStock, name).to.be.at.most(rounding[i] as number);
          expect(timing.median, name).to.be.greaterThan(0);
          expect(ratio, name).to.be.greaterThan(0);
        });
        // Rounded weights must show: else all contenders would be one.
        const differences = results.slice(2).map(({ fromStock }) => fromStock);
        expect(differences.every((d) => d > TOLERANCE)).to.equal(true);
        expect(results.map(({ weightBytes }) => weightBytes / (shape.k * sum(shape.splits)))).to.deep.equal([
          4,
          4,
          2,
          2,
          1 + 4 / shape.k,
        ]);
      }
      await comparison.release();
    });
  }

  it('computes the reference as written by hand', () => {
    const vector = (...values: number[]): Operand => ({
      type: DataType.float,
      dims: [values.length],
      values: Float32Array.from(values),
    });
    const block: Block = {
      ...makeBlock(shapes[0] as BlockShape),
      k: 2,
      n: 4,
      splits: [1, 2, 1],
      operands: {
        weight: { ...vector(1, 0, 5, 2, 0, 1, 6, 1), dims: [2, 4] },
        gamma: vector(1, 2),
        beta: vector(0, 1),
        bias: vector(0, 0, 7, 10),
      },
    };
    // x = [1, 3]: mean 2, variance 1, so that the normalised row is [-f, 2 f + 1]. The third column is not asked for.
    const f = 1 / Math.sqrt(1 + Math.fround(1e-5));
    const sample = { rows: [1], columns: [0, 1, 3] };
    const operands = sampledOperands(block, block.operands, sample);
    const values = sampledReference(block, operands, Float32Array.of(8, 9, 1, 3), sample);
    expect([...values]).to.deep.equal([-f, 2 * f + 1, -2 * f + (2 * f + 1) + 10]);
    const outputs = [Float32Array.of(0, 7), Float32Array.of(0, 0, 8, 0), Float32Array.of(0, 9)];
    expect([...pick(block, outputs, sample)]).to.deep.equal([7, 8, 9]);
  });

  it('samples the edges of rows and outputs', () => {
    const block = makeBlock(shapes[1] as BlockShape);
    expect(sampleOf(block, 9).rows).to.deep.equal([0, 4, 8]);
    expect(sampleOf(block, 1).rows).to.deep.equal([0]);
    expect(sampleOf(block, 1).columns).to.include.members([0, 63, 64, 79, 80, 95]);
  });

  it('takes what is missing or not a number as an infinite difference', () => {
    expect(relativeDifference([1, 2], [1, 2.5])).to.equal(0.25);
    expect(relativeDifference([1, 2], [1, NaN])).to.equal(Infinity);
    expect(relativeDifference([1, 2], [1])).to.equal(Infinity);
  });

  it('sums up samples by median and spread', () => {
    expect(summary([30, 10, 20, 40, 50])).to.deep.equal({ median: 30, p10: 14, p90: 46, samples: 5 });
  });
});

describe('commands of the demo and the benchmark', () => {
  const root = fileURLToPath(new URL('..', import.meta.url));
  const script = (
    name: string,
    ...args: string[]
  ): { status: number | null; stdout: string; stderr: string } =>
    spawnSync(process.execPath, ['--import', 'tsx', `scripts/${name}`, ...args], {
      cwd: root,
      encoding: 'utf8',
    });

  it('fails where the text read is not the expected one', () => {
    const { status, stdout, stderr } = script('demo.ts', picture, 'Something else');
    expect(status).to.equal(1);
    expect(stdout).to.include('Fused 2, ').and.include('Fused QKV GEMM 2026');
    expect(stderr).to.include("The original model read 'Fused QKV GEMM 2026', expected 'Something else'.");
    expect(stderr).to.include("The fused model read 'Fused QKV GEMM 2026', expected 'Something else'.");
  });

  it('names a picture that does not exist', () => {
    const { status, stderr } = script('demo.ts', 'no-such.png');
    expect(status).to.equal(1);
    expect(stderr).to.include("demo failed: ENOENT: no such file or directory, open 'no-such.png'");
  });

  it('prints a row of the benchmark for each M and weight type', () => {
    const { status, stdout, stderr } = script('bench_cpu.ts', '--k', '768', '--seconds', '0.01');
    expect(status, stderr).to.equal(0);
    const own = ['fp32', 'fp16', 'bf16', 'int8', 'int8 x int8'].map((type) => `QKVGemm ${type}`);
    const half = (m: number): string[] => (m <= 8 ? ['stock graph fp16'] : []); // which is very slow
    const names = (m: number): string[] => [
      ...['stock graph fp32', ...own, ...half(m)],
      ...['MatMulNBits', 'DynamicQuantizeMatMul'].flatMap((name) => [name, `fused ${name}`]),
    ];
    const rows = stdout.split('\n').filter((line) => /^\| \d/.test(line));
    expect(rows.map((line) => line.split(' | ').slice(0, 2))).to.deep.equal(
      [1, 8, 128, 512].flatMap((m) => names(m).map((name) => [`| ${m}`, name])),
    );
  });

  it('refuses a size that the benchmark does not have', () => {
    const { status, stderr } = script('bench_cpu.ts', '--k', '5');
    expect(status).to.equal(2);
    expect(stderr).to.include('--k and --n of K=768, N=2304;');
  });
});

function sum(values: readonly number[]): number {
  return values.reduce((total, value) => total + value, 0);
}
