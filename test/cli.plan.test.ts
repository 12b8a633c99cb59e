import { expect } from 'chai';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { attentionModel } from '../models/attention.js';
import { ModelBuilder, uniform } from '../models/builder.js';
import { LLAMA_SMALL, writeLlamaStack } from '../models/llama_stack.js';
import { fuseFile } from '../ts/fuse_file.js';
import { generate } from '../ts/generated_inputs.js';
import { inputRanges } from '../ts/input_ranges.js';
import { OWNER_FILE, ownerRecord, REPLACED } from '../ts/leftovers.js';
import { Model } from '../ts/onnx/model.js';
import { DataType } from '../ts/onnx/tensor.js';
import { writeAttentionModel } from './support/attention.js';
import { filesIn, qkvgemm, testFolder } from './support/command.js';
import { attend, K, layer, layerNorm, N, threeMatMul } from './support/layers.js';

describe('qkvgemm fuse --dry-run with external data', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  for (const flags of [[], ['--save-as-external-data'], ['--external-data-file', 'all.data']]) {
    it(`says what would be written: ${flags.join(' ') || 'no flags'}`, () => {
      const input = writeLlamaStack(folder(), { ...LLAMA_SMALL, layers: 1 });
      fs.mkdirSync(at('out'));
      const args = ['fuse', input, at('out', 'm.onnx'), '--json', '--no-verify', ...flags];
      const dry = qkvgemm([...args, '--dry-run']);
      expect(dry.code, dry.stderr).to.equal(0);
      expect(filesIn(at('out'))).to.deep.equal([]);
      const planned = JSON.parse(dry.stdout) as Record<string, unknown>;
      const done = JSON.parse(qkvgemm(args).stdout) as Record<string, unknown>;
      expect(planned.plannedData).to.deep.equal(done.data);
      expect(planned.bytesAfter).to.equal(done.bytesAfter);
      expect(planned.bytesAfter).to.equal(fs.statSync(at('out', 'm.onnx')).size);
    });
  }

  it('refuses a data file that could not be written so', () => {
    const input = writeAttentionModel(folder());
    for (const name of ['a/b.data', 'model.fused.onnx']) {
      const { code, stderr } = qkvgemm(['fuse', input, '--dry-run', '--external-data-file', name]);
      expect(code).to.equal(1);
      expect(stderr).to.contain(`'${name}'`);
    }
  });
});

describe('qkvgemm fuse --explain', () => {
  const folder = testFolder();

  it('lists fused and refused norms together, in graph order, with the graph that they are in', () => {
    const m = new ModelBuilder();
    m.input('x', ['batch', 'sequence', K]);
    m.input('condition', [], DataType.bool);
    const body = (prefix: string): ModelBuilder => {
      const b = new ModelBuilder();
      const h = b.node('LayerNormalization', ['x', 'gamma'], [`${prefix}_h`]);
      b.output(b.node('MatMul', [h, 'w_q'], [`${prefix}_y`]));
      return b;
    };
    const first = m.node('LayerNormalization', ['x', m.input('g', [K])], ['first']);
    const h = layerNorm(m, 'x');
    m.output(attend(m, threeMatMul(m, h)));
    m.output(
      m.node('If', ['condition'], ['z'], { graphs: { then_branch: body('a'), else_branch: body('b') } }),
    );
    m.output(m.node('LayerNormalization', ['x', 'gamma'], ['last']));
    m.output(first);
    const file = path.join(folder(), 'model.onnx');
    fs.writeFileSync(file, m.finish());
    const { stdout } = qkvgemm(['fuse', file, '--dry-run', '--explain']);
    const listed = [...stdout.matchAll(/^ {2}(?:refused: |norm )(\S+).*$/gm)];
    expect(listed.map(([, name]) => name)).to.deep.equal([
      'first_node',
      'h_node',
      'a_h_node',
      'b_h_node',
      'last_node',
    ]);
    expect(listed[2]?.[0]).to.contain("in then_branch of If 'z_node'");
    expect(listed[1]?.[0]).to.contain('became h_node/QKVGemm');
  });
});

