/** Weights in external data: resident memory holds them packed, and not as they lie in the file as well. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import * as ort from 'onnxruntime-node';
import { ModelBuilder, uniform } from '../models/builder.js';
import { layerBytes, LLAMA_1B, LLAMA_SMALL, writeLlamaStack } from '../models/llama_stack.js';
import { fuseFile } from '../ts/fuse_file.js';
import { DataType } from '../ts/onnx/tensor.js';
import { withQkvGemm } from '../ts/session/index.js';
import { testFolder } from './support/command.js';

const program = fileURLToPath(new URL('./support/session_memory.ts', import.meta.url));
const MOST = 1.15;
const LEAST = 0.95; // or they were not counted
// glibc (mallopt(3)) gives freed memory back at once: what the small model's load leaves free would count as saved.
const RETURNS_FREED = { MALLOC_MMAP_THRESHOLD_: '65536', MALLOC_TRIM_THRESHOLD_: '65536' };

describe('memory of a loaded model', function () {
  let folder = '';
  before(function () {
    if (!fs.existsSync('/proc/self/pagemap')) {
      console.log('      /proc/self/pagemap is not there: files stay in resident memory');
      this.skip();
    }
    folder = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-memory-'));
    for (const [name, shape] of Object.entries({ small: LLAMA_SMALL, large: { ...LLAMA_1B, layers: 1 } })) {
      fs.mkdirSync(path.join(folder, name));
      writeLlamaStack(path.join(folder, name), { ...shape, type: DataType.float });
    }
  });
  after(() => fs.rmSync(folder, { recursive: true, force: true }));

  for (const dtype of ['keep', 'bf16', 'int8'] as const)
    it(`${dtype}: at most ${MOST} times the weights that the kernels read`, async () => {
      const models: string[] = [];
      for (const name of ['small', 'large']) {
        const output = path.join(folder, name, `${dtype}.onnx`);
        await fuseFile(path.join(folder, name, 'model.onnx'), output, {
          dtype,
          targets: ['qkv', 'mlp', 'linear'],
          verify: false,
        });
        models.push(output);
      }
      const grown = (variables: NodeJS.ProcessEnv): number => {
        const { status, stdout, stderr } = spawnSync(
          process.execPath,
          ['--expose-gc', '--import', 'tsx', program, ...models],
          { encoding: 'utf8', timeout: 100_000, env: { ...process.env, ...variables } },
        );
        expect(status, stderr).to.equal(0);
        return Number(stdout);
      };
      const weights = layerBytes({ ...LLAMA_1B, layers: 1 }) / { keep: 1, bf16: 2, int8: 4 }[dtype];
      expect(grown({}) / weights).to.be.at.most(MOST);
      expect(grown(RETURNS_FREED) / weights).to.be.within(LEAST, MOST);
    });
});

describe('weights that something else reads as well', () => {
  const folder = testFolder();

  it('are still there', async () => {
    const [k, n, rows] = [1024, 1024, 3];
    const weight = uniform(k * n, 0.05, 1);
    fs.writeFileSync(path.join(folder(), 'w.bin'), new Uint8Array(weight.buffer));
    const model = new ModelBuilder({ 'com.deepspeed': 1 });
    model.input('x', [rows, k]);
    model.external('w', [k, n], { location: 'w.bin', offset: 0 });
    const attributes = { norm_type: { string: 'none' } };
    model.node('QKVGemm', ['x', 'w'], ['fused'], { domain: 'com.deepspeed', attributes });
    model.node('MatMul', ['x', 'w'], ['product']);
    model.node('Identity', ['w'], ['same']);
    model.output('fused', [rows, n]);
    model.output('product', [rows, n]);
    model.output('same', [k, n]);
    const file = path.join(folder(), 'model.onnx');
    fs.writeFileSync(file, model.finish());
    const options = withQkvGemm({ graphOptimizationLevel: 'disabled' });
    const session = await ort.InferenceSession.create(file, options);
    const x = new ort.Tensor('float32', uniform(rows * k, 1, 2), [rows, k]);
    const results = await session.run({ x });
    const values = (name: string): Float32Array => results[name]?.data as Float32Array;
    expect(Buffer.from(values('same').slice().buffer).equals(Buffer.from(weight.buffer))).to.equal(true);
    const largest = Math.max(...values('product').map(Math.abs));
    values('fused').forEach((value, i) => {
      expect(value).to.be.closeTo(values('product')[i] ?? NaN, 1e-5 * largest);
    });
    await session.release();
  });
});
