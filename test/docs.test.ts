/** The API's documentation: all that is exported has a docstring, and what has none is an error. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { root, testFolder } from './support/command.js';

function typedoc(args: readonly string[]): { code: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync(
    process.execPath,
    [path.join(root, 'node_modules', 'typedoc', 'bin', 'typedoc'), ...args],
    { cwd: root, encoding: 'utf8' },
  );
  return { code: status, output: stdout + stderr };
}

interface Reflection {
  name: string;
  kind: number;
  children?: Reflection[];
}

describe('documentation of the API', () => {
  const folder = testFolder();

  it('is made without warnings, and holds what the package exports', async () => {
    const file = path.join(folder(), 'api.json');
    const { code, output } = typedoc(['--json', file]);
    expect(code, output).to.equal(0);
    const { children = [] } = JSON.parse(fs.readFileSync(file, 'utf8')) as Reflection;
    const names = children.map(({ name }) => name);
    expect(names).to.include.members(Object.keys(await import('../ts/index.js')));
    expect(names).to.include.members(['FuseOptions', 'FuseReport', 'Diagnosis', 'TuneMode']);
  });

  it('fails for what has no docstring, and for a link that leads nowhere', () => {
    const write = (name: string, text: string): void => fs.writeFileSync(path.join(folder(), name), text);
    const own = JSON.parse(fs.readFileSync(path.join(root, 'typedoc.json'), 'utf8')) as object;
    write('typedoc.json', JSON.stringify({ ...own, entryPoints: ['entry.ts'], tsconfig: 'tsconfig.json' }));
    write('tsconfig.json', '{ "compilerOptions": { "types": [] }, "files": ["entry.ts"] }');
    const page = ['--options', path.join(folder(), 'typedoc.json'), '--emit', 'none'];
    write(
      'entry.ts',
      '/** A size, see {@link Nothing}. */\nexport const size = 1;\nexport const bare = 2;\n',
    );
    const { code, output } = typedoc(page);
    expect(code, output).to.be.above(0);
    expect(output).to.match(/bare .*does not have any documentation/);
    expect(output).to.match(/[Ff]ailed to resolve link.*Nothing/);
    write('entry.ts', '/** A size. */\nexport const size = 1;\n');
    expect(typedoc(page), 'all is documented').to.include({ code: 0 });
  });
});