describe('qkvgemm fuse --activation-quant', () => {
  const folder = testFolder();

  it('needs int8 weights, and says so', () => {
    const model = writeAttentionModel(folder());
    for (const dtype of ['keep', 'fp16', 'bf16']) {
      const wrong = qkvgemm(['fuse', model, '--activation-quant', '--dtype', dtype]);
      expect(wrong.code, dtype).to.equal(1);
      expect(wrong.stderr).to.match(/for int8 weights.*--dtype int8.*--activation-quant/);
      expect(filesIn(folder())).to.deep.equal(['model.onnx']);
    }
    const right = qkvgemm(['fuse', model, '--activation-quant', '--dtype', 'int8', '--check']);
    expect(right.code, right.stderr).to.equal(0);
    expect(right.stdout).to.contain('int8, int8 rows');
  });

  it('is of use to a model whose weights are integers, whatever --dtype says: what it needs is in the model', () => {
    const model = path.join(folder(), 'integers.onnx');
    const integers = (m: ModelBuilder, h: string): string[] =>
      ['q', 'k', 'v'].map((name, i) => {
        const values = Int8Array.from(uniform(K * N, 120, 70 + i));
        const q = m.tensor(`i_${name}`, DataType.int8, [K, N], new Uint8Array(values.buffer));
        const w = m.node('DequantizeLinear', [q, m.floats(`s_${name}`, [], [0.01])], [`w_${name}`]);
        return m.node('MatMul', [h, w], [name]);
      });
    fs.writeFileSync(model, layer({ project: integers }));
    const { code, stderr, stdout } = qkvgemm(['fuse', model, '--activation-quant', '--dtype', 'fp16']);
    expect(code, stderr).to.equal(0);
    expect(stdout).to.contain('int8, int8 rows');
  });
});

describe('integers for --check', () => {
  const table = (m: ModelBuilder, name: string, rows: number): string =>
    m.floats(name, [rows, K], uniform(rows * K, 1, rows));
  const embed = (): Uint8Array => {
    const m = new ModelBuilder();
    const ids = m.input('ids', ['batch', 'sequence'], DataType.int64);
    m.input('kinds', ['batch', 'sequence'], DataType.int64);
    m.input('steps', ['batch', 'sequence'], DataType.int64);
    const axis = { attributes: { axis: { integer: 0 } } };
    const words = m.node('Gather', [table(m, 'words', 50), m.node('Cast', [ids], ['ids32'], { attributes: { to: { integer: DataType.int32 } } })], ['e'], axis);
    const kinds = m.node('Gather', [table(m, 'types', 2), 'kinds'], ['t'], axis);
    m.output(m.node('Cast', ['steps'], ['s'], { attributes: { to: { integer: DataType.float } } }));
    m.output(m.node('Add', [words, kinds], ['y']));
    return m.finish();
  }; // prettier-ignore

  it('are rows of the tables that they index, in all of their range; others are 0', async () => {
    const bytes = embed();
    const ranges = inputRanges(new Model(bytes));
    expect([...ranges]).to.deep.equal([['ids', 50], ['kinds', 2]]); // prettier-ignore
    const session = await ort.InferenceSession.create(bytes, { logSeverityLevel: 4 });
    const feeds = generate(session.inputMetadata, { batch: 20, sequence: 30 }, ort.Tensor, {
      below: ranges,
    });
    const all = (name: string): Set<number> =>
      new Set(Array.from(feeds[name]?.data as BigInt64Array, Number));
    expect([...all('ids')].sort((a, b) => a - b)).to.deep.equal(Array.from({ length: 50 }, (_, i) => i));
    expect([...all('kinds')].sort()).to.deep.equal([0, 1]);
    expect([...all('steps')]).to.deep.equal([0]);
    await session.run(feeds);
    await session.release();
  });

  it('of the smallest table, and of none where the table is computed or another axis is read', () => {
    const ranges = (gather: (m: ModelBuilder) => void): [string, number][] => {
      const m = new ModelBuilder();
      m.input('ids', [3], DataType.int64);
      m.input('x', [4, K]);
      gather(m);
      return [...inputRanges(new Model(m.finish()))];
    };
    expect(ranges((m) => void [table(m, 'a', 9), table(m, 'b', 5)].map((name) => m.node('Gather', [name, 'ids'], [`of_${name}`])))).to.deep.equal([['ids', 5]]);
    expect(ranges((m) => void m.node('Gather', ['x', 'ids'], ['y']))).to.deep.equal([]);
    expect(ranges((m) => void m.node('Gather', [table(m, 'a', 9), 'ids'], ['y'], { attributes: { axis: { integer: 1 } } }))).to.deep.equal([]);
    expect(ranges((m) => void m.node('Gather', [table(m, 'a', 9), m.node('Neg', ['ids'], ['less'])], ['y']))).to.deep.equal([]);
  }); // prettier-ignore

  it('a model whose result hangs on its ids is compared on more than the first row', async () => {
    const folder = fs.mkdtempSync(path.join(process.env.TMPDIR ?? '/tmp', 'qkvgemm-test-'));
    try {
      const m = new ModelBuilder();
      m.input('ids', ['batch', 'sequence'], DataType.int64);
      const x = m.node('Gather', [m.floats('words', [7, K], uniform(7 * K, 1, 2)), 'ids'], ['x']);
      m.output(attend(m, threeMatMul(m, layerNorm(m, x))));
      m.output(m.node('Identity', ['ids'], ['echo']), undefined, DataType.int64);
      fs.writeFileSync(path.join(folder, 'm.onnx'), m.finish());
      const { differences } = await fuseFile(path.join(folder, 'm.onnx'), path.join(folder, 'f.onnx'), {
        check: true,
      });
      expect(differences?.map(({ name }) => name)).to.deep.equal(['y', 'echo']);
    } finally {
      fs.rmSync(folder, { recursive: true });
    }
  });
});

