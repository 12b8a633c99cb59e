/** What the commands say where a session on CUDA cannot be, and what they show of one: with a driver that only says that it has a device. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { BenchReport, ModelTiming } from '../ts/bench/bench.js';
import { notOnDevice, type NodeRun, type OpShare } from '../ts/bench/profile.js';
import { describe as describeBench } from '../ts/cli/bench.js';
import type { Diagnosis } from '../ts/doctor/doctor.js';
import { misplaced } from '../ts/doctor/self_test.js';
import { benchHtml } from '../ts/report/bench_report.js';
import { installSessionHook } from '../ts/session/addon.js';
import { libraryPath } from '../ts/session/index.js';
import { checkProvider, cudaProblem, type ProviderFacts } from '../ts/session/provider.js';
import { writeAttentionModel } from './support/attention.js';
import { qkvgemm, testFolder, type Outcome } from './support/command.js';
import { failure } from './support/failure.js';

/** The driver's functions that are called, of one device. */
const DRIVER = `
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int* count) { *count = 1; return 0; }
int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return 0; }
int cuDeviceGetName(char* name, int length, int device) { __builtin_snprintf(name, length, "Paper GPU"); return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
`;

const good: ProviderFacts = {
  devices: () => ['Paper GPU, compute capability 9.0'],
  runtimeFolders: () => ['/runtime'],
  backends: () => Promise.resolve(['cpu', 'cuda']),
  exists: (file) => file === '/runtime/libonnxruntime_providers_cuda.so',
  tryCuda: () => Promise.resolve(),
};

