import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { qkvgemm, root, testFolder } from './support/command.js';
import { writeAttentionModel } from './support/attention.js';

describe('qkvgemm', () => {
  const folder = testFolder();

  it('--help lists the commands, the exit codes and examples', () => {
    const { code, stdout } = qkvgemm(['--help']);
    expect(code).to.equal(0);
    for (const text of ['fuse', 'tune', 'inspect', 'verify', 'bench', 'doctor', 'Exit codes:', 'Examples:'])
      expect(stdout).to.contain(text);
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
    [
      'a block of too few rows',
      ['fuse', 'model.onnx', '--dtype', 'int8', '--int8-block', '7'],
      /--int8-block is 7, expected 8/,
    ],
    [
      'a block of weights that do not become int8',
      ['fuse', 'model.onnx', '--int8-block', '64'],
      /--dtype is keep: add --dtype int8/,
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
