import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { qkvgemm, root, testFolder } from './support/command.js';
import { writeAttentionModel } from './support/attention.js';
import { blocks } from './support/readme.js';

const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8');

/** Commands of npm itself. */
const OWN = ['install', 'rebuild', 'ci'];

describe('README.md', () => {
  const folder = testFolder();

  it('its TypeScript example runs', () => {
    const [example, ...others] = blocks('README.md', 'ts');
    expect(others).to.deep.equal([]);
    const source = (example ?? '')
      .replace("'onnx-qkv-gemm'", `'${pathToFileURL(path.join(root, 'ts', 'index.ts')).href}'`)
      .replace("'onnxruntime-node'", `'${import.meta.resolve('onnxruntime-node')}'`);
    expect(source.match(/file:/g)).to.have.length(2);
    writeAttentionModel(folder());
    fs.writeFileSync(path.join(folder(), 'example.mts'), source);
    const { status, stdout, stderr } = spawnSync(
      process.execPath,
      ['--import', import.meta.resolve('tsx'), 'example.mts'],
      { cwd: folder(), encoding: 'utf8' },
    );
    expect(status, stderr).to.equal(0);
    expect(stdout).to.equal('1 fused, 0 refused\n[ 1, 5, 8 ]\n');
  });

  it('its shell examples run', () => {
    const commands = blocks('README.md', 'sh').flatMap((block) => block.trim().split('\n'));
    expect(commands.length).to.be.at.least(3);
    writeAttentionModel(folder());
    for (const command of commands) {
      const [name, ...args] = command.replace(/ +#.*$/, '').split(/ +/);
      expect(name, command).to.equal('qkvgemm');
      const { code, stderr } = qkvgemm(args, { cwd: folder(), env: { QKVGEMM_CACHE_DIR: folder() } });
      expect(stderr, command).to.equal('');
      expect(code, command).to.equal(0);
    }
  });

  it('its npm scripts exist', () => {
    const { scripts } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
      scripts: Record<string, string>;
    };
    const named = [...readme.matchAll(/(?:^|`)npm (?:run )?(\w+)/gm)].map((match) => match[1] ?? '');
    expect(named).to.include.members(['demo', 'test']);
    for (const name of named) if (!OWN.includes(name)) expect(scripts, name).to.have.property(name);
  });

  it('names every flag and exit code of the command, and no other', () => {
    const stdout = ['fuse', 'tune', 'verify', 'inspect', 'bench', 'doctor']
      .map((command) => qkvgemm([command, '--help']).stdout)
      .join();
    const flags = (text: string): Set<string> =>
      new Set([...text.matchAll(/(?<![\w-])--[a-z][a-z-]*/g)].map((match) => match[0]));
    const known = flags(stdout);
    for (const flag of flags(readme)) expect([...known], flag).to.include(flag);
    for (const flag of known) {
      if (['--help', '--output'].includes(flag)) continue; // -o is in the example
      expect([...flags(readme)], flag).to.include(flag);
    }
    const codes = [...readme.matchAll(/^\| (\d) /gm)].map((match) => match[1]);
    expect(codes).to.deep.equal(['0', '1', '2', '3', '4']);
  });
});