describe('the CUDA provider, where it may be missing', () => {
  const folder = testFolder();

  it('is no problem where everything is there', async () => {
    expect(await cudaProblem(good)).to.equal(undefined);
    await checkProvider('cuda', good);
    await checkProvider('cpu', { ...good, devices: () => [] });
  });

  const missing: Record<string, [Partial<ProviderFacts>, string, string]> = {
    'no device': [{ devices: () => [] }, 'the driver shows no CUDA device', 'CUDA_VISIBLE_DEVICES'],
    'not built for it': [
      { backends: () => Promise.resolve(['cpu', 'coreml']) },
      'onnxruntime-node was built without it; it has cpu, coreml',
      'Linux x64',
    ],
    'not installed': [
      { runtimeFolders: () => ['/elsewhere'] },
      'libonnxruntime_providers_cuda.so is not in /elsewhere',
      'npm rebuild onnxruntime-node',
    ],
    'of another CUDA': [
      { tryCuda: () => Promise.reject(new Error('libcudnn.so.9: cannot open shared object file')) },
      'it is there, but cannot be used: libcudnn.so.9: cannot open shared object file',
      'cuDNN',
    ],
  };
  for (const [name, [facts, found, action]] of Object.entries(missing)) {
    it(`${name}: says so, and what to do`, async () => {
      const problem = await cudaProblem({ ...good, ...facts });
      expect(problem?.found).to.equal(found);
      expect(problem?.action).to.contain(action);
      const error = await failure(() => checkProvider('cuda', { ...good, ...facts }));
      expect(error.code).to.equal('RUNTIME_UNSUPPORTED');
      expect(error.message).to.contain(found).and.to.contain(action).and.to.contain('--provider cpu');
    });
  }

  describe('commands', () => {
    let drivers = '';

    before(function () {
      const folders = installSessionHook().map(({ path: file }) => path.dirname(file));
      if (folders.some((own) => fs.existsSync(path.join(own, 'libonnxruntime_providers_cuda.so')))) {
        console.log('      (skipped: the CUDA provider is installed here)');
        this.skip();
      }
      drivers = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-driver-'));
      fs.writeFileSync(path.join(drivers, 'driver.c'), DRIVER);
      const args = ['-shared', '-fPIC', '-o', 'libcuda.so.1', 'driver.c'];
      const { status, error } = spawnSync('gcc', args, { cwd: drivers });
      if (error || status !== 0) {
        console.log('      (skipped: no gcc, which makes a driver without a device)');
        this.skip();
      }
    });
    after(() => {
      if (drivers !== '') fs.rmSync(drivers, { recursive: true, force: true });
    });

    const run = (args: readonly string[], env: Record<string, string> = {}): Outcome =>
      qkvgemm(args, {
        cwd: folder(),
        env: { LD_LIBRARY_PATH: drivers, QKVGEMM_CACHE_DIR: folder(), ...env },
      });

    it('without a device: bench, verify and tune end with what is missing, before any work', () => {
      writeAttentionModel(folder());
      const fused = ['fuse', 'model.onnx', '-o', 'fused.onnx', '--no-verify'];
      expect(qkvgemm(fused, { cwd: folder() }).code).to.equal(0);
      for (const args of [
        ['bench', 'model.onnx', '--fused'],
        ['verify', 'model.onnx', 'fused.onnx'],
        ['verify', 'model.onnx', 'fused.onnx', '--library', 'none'],
        ['tune', 'fused.onnx', '--rows', '1'],
      ]) {
        const { code, stdout, stderr } = run([...args, '--provider', 'cuda'], { LD_LIBRARY_PATH: '' });
        expect(code, args.join(' ')).to.equal(1);
        expect(stdout).to.equal('');
        expect(stderr).to.match(/^qkvgemm: ONNX Runtime's CUDA provider cannot be used: .*no CUDA device/);
      }
    });

    it('with a device, but without the provider: they name the file, and the install script', () => {
      writeAttentionModel(folder());
      for (const args of [
        ['bench', 'model.onnx', '--json'],
        ['verify', 'model.onnx', 'model.onnx', '--json'],
      ]) {
        const { code, stdout, stderr } = run([...args, '--provider', 'cuda'], {
          QKVGEMM_LIBRARY: libraryPath(),
        });
        expect(code, args.join(' ')).to.equal(1);
        const { error } = JSON.parse(stdout) as { error: { code: string; message: string } };
        expect(error.code).to.equal('RUNTIME_UNSUPPORTED');
        expect(error.message).to.match(/libonnxruntime_providers_cuda\.so is not in \//);
        expect(error.message).to.contain('npm rebuild onnxruntime-node');
        expect(stderr, 'and nothing of ONNX Runtime').to.equal(`qkvgemm: ${error.message}\n`);
      }
    });

    it('doctor: a device whose library or provider is missing is noted, with what to do, and is no failure', () => {
      const { code, stdout, stderr } = run(['doctor', '--json']);
      expect(code, stderr).to.equal(0);
      const { checks, ok, cudaDevices } = JSON.parse(stdout) as Diagnosis;
      expect(ok).to.equal(true);
      expect(cudaDevices).to.deep.equal(['Paper GPU, compute capability 9.0']);
      const check = (name: string) => checks.find((own) => own.name === name);
      expect(check('CUDA')).to.include({ status: 'ok' });
      expect(check('CUDA')?.found).to.match(/^Paper GPU, compute capability 9\.0; driver /);
      expect(check('CUDA provider')).to.include({ status: 'note' });
      expect(check('CUDA provider')?.found).to.match(/^libonnxruntime_providers_cuda\.so is not in /);
      expect(check('CUDA provider')?.action).to.contain('npm rebuild onnxruntime-node');
      expect(check('a node on cuda'), 'not tried').to.equal(undefined);
      const library = check('CUDA library');
      if (library?.status === 'ok') expect(fs.existsSync(library.found)).to.equal(true);
      else expect(library?.action).to.match(/onnx-qkv-gemm-cuda-\S+.*QKVGEMM_CUDA=1 npm run build/);
    });
  });

  it('a node that ran on the CPU is none that ran on the device', () => {
    const node = (op: string, provider: string): NodeRun => ({ run: 0, op, provider, microseconds: 1 });
    expect(misplaced([node('QKVGemm', 'CUDAExecutionProvider')], 'cuda')).to.equal(undefined);
    expect(misplaced([node('QKVGemm', 'CPUExecutionProvider')], 'cpu')).to.equal(undefined);
    const others = [node('MemcpyToHost', 'CUDAExecutionProvider'), node('QKVGemm', 'CPUExecutionProvider')];
    expect(misplaced(others, 'cuda')).to.match(/ran on CPUExecutionProvider, not on CUDAExecutionProvider/);
    expect(misplaced([], 'cuda')).to.match(/ran on no provider/);
  });

  it('a report of bench on CUDA names the devices, what did not run there, and what its times are', () => {
    const share = (op: string, nodes: number, ...providers: string[]): OpShare => ({
      ...{ op, nodes, providers },
      microseconds: 10,
      share: 0.5,
    });
    const ops = [
      share('QKVGemm', 2, 'CUDAExecutionProvider'),
      share('Shape', 3, 'CPUExecutionProvider'),
      share('Gather', 4, 'CUDAExecutionProvider', 'CPUExecutionProvider'),
    ];
    expect(notOnDevice(ops).map(({ op }) => op)).to.deep.equal(['Shape', 'Gather']);
    const model: ModelTiming = {
      ...{ file: 'model.onnx', runs: 3, p50: 10, p90: 11, p99: 12, runsPerSecond: 1e5, ops },
      histogram: { from: 10, step: 1.05, counts: [3] },
    };
    const report: BenchReport = {
      ...{ machine: 'a machine', provider: 'cuda', devices: good.devices() as string[], inputs: [] },
      models: [model],
    };
    const text = describeBench(report);
    expect(text).to.contain('provider cuda: Paper GPU, compute capability 9.0');
    expect(text).to.contain('Not on the device, in model.onnx: Shape 3, Gather 4.');
    expect(text).to.contain("Operators' times on CUDA are the host's, of launches");
    const html = benchHtml(report);
    expect(html).to.contain('not on the device, in model.onnx').and.to.contain('Shape 3, Gather 4');
    const onCpu = describeBench({ ...report, provider: 'cpu', devices: [] });
    expect(onCpu).not.to.match(/device|launches/);
  });
});
