import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { attentionModel } from '../models/attention.js';
import { worstDifference } from '../scripts/bench/difference.js';
import { Model } from '../ts/onnx/model.js';
import type { FuseReport } from '../ts/rewrite/report.js';
import { withQkvGemm } from '../ts/session/index.js';
import { attentionInput, writeAttentionModel } from './support/attention.js';
import { filesIn, qkvgemm, testFolder } from './support/command.js';
import { corpusFolder, corpusModels } from '../models/corpus.js';
import { quiet, runModel } from './support/run.js';

const bytesOf = (file: string): Uint8Array => new Uint8Array(fs.readFileSync(file));

/** Largest difference to the original, with and without the library. */
async function differences(original: Uint8Array, fused: Uint8Array): Promise<[number, number]> {
  const reference = await runModel(original, [attentionInput()]);
  return [
    worstDifference(reference, await runModel(fused, [attentionInput()], withQkvGemm(quiet))),
    worstDifference(reference, await runModel(fused, [attentionInput()])),
  ];
}

describe('qkvgemm fuse', () => {
  const folder = testFolder();

  it('writes model.fused.onnx beside the input by default, and says so', async () => {
    const model = writeAttentionModel(folder());
    const { code, stdout, stderr } = qkvgemm(['fuse', model]);
    expect(stderr).to.equal('');
    expect(code).to.equal(0);
    const out = path.join(folder(), 'model.fused.onnx');
    expect(stdout)
      .to.match(/^Fused 1, refused 0\./)
      .and.to.contain(`Wrote ${out}`);
    expect(stdout).to.contain('com.deepspeed.QKVGemm').and.to.contain('8 8 8');
    expect(filesIn(folder())).to.deep.equal(['model.fused.onnx', 'model.onnx']);
    expect(bytesOf(model)).to.deep.equal(attentionModel());
    for (const d of await differences(bytesOf(model), bytesOf(out))) expect(d).to.be.below(1e-5);
  });

  for (const [what, args] of Object.entries({
    '-o': ['-o', 'a.onnx'],
    '--output': ['--output', 'a.onnx'],
    'the second argument': ['a.onnx'],
    'both, being the same': ['a.onnx', '-o', 'a.onnx'],
  })) {
    it(`takes the output from ${what}`, () => {
      writeAttentionModel(folder());
      const { code, stderr } = qkvgemm(['fuse', 'model.onnx', ...args], { cwd: folder() });
      expect(stderr).to.equal('');
      expect(code).to.equal(0);
      expect(filesIn(folder())).to.deep.equal(['a.onnx', 'model.onnx']);
    });
  }

  // Error of the weights, relative to the largest output: 2^-11 and 2^-8 per weight, 1/254 of a column's largest.
  for (const [dtype, weightType, bound] of [
    ['keep', 'float32', 1e-5],
    ['fp16', 'float16', 2e-3],
    ['bf16', 'bfloat16', 2e-2],
    ['int8', 'int8', 2e-2],
  ] as const) {
    it(`--dtype ${dtype}: ${weightType} weights, and close to the original`, async () => {
      const model = writeAttentionModel(folder());
      const out = path.join(folder(), 'out.onnx');
      const { code, stdout, stderr } = qkvgemm(['fuse', model, out, '--dtype', dtype, '--json']);
      expect(stderr).to.equal('');
      expect(code).to.equal(0);
      const report = JSON.parse(stdout) as FuseReport & { input: string; output: string };
      expect(report.output).to.equal(out);
      expect(report.fused.map((site) => site.weightType)).to.deep.equal([weightType]);
      expect(report.fused[0]?.weightSqnrDb === undefined).to.equal(dtype === 'keep');
      const [withLibrary, without] = await differences(bytesOf(model), bytesOf(out));
      expect(withLibrary).to.be.below(bound);
      expect(without).to.be.below(bound);
    });
  }

  it('--int8-block 8: scales of blocks, and a smaller error than one a column', async () => {
    const model = writeAttentionModel(folder());
    const out = path.join(folder(), 'out.onnx');
    const error = (...more: string[]): number => {
      const { code, stdout } = qkvgemm(['fuse', model, out, '--dtype', 'int8', '--overwrite', ...more]);
      expect(code).to.equal(0);
      expect(stdout.includes('int8, blocks of 8')).to.equal(more.length > 0);
      return Number(/([\d.]+) dB/.exec(stdout)?.[1]);
    };
    const columns = error();
    expect(error('--int8-block', '8')).to.be.above(columns);
    for (const difference of await differences(bytesOf(model), bytesOf(out)))
      expect(difference).to.be.below(2e-2);
  });

  it('--json reports the whole of what was done', () => {
    const model = writeAttentionModel(folder());
    const { stdout } = qkvgemm(['fuse', model, '--json']);
    const report = JSON.parse(stdout) as FuseReport & { input: string };
    expect(report.input).to.equal(model);
    expect(report.fused[0]).to.include({ normType: 'layer_norm', k: 16, n: 24, emitNorm: false });
    expect(report.fused[0]?.splits).to.deep.equal([8, 8, 8]);
    expect(report.opsBefore).to.include({ LayerNormalization: 1, MatMul: 5 });
    expect(report.opsAfter).to.include({ 'com.deepspeed.QKVGemm': 1, MatMul: 2 });
    expect(report.functions).to.deep.equal(['com.deepspeed:QKVGemm']);
    expect(report.bytesAfter).to.equal(fs.statSync(path.join(folder(), 'model.fused.onnx')).size);
  });

  it('--no-fallback leaves the function out: the model then needs the library', async () => {
    const model = writeAttentionModel(folder());
    const out = path.join(folder(), 'out.onnx');
    expect(qkvgemm(['fuse', model, out, '--no-fallback']).code).to.equal(0);
    expect(new Model(bytesOf(out)).functions).to.deep.equal([]);
    const reference = await runModel(bytesOf(model), [attentionInput()]);
    const fused = await runModel(bytesOf(out), [attentionInput()], withQkvGemm(quiet));
    expect(worstDifference(reference, fused)).to.be.below(1e-5);
    const error = await runModel(bytesOf(out), [attentionInput()]).catch((e: Error) => e);
    expect(error).to.be.an('error').with.property('message').that.contains('com.deepspeed');
  });

  it('--no-verify does not load the result: it works where the library is missing', () => {
    const model = writeAttentionModel(folder());
    const env = { QKVGEMM_LIBRARY: path.join(folder(), 'nowhere.so') };
    const checked = qkvgemm(['fuse', model], { env });
    expect(checked.code).to.equal(1);
    expect(checked.stderr).to.contain('nowhere.so').and.to.contain('QKVGEMM_LIBRARY');
    expect(filesIn(folder())).to.deep.equal(['model.onnx']);
    expect(qkvgemm(['fuse', model, '--no-verify'], { env }).code).to.equal(0);
    expect(filesIn(folder())).to.deep.equal(['model.fused.onnx', 'model.onnx']);
  });

  it('--dry-run writes nothing, --explain says what was replaced and why the rest was not', () => {
    const model = writeAttentionModel(folder());
    const dry = qkvgemm(['fuse', model, '--dry-run', '--explain']);
    expect(dry.code).to.equal(0);
    expect(dry.stdout).to.contain('Dry run: nothing was written.');
    expect(dry.stdout).to.match(
      /norm h_node \[layer-normalization \+ matmul.*\]: became h_node\/QKVGemm, which replaces: h_node, .*v_node/,
    );
    expect(filesIn(folder())).to.deep.equal(['model.onnx']);
    expect((JSON.parse(qkvgemm(['fuse', model, '--dry-run', '--json']).stdout) as { output: null }).output).to
      .be.null;

    writeAttentionModel(folder(), { attention: false });
    const plain = qkvgemm(['fuse', model, '--dry-run']);
    const explained = qkvgemm(['fuse', model, '--dry-run', '--explain']);
    expect([plain.code, explained.code]).to.deep.equal([3, 3]);
    expect(plain.stdout).to.contain('h_node: none of its 3 projections leads to attention');
    expect(explained.stdout).to.contain('h_node (LayerNormalization) [layer-normalization]: none of its 3');
    expect(explained.stdout).to.contain('(at ');
  });

  it('--targets takes in more than what leads to attention; what is no target is a usage error', () => {
    const model = writeAttentionModel(folder());
    const out = path.join(folder(), 'out.onnx');
    const { code, stdout, stderr } = qkvgemm(['fuse', model, out, '--targets', 'linear, qkv,qkv', '--json']);
    expect([code, stderr]).to.deep.equal([0, '']);
    const report = JSON.parse(stdout) as FuseReport;
    expect(report.fused.map(({ targets, norm }) => [targets, norm])).to.deep.equal([[['qkv'], 'h_node']]);

    writeAttentionModel(folder(), { attention: false });
    const linear = qkvgemm(['fuse', model, '--dry-run', '--explain', '--targets', 'linear']);
    expect(linear.stdout).to.contain('no norm [none + ');
    const mlp = qkvgemm(['fuse', model, '--dry-run', '--json', '--targets', 'mlp']);
    expect((JSON.parse(mlp.stdout) as FuseReport).fused[0]?.targets).to.deep.equal(['mlp']);

    for (const targets of ['attention', '', 'qkv,']) {
      const wrong = qkvgemm(['fuse', model, '--targets', targets]);
      expect(wrong.code, targets).to.equal(2);
      expect(wrong.stderr).to.contain('is no target; expected one or more of qkv,mlp,linear');
    }
  });

  it('--overwrite replaces an existing output; without it that is an error', () => {
    const model = writeAttentionModel(folder());
    const out = path.join(folder(), 'out.onnx');
    fs.writeFileSync(out, 'mine');
    const refused = qkvgemm(['fuse', model, out]);
    expect(refused.code).to.equal(1);
    expect(refused.stderr).to.contain(out).and.to.contain('--overwrite');
    expect(fs.readFileSync(out, 'utf8')).to.equal('mine');
    expect(qkvgemm(['fuse', model, out, '--overwrite']).code).to.equal(0);
    expect(new Model(bytesOf(out)).functions).to.deep.equal(['com.deepspeed:QKVGemm']);
    expect(filesIn(folder())).to.deep.equal(['model.onnx', 'out.onnx']);
  });

  it('exit code 3 where nothing can be fused; nothing is written', () => {
    const model = writeAttentionModel(folder(), { attention: false });
    const { code, stdout, stderr } = qkvgemm(['fuse', model]);
    expect(code).to.equal(3);
    expect(stderr).to.equal('');
    expect(stdout).to.contain('Nothing could be fused; nothing was written.');
    expect(filesIn(folder())).to.deep.equal(['model.onnx']);
  });

  it('fuses models as exporters write them', function () {
    const names = corpusModels().filter((name) => /^(bert\.ts17|gpt2\.dynamo18|llama\.dynamo18)$/.test(name));
    if (names.length === 0) {
      console.log(`      (no model of the corpus at ${corpusFolder})`);
      this.skip();
    }
    for (const name of names) {
      const out = path.join(folder(), `${name}.onnx`);
      const { code, stdout, stderr } = qkvgemm(['fuse', path.join(corpusFolder, name, 'model.onnx'), out]);
      expect(stderr, name).to.equal('');
      expect(code, name).to.equal(0);
      expect(stdout, name).to.match(/^Fused 2, /);
      expect(fs.existsSync(out), name).to.equal(true);
    }
  });
});
