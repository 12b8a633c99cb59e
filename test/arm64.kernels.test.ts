/** The kernels for 64-bit Arm in an emulator: with each instruction set, on processors that have it and that lack it. */
import { expect } from 'chai';
import path from 'node:path';
import { arm64Folder, arm64OrSkip, emulate, PROCESSORS, type Processor } from './support/arm64.js';

const executable = (name: string): string => path.join(arm64Folder, `qkvgemm_${name}_test`);
/** The emulator is slow: one case in so many, by chance, with a seed that is printed where something fails. */
const SHARE = '20';

/** Tests what is chosen on a processor, by itself or by `QKVGEMM_ISA`. */
function expectRight(processor: Processor, isa: string, env: Record<string, string> = {}): void {
  const seed = String(Math.floor(Math.random() * 2 ** 31));
  const { code, stdout, stderr } = emulate(processor, [executable('cpu'), seed, isa, SHARE], { env });
  expect(code, stdout + stderr).to.equal(0);
  expect(stdout).to.match(new RegExp(`^chosen: ${isa}\n`));
  const [, cases] = new RegExp(`\n${isa}: (\\d+) cases, \\d+ elements so far, 0 failures\n$`).exec(stdout) ?? []; // prettier-ignore
  // All conversions between 16 bits and float are among them, 65536.
  expect(Number(cases) - 65536, stdout).to.be.above(200);
}

describe('64-bit Arm', () => {
  before(function () {
    arm64OrSkip(this);
  });

  for (const [processor, isa] of Object.entries(PROCESSORS) as [Processor, string][])
    it(`on ${processor} ${isa} is chosen, and its kernels are right`, () => {
      expectRight(processor, isa);
    });

  it('on max neon_i8mm, which is not its fastest, can be forced, and its kernels are right', () => {
    expectRight('max', 'neon_i8mm', { QKVGEMM_ISA: 'neon_i8mm' });
  });

  for (const [processor, isa, there] of [
    ['cortex-a53', 'neon_dot', 'scalar, neon'],
    ['cortex-a53', 'neon_bf16', 'scalar, neon'],
    ['cortex-a76', 'neon_i8mm', 'scalar, neon, neon_dot'],
    ['max', 'amx', 'scalar, neon, neon_dot, neon_i8mm, neon_bf16'],
  ] as const)
    it(`on ${processor} ${isa} is refused`, () => {
      const { code, stderr } = emulate(processor, [executable('cpu')], { env: { QKVGEMM_ISA: isa } });
      expect(code).to.equal(2);
      expect(stderr).to.contain(`QKVGEMM_ISA is '${isa}', which this processor lacks; it has ${there}.`);
    });

  it('timed plans and their file', () => {
    const { code, stdout, stderr } = emulate('max', [executable('tuning')]);
    expect(code, stdout + stderr).to.equal(0);
  });
});
