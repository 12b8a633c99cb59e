import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { describeFuzz, fuzz } from '../scripts/fuzz/fuzz.js';
import { mutate, Random } from '../scripts/fuzz/mutate.js';
import { attentionModel } from '../models/attention.js';
import { testFolder } from './support/command.js';

const INPUTS = 3000;

describe('mutated models', () => {
  const folder = testFolder();

  it(`${INPUTS} of them end in a sound model or in an error of the package`, async () => {
    const seed = Number(process.env.QKVGEMM_FUZZ_SEED ?? Math.floor(Math.random() * 2 ** 31));
    console.log(`  (mutations from seed ${seed}; QKVGEMM_FUZZ_SEED makes them again)`);
    // Not in the test's own folder: a finding stays for who looks for its cause.
    const save = path.join('build', 'fuzz');
    const result = await fuzz({ seed, count: INPUTS, save });
    expect(result.findings, describeFuzz(result)).to.deep.equal([]);
    expect(result.inputs).to.equal(INPUTS);
    expect(result.outcomes.fused, 'mutations that leave a model').to.be.above(INPUTS / 20);
    expect(result.outcomes.INVALID_MODEL, 'mutations that break it').to.be.above(INPUTS / 20);
  });

  it('are the same for the same seed, and others for another', () => {
    const [model, other] = [attentionModel(), attentionModel({ norm: 'rms_norm' })];
    const make = (seed: number): string =>
      Buffer.from(mutate(model, other, new Random(seed))).toString('base64');
    for (let seed = 0; seed < 50; seed++) expect(make(seed)).to.equal(make(seed));
    expect(new Set(Array.from({ length: 50 }, (_, seed) => make(seed))).size).to.be.above(40);
  });

  it('an input that hangs is a finding: it is saved, and the next one is seen', async () => {
    const result = await fuzz({
      seed: 1,
      count: 2,
      save: folder(),
      limits: { seconds: 0, megabytes: 512 },
    });
    expect(result.outcomes).to.deep.equal({ hang: 2 });
    expect(result.findings).to.have.length(2);
    for (const { file, finding } of result.findings) {
      expect(fs.statSync(file).size).to.be.above(0);
      expect(finding).to.contain('no answer within 0 seconds');
    }
  });
});
