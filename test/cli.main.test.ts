import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { qkvgemm, root, testFolder } from './support/command.js';
import { writeAttentionModel } from './support/attention.js';
import { INSTRUCTION_SETS } from './support/cpu_reference.js';

interface Info {
  platform: string;
  node: string;
  library: string | null;
  cudaLibrary: string | null;
  cudaDevices: string[];
  instructionSet: string | null;
  runtimes: { path: string; version: string; hooked: boolean }[];
  providers: string[];
  problems: string[];
}

describe('qkvgemm', () => {
  const folder = testFolder();

  it('--help lists the commands, the exit codes and examples', () => {
    const { code, stdout } = qkvgemm(['--help']);
    expect(code).to.equal(0);
    for (const text of ['fuse', 'tune', 'info', 'Exit codes:', 'Examples:']) expect(stdout).to.contain(text);
    const fuse = qkvgemm(['fuse', '--help']);
    expect(fuse.code).to.equal(0);
    for (const flag of [
      '--output',
      '--dtype',
      '--int8-block',
      '--no-fallback',
      '--no-verify',
      '--dry-run',
      '--explain',
    ])
      expect(fuse.stdout).to.contain(flag);
    for (const flag of ['--overwrite', '--json']) expect(fuse.stdout).to.contain(flag);
  });

  it('--version is the version of the package', () => {
    const { version } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
      version: string;
    };
    expect(qkvgemm(['--version'])).to.deep.equal({ code: 0, stdout: `${version}\n`, stderr: '' });
  });

  it('each example of the help text runs', () => {
    const { stdout } = qkvgemm(['--help']);
    const examples = stdout
      .slice(stdout.indexOf('Examples:'))
      .split('\n')
      .map((line) => /^ {2}qkvgemm (.*?)(?: {2,}.*)?$/.exec(line)?.[1])
      .filter((line) => line !== undefined);
    expect(examples.length).to.be.at.least(4);
    writeAttentionModel(folder());
    for (const example of examples) {
      const { code, stderr } = qkvgemm(example.trim().split(/ +/), {
        cwd: folder(),
        env: { QKVGEMM_CACHE_DIR: folder() },
      });
      expect(stderr, example).to.equal('');
      expect(code, example).to.equal(0);
    }
  });

  for (const [what, args, expected] of [
    ['no command', [], /Usage: qkvgemm/],
    ['an unknown command', ['fuze', 'model.onnx'], /unknown command 'fuze'.*\n?.*Did you mean fuse/],
    ['an unknown option', ['fuse', 'model.onnx', '--dtyp', 'int8'], /unknown option '--dtyp'[^]*--dtype/],
    ['no input', ['fuse'], /missing required argument 'in'/],
    [
      'a wrong block',
      ['fuse', 'model.onnx', '--dtype', 'int8', '--int8-block', 'x'],
      /expected a number from 1 to/,
    ],
    ['a wrong dtype', ['fuse', 'model.onnx', '--dtype', 'fp8'], /'fp8' is invalid.*keep, fp16, bf16, int8/],
    ['three files', ['fuse', 'a', 'b', 'c'], /too many arguments/],
    ['two outputs', ['fuse', 'a', 'b.onnx', '-o', 'c.onnx'], /'b.onnx' and 'c.onnx'/],
  ] as const) {
    it(`exit code 2 for ${what}`, () => {
      const { code, stderr } = qkvgemm(args, { cwd: folder() });
      expect(stderr).to.match(expected);
      expect(stderr).not.to.match(/\n\s+at /);
      expect(code).to.equal(2);
    });
  }
});

describe('qkvgemm info', () => {
  it('names library, instruction set, runtimes and providers', () => {
    const { code, stdout, stderr } = qkvgemm(['info', '--json']);
    expect(stderr).to.equal('');
    expect(code).to.equal(0);
    const info = JSON.parse(stdout) as Info;
    expect(info.node).to.equal(process.version);
    expect(fs.existsSync(info.library ?? '')).to.equal(true);
    expect(info.instructionSet).to.be.oneOf(INSTRUCTION_SETS);
    expect(info.runtimes.some((runtime) => runtime.hooked)).to.equal(true);
    expect(info.providers).to.contain('cpu');
    expect(info.problems).to.deep.equal([]);

    const text = qkvgemm(['info']);
    expect(text.code).to.equal(0);
    for (const part of [info.platform, info.library ?? '?', info.instructionSet ?? '?', 'ONNX Runtime'])
      expect(text.stdout).to.contain(part);
  });

  it('names the CUDA library, where it is built, and the devices, and misses neither', () => {
    const { code, stdout } = qkvgemm(['info', '--json'], { env: { CUDA_VISIBLE_DEVICES: '' } });
    expect(code).to.equal(0);
    const info = JSON.parse(stdout) as Info;
    const built = path.join(root, 'build', 'Release', 'libqkvgemm-cuda.so');
    expect(info.cudaLibrary).to.equal(fs.existsSync(built) ? built : null);
    expect(info.cudaDevices).to.deep.equal([]);
    const text = qkvgemm(['info'], { env: { CUDA_VISIBLE_DEVICES: '' } });
    expect(text.stdout).to.contain(`CUDA library     ${info.cudaLibrary ?? 'not found'}\n`);
    expect(text.stdout).to.contain('CUDA devices     none\n');
  });

  it('QKVGEMM_ISA forces the instruction set', () => {
    const { code, stdout } = qkvgemm(['info', '--json'], { env: { QKVGEMM_ISA: 'scalar' } });
    expect(code).to.equal(0);
    expect((JSON.parse(stdout) as Info).instructionSet).to.equal('scalar');
  });

  it('a wrong QKVGEMM_ISA is named, with what is possible; the rest is still told', () => {
    const env = { QKVGEMM_ISA: 'mmx' };
    const { code, stdout } = qkvgemm(['info', '--json'], { env });
    expect(code).to.equal(1);
    const info = JSON.parse(stdout) as Info;
    expect(info.instructionSet).to.be.null;
    expect(info.library).to.be.a('string');
    expect(info.problems.join('\n')).to.contain('QKVGEMM_ISA').and.to.contain('mmx').and.to.contain('avx2');
    const text = qkvgemm(['info'], { env });
    expect(text.code).to.equal(1);
    expect(text.stdout).to.match(/problem .*mmx/);
    expect(text.stdout + text.stderr).not.to.match(/\n\s+at /);
  });

  it('a wrong QKVGEMM_LIBRARY is named', () => {
    const { code, stdout } = qkvgemm(['info', '--json'], { env: { QKVGEMM_LIBRARY: '/nowhere/lib.so' } });
    expect(code).to.equal(1);
    const info = JSON.parse(stdout) as Info;
    expect(info.library).to.be.null;
    expect(info.problems.join('\n')).to.contain('/nowhere/lib.so').and.to.contain('QKVGEMM_LIBRARY');
  });
});