describe('temporary folders that a killed run left', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);
  const left = (id: string, record: string | undefined, more: Record<string, string> = {}): string => {
    const name = `.m.onnx.${id}.tmp`;
    fs.mkdirSync(at(name));
    fs.writeFileSync(at(name, 'm.onnx'), 'half a model');
    if (record !== undefined) fs.writeFileSync(at(name, OWNER_FILE), record);
    for (const [file, text] of Object.entries(more)) {
      fs.mkdirSync(path.dirname(at(name, file)), { recursive: true });
      fs.writeFileSync(at(name, file), text);
    }
    return name;
  };
  /** A process that has ended, as its folder would name it. */
  async function dead(): Promise<string> {
    const child = spawn(process.execPath, ['-e', '0']);
    const exit = once(child, 'exit');
    const record = { ...(JSON.parse(ownerRecord()) as object), pid: child.pid };
    await exit;
    return JSON.stringify(record);
  }
  const run = (): ReturnType<typeof qkvgemm> =>
    qkvgemm(['fuse', 'model.onnx', 'm.onnx', '--no-verify'], { cwd: folder() });

  beforeEach(function () {
    // Where the system does not say which boot a process belongs to, nothing is taken for dead.
    if ((JSON.parse(ownerRecord()) as { place?: string }).place === undefined) this.skip();
    fs.writeFileSync(at('model.onnx'), attentionModel());
  });

  it('goes with the next run; those of live processes, of others and of other outputs stay', async () => {
    const gone = await dead();
    const mine = JSON.parse(ownerRecord()) as Record<string, unknown>;
    left('000000000001', gone);
    const stay = [
      left('000000000002', ownerRecord()),
      left('000000000003', JSON.stringify({ ...(JSON.parse(gone) as object), place: 'another boot' })),
      left('000000000004', undefined),
      left('000000000005', '{"pid":'),
      left('000000000006', JSON.stringify({ pid: mine.pid })),
      left('00000000000g', gone),
    ];
    fs.mkdirSync(at('.other.onnx.000000000007.tmp'));
    fs.writeFileSync(at('.other.onnx.000000000007.tmp', OWNER_FILE), gone);
    const { code, stderr } = run();
    expect(code, stderr).to.equal(0);
    expect(fs.readdirSync(folder()).sort()).to.deep.equal(
      [...stay, '.other.onnx.000000000007.tmp', 'm.onnx', 'model.onnx'].sort(),
    );
  });

  it('a number that belongs to another process by now is that of a dead one', () => {
    const mine = JSON.parse(ownerRecord()) as object;
    left('000000000001', JSON.stringify({ ...mine, start: '1' }));
    expect(run().code).to.equal(0);
    expect(fs.readdirSync(folder()).sort()).to.deep.equal(['m.onnx', 'model.onnx']);
  });

  it('former files that it was about to replace get a name, and the command says which', async () => {
    left('0123456789ab', await dead(), { [`${REPLACED}/m.onnx`]: 'former model', [`${REPLACED}/m.data`]: 'former data' });
    const { code, stdout } = run();
    expect(code).to.equal(0);
    expect(stdout).to.contain('m.onnx.replaced.0123456789ab');
    expect(filesIn(folder())).to.deep.equal([
      'm.onnx',
      'm.onnx.replaced.0123456789ab/m.data',
      'm.onnx.replaced.0123456789ab/m.onnx',
      'model.onnx',
    ]);
    expect(fs.readFileSync(at('m.onnx.replaced.0123456789ab', 'm.onnx'), 'utf8')).to.equal('former model');
  }); // prettier-ignore

  it('a link in its place is not followed', async () => {
    fs.mkdirSync(at('kept'));
    fs.writeFileSync(at('kept', OWNER_FILE), await dead());
    fs.writeFileSync(at('kept', 'file'), 'of somebody');
    fs.symlinkSync('kept', at('.m.onnx.000000000001.tmp'));
    expect(run().code).to.equal(0);
    expect(fs.readFileSync(at('kept', 'file'), 'utf8')).to.equal('of somebody');
  });
});
