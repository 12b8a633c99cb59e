/** RECIPES.md's recipes for exporters in Python, as they stand, with small random models in place of the models that they name. */
import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { libraryPath, verifyModels } from '../ts/index.js';
import { qkvgemm, testFolder } from './support/command.js';
import { needPython, runPython } from './support/python.js';
import { blocks } from './support/readme.js';

const GPT2 = `
import torch, transformers
torch.manual_seed(1)
config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=64, bos_token_id=1, eos_token_id=2)
transformers.GPT2LMHeadModel(config).save_pretrained("gpt2")
`;

const LLAMA = `
import torch, transformers, tokenizers
torch.manual_seed(1)
config = transformers.LlamaConfig(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, hidden_size=64,
    intermediate_size=64, vocab_size=64, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)
transformers.LlamaForCausalLM(config).save_pretrained("llama")
words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
names = dict(unk_token="w0", bos_token="w1", eos_token="w2", pad_token="w0")
transformers.PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained("llama")
`;

/** Programs that Python packages install, as modules. */
const MODULES: Record<string, string[]> = {
  'optimum-cli': ['-m', 'optimum.commands.optimum_cli'],
  olive: ['-m', 'olive'],
  python: [],
};

describe('RECIPES.md, exporters in Python', function () {
  this.timeout(600_000);
  const folder = testFolder();

  /** Runs a section's commands. */
  function runCommands(python: string, section: string): void {
    const [commands = '', ...others] = blocks('RECIPES.md', '', section);
    expect(others).to.deep.equal([]);
    for (const command of commands.trim().split('\n')) {
      const [program = '', ...args] = command.replace('LIBRARY', libraryPath()).split(' ');
      const module = MODULES[program];
      if (module) runPython(python, [...module, ...args], folder());
      else if (program === 'qkvgemm') {
        // Without a function body, so that the library must run the nodes.
        const { code, stdout, stderr } = qkvgemm([...args, '--no-fallback'], { cwd: folder() });
        expect(code, stderr).to.equal(0);
        expect(stdout).to.match(/^Fused 2, /);
      } else if (program === 'cp') fs.copyFileSync(args[0] ?? '', path.join(folder(), args[1] ?? ''));
      else throw new Error(`'${command}' is no command that is known here`);
    }
  }

  it('Optimum: what it exports is fused, and its class generates the same tokens', function () {
    const python = needPython(this, [
      'torch',
      'transformers',
      'optimum.exporters.onnx',
      'optimum.onnxruntime',
    ]);
    runPython(python, ['-c', GPT2], folder());
    runCommands(python, 'Optimum');
    const [example = '', ...others] = blocks('RECIPES.md', 'python', 'Optimum');
    expect(others).to.deep.equal([]);
    const original = example
      .replace('fused.onnx', 'model.onnx')
      .replace('options.register_custom_ops_library(library)', '');
    expect(original.length).to.be.below(example.length - 40);
    const tokens = JSON.parse(runPython(python, ['-c', example], folder())) as number[][];
    expect(tokens[0]).to.have.length(3 + 5);
    expect(tokens).to.deep.equal(JSON.parse(runPython(python, ['-c', original], folder())));
  });

  it('Olive: what its workflow gives is fused, and computes the same', async function () {
    const python = needPython(this, ['torch', 'transformers', 'olive']);
    runPython(python, ['-c', LLAMA], folder());
    const [workflow = ''] = blocks('RECIPES.md', 'json', 'Olive');
    fs.writeFileSync(path.join(folder(), 'workflow.json'), workflow);
    runCommands(python, 'Olive');
    const [a = '', b = ''] = ['model.onnx', 'fused.onnx'].map((name) => path.join(folder(), 'out', name));
    const { equal, outputs } = await verifyModels(a, b, {
      dims: { batch_size: 2, sequence_length: 5 },
      maxError: 1e-5,
    });
    expect(outputs.map(({ name }) => name)).to.include('logits');
    expect(equal, JSON.stringify(outputs)).to.equal(true);
  });

  describe('onnxruntime-genai', () => {
    /** The example's fields, put into what the builder wrote. */
    function configure(): void {
      const file = path.join(folder(), 'llama-genai', 'genai_config.json');
      const merge = (into: Record<string, unknown>, from: Record<string, unknown>): void => {
        for (const [key, value] of Object.entries(from)) {
          const own = into[key];
          if (typeof value === 'object' && value !== null && typeof own === 'object' && own !== null)
            merge(own as Record<string, unknown>, value as Record<string, unknown>);
          else into[key] = value;
        }
      };
      const config = JSON.parse(fs.readFileSync(file, 'utf8')) as Record<string, unknown>;
      const [example = ''] = blocks('RECIPES.md', 'json', 'onnxruntime-genai');
      merge(config, JSON.parse(example) as Record<string, unknown>);
      fs.writeFileSync(file, JSON.stringify(config));
    }

    it('what its builder makes is fused, and computes the same', async function () {
      const python = needPython(this, ['torch', 'transformers', 'onnxruntime_genai.models.builder']);
      runPython(python, ['-c', LLAMA], folder());
      runCommands(python, 'onnxruntime-genai');
      const made = path.join(folder(), 'llama-genai');
      const sizes = {
        batch_size: 1,
        sequence_length: 4,
        past_sequence_length: 3,
        total_sequence_length: 7,
        kv_cache_dim: 32,
      };
      const { equal, outputs } = await verifyModels(
        path.join(made, 'model.onnx'),
        path.join(made, 'fused.onnx'),
        {
          dims: sizes,
          maxError: 1e-5,
        },
      );
      expect(outputs.map(({ name }) => name)).to.include('logits');
      expect(equal, JSON.stringify(outputs)).to.equal(true);
      configure();
      const config = fs.readFileSync(path.join(made, 'genai_config.json'), 'utf8');
      expect(JSON.parse(config)).to.have.nested.property('model.decoder.filename', 'fused.onnx');
      expect(JSON.parse(config)).to.have.nested.property('model.decoder.session_options.custom_ops_library');
      expect(JSON.parse(config), 'what was there').to.have.nested.property('model.decoder.head_size', 32);
      expect(fs.existsSync(path.join(made, 'libqkvgemm.so'))).to.equal(true);
    });

    it('its runtime loads the library from the configuration, and generates the same tokens', function () {
      const python = needPython(this, ['torch', 'transformers', 'onnxruntime_genai.onnxruntime_genai']);
      runPython(python, ['-c', LLAMA], folder());
      runCommands(python, 'onnxruntime-genai');
      const generate = `
import onnxruntime_genai as og
model = og.Model("llama-genai")
params = og.GeneratorParams(model)
params.set_search_options(max_length=10)
generator = og.Generator(model, params)
generator.append_tokens([11, 12, 13])
while not generator.is_done():
    generator.generate_next_token()
print([int(token) for token in generator.get_sequence(0)])
`;
      const original = runPython(python, ['-c', generate], folder());
      configure();
      expect(runPython(python, ['-c', generate], folder())).to.equal(original);
    });
  });
});
