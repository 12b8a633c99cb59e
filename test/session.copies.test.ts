/** Two copies of the addon in one process: each replaces ONNX Runtime's functions and calls what it replaced. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const program = fileURLToPath(new URL('./support/session_copies.ts', import.meta.url));

/** What sessions gave after each of the steps: from bytes, and from a path. */
function outcomes(steps: string): string[] {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'qkvgemm-copies-'));
  try {
    const child = spawnSync(process.execPath, ['--import', 'tsx', program, folder, steps], {
      encoding: 'utf8',
      timeout: 60_000,
    });
    expect(child.status, `${child.signal ?? ''} ${child.stderr}`).to.equal(0);
    return JSON.parse(child.stdout) as string[];
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

const right = 'right right';
const without = 'without without';

describe('two copies of the addon', () => {
  it('serve the same session, the libraries registered once', () => {
    expect(outcomes('ab')).to.deep.equal([right, right]);
  });

  it('do not call each other in a circle when the first is installed again', () => {
    expect(outcomes('ababa')).to.deep.equal([right, right, right, right, right]);
  });

  it('are undone in the reverse order, and installed again', () => {
    expect(outcomes('abBAab')).to.deep.equal([right, right, right, without, right, right]);
  });

  it('leave the entry to the other when undone beneath it', () => {
    // After A, b is still in front and calls a: nothing may break, and undoing b brings a back.
    expect(outcomes('abAaBA')).to.deep.equal([right, right, right, right, right, without]);
  });
});
