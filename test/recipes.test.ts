/** RECIPES.md, run as they stand: in an installed package, with transformers.js, and with Python where that is. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { attentionModel } from '../models/attention.js';
import { fuse } from '../ts/index.js';
import { installPacked, runNode } from './support/packed.js';
import { needPython } from './support/python.js';
import { blocks } from './support/readme.js';

const TRANSFORMERS = '@huggingface/transformers@4.3.1';
const VOCABULARY = ['[PAD]', '[UNK]', 'the', 'cat', 'sat', 'down'];

/** A folder in the layout of transformers.js: a tokenizer of six words, an encoder, and the fused one, which needs the library. */
async function writeEncoder(folder: string): Promise<void> {
  const bytes = attentionModel({ tokens: VOCABULARY.length });
  const { model, report } = await fuse(bytes, { fallback: false });
  expect(report.fused).to.have.length(1);
  fs.mkdirSync(path.join(folder, 'onnx'), { recursive: true });
  fs.writeFileSync(path.join(folder, 'onnx', 'model.onnx'), bytes);
  fs.writeFileSync(path.join(folder, 'onnx', 'fused.onnx'), model);
  const json = (name: string, content: object): void =>
    fs.writeFileSync(path.join(folder, name), JSON.stringify(content));
  json('config.json', { model_type: 'bert' });
  json('tokenizer_config.json', { tokenizer_class: 'PreTrainedTokenizerFast', unk_token: '[UNK]' });
  json('tokenizer.json', {
    version: '1.0',
    added_tokens: [],
    normalizer: { type: 'Lowercase' },
    pre_tokenizer: { type: 'Whitespace' },
    post_processor: null,
    decoder: null,
    model: {
      type: 'WordLevel',
      unk_token: '[UNK]',
      vocab: Object.fromEntries(VOCABULARY.map((word, id) => [word, id])),
    },
  });
}

describe('RECIPES.md', () => {
  let folder = '';

  before(async function () {
    ({ folder } = installPacked(this, [TRANSFORMERS]));
    await writeEncoder(path.join(folder, 'models', 'tiny'));
  });

  after(() => {
    if (folder !== '') fs.rmSync(folder, { recursive: true, force: true });
  });

  it('transformers.js: its sessions take the options, and give what the original gives', () => {
    const [example = '', ...others] = blocks('RECIPES.md', 'js');
    expect(others).to.deep.equal([]);
    fs.writeFileSync(path.join(folder, 'recipe.mjs'), example);
    const recipe = runNode(folder, ['recipe.mjs']);
    expect(recipe, recipe.stderr).to.include({ code: 0, stdout: '[ 1, 3, 8 ]\n' });

    const comparison = `
      import { env, pipeline } from '@huggingface/transformers';
      import { withQkvGemm } from 'onnx-qkv-gemm';
      env.localModelPath = 'models';
      env.allowRemoteModels = false;
      const make = (own) => pipeline('feature-extraction', 'tiny', { device: 'cpu', dtype: 'fp32', ...own });
      const [original, fused] = await Promise.all([make({}), make({ model_file_name: 'fused', session_options: withQkvGemm() })]);
      const [a, b] = [await original('The cat sat down'), await fused('The cat sat down')];
      const largest = (values) => values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const without = await make({ model_file_name: 'fused' }).then(() => 'loads', ({ message }) => message);
      console.log(JSON.stringify({ dims: b.dims, size: largest(a.data), difference: largest(a.data.map((v, i) => v - b.data[i])), without }));`;
    fs.writeFileSync(path.join(folder, 'comparison.mjs'), comparison);
    const { code, stdout, stderr } = runNode(folder, ['comparison.mjs']);
    expect(code, stderr).to.equal(0);
    const result = JSON.parse(stdout) as {
      dims: number[];
      size: number;
      difference: number;
      without: string;
    };
    expect(result.dims).to.deep.equal([1, 4, 8]);
    expect(result.size).to.be.above(0.1);
    expect(result.difference / result.size).to.be.below(1e-5);
    expect(result.without).to.contain('QKVGemm'); // it was the library that ran the node
  });

  it('PyTorch: exported, fused, and run by ONNX Runtime in Python', function () {
    const python = needPython(this, ['torch', 'onnxscript', 'onnxruntime']);
    const [exporting = '', running = '', ...others] = blocks(
      'RECIPES.md',
      'python',
      'PyTorch to ONNX Runtime in Python',
    );
    expect(others).to.deep.equal([]);
    const run = (source: string): string => {
      const result = spawnSync(python, ['-c', source], { cwd: folder, encoding: 'utf8' });
      expect(result.status, result.stderr).to.equal(0);
      return result.stdout;
    };
    run(exporting);
    const cli = path.join('node_modules', '.bin', 'qkvgemm');
    // Without a function body, to see that the library runs the node.
    const fused = runNode(folder, [cli, 'fuse', 'model.onnx', '-o', 'fused.onnx', '--no-fallback']);
    expect(fused.code, fused.stderr).to.equal(0);
    const [, difference] = /largest difference (\S+)/.exec(run(running)) ?? [];
    expect(Number(difference)).to.be.below(1e-5);
  });
});
