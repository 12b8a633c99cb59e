import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { cpuFacts, nvidiaDriver } from '../ts/doctor/machine_facts.js';
import type { Check, Diagnosis } from '../ts/doctor/doctor.js';
import { INSTRUCTION_SETS } from './support/cpu_reference.js';
import { qkvgemm, root, testFolder } from './support/command.js';

const cudaLibrary = path.join(root, 'build', 'Release', 'libqkvgemm-cuda.so');

describe('qkvgemm doctor', () => {
  const folder = testFolder();

  function doctor(env: Record<string, string> = {}): {
    code: number | null;
    diagnosis: Diagnosis;
    check: (name: string) => Check | undefined;
  } {
    const { code, stdout, stderr } = qkvgemm(['doctor', '--json'], {
      env: { QKVGEMM_CACHE_DIR: folder(), ...env },
    });
    expect(stderr).to.equal('');
    const diagnosis = JSON.parse(stdout) as Diagnosis;
    return { code, diagnosis, check: (name) => diagnosis.checks.find((own) => own.name === name) };
  }

  it('names platform, processor, library, runtimes and providers, and runs a node', () => {
    const { code, diagnosis, check } = doctor();
    expect(code).to.equal(0);
    expect(diagnosis.ok).to.equal(true);
    expect(diagnosis.node).to.equal(process.version);
    expect(diagnosis.libc).to.match(/^glibc 2\.\d+$/);
    expect(diagnosis.cpu.cores).to.be.at.least(1);
    expect(fs.existsSync(diagnosis.library ?? '')).to.equal(true);
    expect(diagnosis.instructionSet).to.be.oneOf(INSTRUCTION_SETS);
    expect(diagnosis.runtimes.some((runtime) => runtime.hooked)).to.equal(true);
    expect(diagnosis.providers).to.contain('cpu');
    expect(check('a node on cpu')).to.deep.equal({
      name: 'a node on cpu',
      status: 'ok',
      found: 'runs and gives the right result',
    });
    for (const own of diagnosis.checks) {
      expect(own.status, own.name).not.to.equal('problem');
      expect(own.action === undefined, own.name).to.equal(own.status === 'ok');
    }
  });

  it('says the same as text', () => {
    const { code, stdout } = qkvgemm(['doctor'], { env: { QKVGEMM_CACHE_DIR: folder() } });
    expect(code).to.equal(0);
    for (const part of [
      'linux-x64',
      'libqkvgemm.so',
      'onnxruntime-node',
      'qkvgemm tune would keep them in',
      folder(),
    ])
      expect(stdout).to.contain(part);
    expect(stdout).to.match(/All that is needed is there\.\n$/);
  });

  it('names the CUDA library, where it is built, and misses no device', () => {
    const { code, diagnosis } = doctor({ CUDA_VISIBLE_DEVICES: '' });
    expect(code).to.equal(0);
    expect(diagnosis.cudaLibrary).to.equal(fs.existsSync(cudaLibrary) ? cudaLibrary : null);
    expect(diagnosis.cudaDevices).to.deep.equal([]);
    expect(diagnosis.tried['libqkvgemm-cuda.so'].at(-1)).to.equal(cudaLibrary);
  });

  it('QKVGEMM_ISA forces the instruction set, and is named', () => {
    const { code, diagnosis, check } = doctor({ QKVGEMM_ISA: 'scalar' });
    expect(code).to.equal(0);
    expect(diagnosis.instructionSet).to.equal('scalar');
    expect(check('CPU kernels')).to.include({ status: 'note' });
    expect(check('CPU kernels')?.action).to.contain('QKVGEMM_ISA=scalar forces them');
  });

  it('a wrong QKVGEMM_ISA is a problem with what is possible; the rest is still told', () => {
    const env = { QKVGEMM_ISA: 'mmx' };
    const { code, diagnosis, check } = doctor(env);
    expect(code).to.equal(1);
    expect(diagnosis).to.include({ ok: false, instructionSet: null });
    expect(diagnosis.library).to.be.a('string');
    expect(check('CPU kernels')?.found).to.contain('mmx').and.to.contain('avx2');
    expect(check('CPU kernels')?.action).to.contain('Unset QKVGEMM_ISA');
    const text = qkvgemm(['doctor'], { env });
    expect(text.code).to.equal(1);
    expect(text.stdout).to.match(/^problem {2}CPU kernels .*mmx.*\n +-> Unset QKVGEMM_ISA/m);
    expect(text.stdout + text.stderr).not.to.match(/\n\s+at /);
  });

  it('a wrong QKVGEMM_LIBRARY is a problem with the path that was tried', () => {
    const { code, diagnosis, check } = doctor({ QKVGEMM_LIBRARY: '/nowhere/lib.so' });
    expect(code).to.equal(1);
    expect(diagnosis.library).to.equal(null);
    expect(diagnosis.tried['libqkvgemm.so']).to.deep.equal(['/nowhere/lib.so']);
    expect(check('library')?.found).to.contain('/nowhere/lib.so');
    expect(check('library')?.action).to.contain('QKVGEMM_LIBRARY');
  });

  it('a library that does not load is a problem in the words of the loader', () => {
    const file = path.join(folder(), 'libqkvgemm.so');
    fs.writeFileSync(file, 'no library');
    const { code, check } = doctor({ QKVGEMM_LIBRARY: file });
    expect(code).to.equal(1);
    expect(check('library')?.status).to.equal('ok');
    expect(check('a node on cpu')?.status).to.equal('problem');
    expect(check('a node on cpu')?.found)
      .to.contain(file)
      .and.to.match(/invalid ELF header|file too short/);
    expect(check('a node on cpu')?.action).to.contain('npm run build');
  });

  it('a file of timed plans that is broken is a note', () => {
    const { diagnosis } = doctor();
    fs.mkdirSync(path.dirname(diagnosis.tuningFile ?? ''), { recursive: true });
    fs.writeFileSync(diagnosis.tuningFile ?? '', '{');
    const { code, check } = doctor();
    expect(code).to.equal(0);
    expect(check('timed plans')).to.include({ status: 'note' });
    expect(check('timed plans')?.action).to.contain(`rm ${diagnosis.tuningFile}`);
  });

  it('reads what the system says of processors and drivers', () => {
    const info = 'processor : 0\nflags\t\t: fpu avx avx2 fma avx512f amx_bf16 sse\n';
    expect(cpuFacts(info).features).to.deep.equal(['avx', 'avx2', 'fma', 'avx512f', 'amx_bf16']);
    expect(cpuFacts('').features).to.deep.equal([]);
    const old = 'NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n';
    expect(nvidiaDriver(old)).to.equal('550.54.15');
    const open = 'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n';
    expect(nvidiaDriver(open)).to.equal('580.95.05');
    expect(nvidiaDriver('')).to.equal(null);
  });
});
