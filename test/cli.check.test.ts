import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { checkLoads } from '../ts/check_loads.js';
import { fuseFile } from '../ts/fuse_file.js';
import { encodeAttribute, encodeNode } from '../ts/onnx/node.js';
import { fuseBytes } from '../ts/rewrite/fuse.js';
import { checkRewritten, verifyModels } from '../ts/verify/verify.js';
import { attentionModel } from '../models/attention.js';
import { LLAMA_SMALL, writeLlamaStack } from '../models/llama_stack.js';
import { writeAttentionModel } from './support/attention.js';
import { filesIn, qkvgemm, testFolder } from './support/command.js';
import { failure } from './support/failure.js';

describe('qkvgemm fuse --check', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  it('runs both and says how far each output is off', () => {
    const model = writeAttentionModel(folder(), { residual: true, n: 16 });
    const { code, stdout, stderr } = qkvgemm(['fuse', model, '--check', '--dims', 'batch=2,sequence=7']);
    expect(code, stderr).to.equal(0);
    expect(stdout).to.match(/output +│ largest difference │ of the largest element/);
    expect(stdout).to.match(/│ y +│ \d\.\d\de-\d+ +│ \d\.\d\de-\d+ +│/);
    const json = qkvgemm(['fuse', model, at('j.onnx'), '--check', '--json']);
    const { differences } = JSON.parse(json.stdout) as { differences: { name: string; maxError: number }[] };
    expect(differences.map(({ name }) => name)).to.deep.equal(['y']);
    expect(differences[0]?.maxError).to.be.below(1e-5);
  });

  it('refuses above the bound, with the output and both numbers; nothing is written', () => {
    const model = writeAttentionModel(folder());
    const flags = ['--dtype', 'int8', '--check', '--max-error', '1e-7'];
    const { code, stdout, stderr } = qkvgemm(['fuse', model, ...flags]);
    expect(stderr).to.match(
      /^qkvgemm: .*outputs differ.*'y' by \d\.\d\de-\d+ \(\d\.\d\de-\d+ of .*allowed are 1e-7/,
    );
    expect([code, stdout]).to.deep.equal([4, '']);
    expect(filesIn(folder())).to.deep.equal(['model.onnx']);
    expect(qkvgemm(['fuse', model, '--dtype', 'int8', '--check']).code).to.equal(0);
  });

  it('finds a result that is wrong, and one that is missing or not finite', async () => {
    writeAttentionModel(folder());
    fs.writeFileSync(at('other.onnx'), fuseBytes(attentionModel({ biases: ['q', 'v'] })).model);
    const dims = { batch: 2, sequence: 3 };
    const { outputs, bounds, equal } = await verifyModels(at('model.onnx'), at('other.onnx'), { dims });
    expect(equal).to.equal(false);
    expect(outputs[0]?.maxError).to.be.above(0.01);
    const error = await failure(() => checkRewritten({ outputs, bounds }));
    expect(error.code).to.equal('CHECK_FAILED');
    expect(error.message).to.match(/'y' by .* of its largest element\), first at \[0, 0, \d\]/);
    checkRewritten({ outputs: outputs.map((output) => ({ ...output, within: true })), bounds });
  });

  it('models whose dimensions do not take the sizes that are tried first run with others, or say what to give', async () => {
    const extraNodes = [
      encodeNode({
        opType: 'Constant',
        inputs: [],
        outputs: ['axes'],
        attributes: [encodeAttribute('value_ints', { integers: [0] })],
      }),
      encodeNode({ opType: 'Squeeze', inputs: ['x', 'axes'], outputs: ['of one batch'] }),
    ];
    const single = writeAttentionModel(folder(), { extraNodes });
    const { differences } = await fuseFile(single, at('m.onnx'), { check: true });
    expect(differences?.[0]?.maxError).to.be.below(1e-5);
    const stack = writeLlamaStack(folder(), { ...LLAMA_SMALL, layers: 1 });
    const zero = await failure(() => fuseFile(stack, at('n.onnx'), { check: true }));
    expect(zero.code).to.equal('INVALID_MODEL');
    expect(zero.message).to.match(/does not run on generated inputs: .*total_sequence_length.*--dims/);
    writeAttentionModel(folder());
    const error = await failure(() =>
      fuseFile(at('model.onnx'), at('n.onnx'), { check: true, dims: { batch: 2 ** 20, sequence: 2 ** 20 } }),
    );
    expect(error.code).to.equal('INVALID_ARGUMENT');
    expect(error.message).to.contain('at most 2^30 elements');
  });

  it('wrong flags are named', () => {
    const model = writeAttentionModel(folder());
    for (const [flags, message] of [
      [['--max-error', 'much'], /--max-error.*expected a number >= 0/],
      [['--max-error', '-1'], /--max-error.*expected a number >= 0/],
      [['--dims', 'batch'], /--dims/],
    ] as const) {
      const { code, stderr } = qkvgemm(['fuse', model, '--check', ...flags]);
      expect(stderr).to.match(message);
      expect(code).to.equal(2);
    }
  });

  it('large models are loaded without optimisations, with and without function bodies', async () => {
    const model = writeAttentionModel(folder());
    for (const fallback of [true, false]) {
      fs.writeFileSync(at('m.onnx'), fuseBytes(new Uint8Array(fs.readFileSync(model)), { fallback }).model);
      await checkLoads(at('m.onnx'), model, { bytes: 1e9, fallback });
      fs.writeFileSync(at('broken.onnx'), fs.readFileSync(at('m.onnx')).subarray(0, 500));
      const error = await failure(() => checkLoads(at('broken.onnx'), model, { bytes: 1e9, fallback }));
      expect(error.code).to.equal('CHECK_FAILED');
      expect(error.message).to.contain(`loads '${model}', but not what was made of it`);
    }
  });
});

describe('qkvgemm fuse --skip', () => {
  const folder = testFolder();

  it('keeps a norm as it is, and says so', () => {
    const model = writeAttentionModel(folder());
    const { code, stdout } = qkvgemm(['fuse', model, '--skip', 'h_node', '--json']);
    const report = JSON.parse(stdout) as { fused: unknown[]; refused: { node: string; reason: string }[] };
    expect(report.fused).to.deep.equal([]);
    expect(report.refused).to.have.length(1);
    expect(report.refused[0]).to.include({ node: 'h_node', reason: 'it is to stay as it is (skip)' });
    expect(code).to.equal(3);
  });

  it('keeps a projection as it is; the others are fused', () => {
    const bytes = attentionModel();
    const [all, fewer] = [[], ['v_node']].map((skip) => fuseBytes(bytes, { skip }).report);
    expect(all?.fused[0]?.splits).to.have.length(3);
    expect(fewer?.fused[0]?.splits).to.have.length(2);
    expect(fewer?.fused[0]?.replaced).not.to.include('v_node');
    const none = fuseBytes(bytes, { skip: ['q_node', 'k_node', 'v_node'] }).report;
    expect(none.fused).to.deep.equal([]);
    expect(none.refused[0]?.reason).to.equal('a projection is to stay as it is (skip)');
  });

  it('a name that no node has is an error', async () => {
    const error = await failure(() => fuseBytes(attentionModel(), { skip: ['nobody'] }));
    expect(error.code).to.equal('INVALID_ARGUMENT');
    expect(error.message).to.contain("no node of the graph is named 'nobody'");
    expect((await failure(() => fuseBytes(attentionModel(), { skip: [''] }))).code).to.equal(
      'INVALID_ARGUMENT',
    );
  });
});
