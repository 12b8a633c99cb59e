import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import * as ort from 'onnxruntime-node';
import { uniform } from '../models/builder.js';
import { layerBytes, LLAMA_SMALL, WEIGHTS, writeLlamaStack, type LlamaShape } from '../models/llama_stack.js';
import { runMeasured } from '../scripts/bench/peak.js';
import { relativeDifference } from '../scripts/bench/difference.js';
import { externalTensors } from '../ts/onnx/external_tensors.js';
import { fuseFile, fuseFileWithin } from '../ts/fuse_file.js';
import { Model } from '../ts/onnx/model.js';
import { DataType } from '../ts/onnx/tensor.js';
import { fromFloat32 } from '../ts/rewrite/weights/convert.js';
import { withQkvGemm } from '../ts/session/index.js';
import { fileDifference, writeAttentionModel } from './support/attention.js';
import { filesIn, qkvgemm, testFolder } from './support/command.js';
import { failure } from './support/failure.js';
import { floats, quiet } from './support/run.js';

/** Runs a stack of decoder layers on three tokens. */
async function runStack(file: string, shape: LlamaShape, options = quiet): Promise<Float32Array> {
  const session = await ort.InferenceSession.create(file, options);
  const halves = fromFloat32(uniform(3 * shape.hidden, 1, 3), DataType.float16);
  const { y } = await session.run({
    x: new ort.Tensor('float16', new Uint16Array(halves.buffer), [1, 3, shape.hidden]),
    seqlens_k: new ort.Tensor('int32', [2], [1]),
    total_sequence_length: new ort.Tensor('int32', [3], [1]),
  });
  await session.release();
  return floats(y as ort.Tensor);
}

const modelOf = (file: string): Model => new Model(new Uint8Array(fs.readFileSync(file)));
const locations = (file: string): string[] =>
  [...new Set(externalTensors(modelOf(file).bytes).map(({ external }) => external?.location ?? ''))].sort();

describe('large models', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  // Node, the rewriter and ONNX Runtime need 240 MB by themselves; weights of 300 MB, one layer's of 50, must not show.
  it('are rewritten in memory that does not grow with them', function () {
    this.timeout(120_000);
    const peaks = [1, 6].map((layers) => {
      const shape = { ...LLAMA_SMALL, hidden: 2048, heads: 32, kvHeads: 8, mlp: 3584, layers };
      fs.mkdirSync(at(`${layers}`, 'out'), { recursive: true });
      const model = writeLlamaStack(at(`${layers}`), shape);
      const bytes = layers * layerBytes(shape);
      const out = at(`${layers}`, 'out', 'm.onnx');
      const flags = ['--no-verify', '--external-data-file', 'all.data'];
      const { code, stderr, bytes: peak } = runMeasured(['fuse', model, out, ...flags], folder());
      expect(code, stderr).to.equal(0);
      expect(fs.statSync(at(`${layers}`, 'out', 'all.data')).size).to.be.at.least(bytes);
      return { bytes, peak };
    });
    const [small, large] = peaks as [(typeof peaks)[0], (typeof peaks)[0]];
    expect(large.bytes).to.be.above(350e6);
    expect(large.peak - small.peak).to.be.below((large.bytes - small.bytes) / 4);
  });

  it('give the same with what was written, wherever the weights went', async () => {
    const model = writeLlamaStack(folder(), LLAMA_SMALL);
    const reference = await runStack(model, LLAMA_SMALL);
    const before = fs.readFileSync(at(WEIGHTS));
    for (const [options, expected] of [
      [{}, ['m.onnx', 'm.onnx.data', WEIGHTS]],
      [{ saveAsExternalData: true }, ['m.onnx', 'm.onnx.data', WEIGHTS]],
      [{ externalDataFile: 'one.bin' }, ['m.onnx', 'one.bin']],
      [{ externalDataFile: WEIGHTS }, ['m.onnx', WEIGHTS]],
    ] as const) {
      const out = fs.mkdtempSync(at('out-'));
      const file = path.join(out, 'm.onnx');
      const { report, data } = await fuseFile(model, file, options);
      expect(report.fused).to.have.length(LLAMA_SMALL.layers);
      expect(filesIn(out)).to.deep.equal(expected);
      expect(data).to.deep.equal({
        file: path.join(out, expected[1]),
        bytes: fs.statSync(path.join(out, expected[1])).size,
      });
      expect(locations(file)).to.deep.equal(expected.slice(1));
      expect(report.bytesAfter).to.equal(fs.statSync(file).size);
      // float16 in the stock graph: sums are rounded at every node, in the fused op once.
      for (const session of [quiet, withQkvGemm(quiet)])
        expect(relativeDifference(reference, await runStack(file, LLAMA_SMALL, session))).to.be.below(4e-3);
    }
    expect(fs.readFileSync(at(WEIGHTS)).equals(before)).to.equal(true);
  });

  it('what is not touched stays where it is in its file', async () => {
    const model = writeLlamaStack(folder(), LLAMA_SMALL);
    await fuseFile(model, at('m.onnx'));
    const [before, after] = [modelOf(model), modelOf(at('m.onnx'))].map(({ graph }) => graph.initializers);
    const kept = [...(before?.keys() ?? [])].filter((name) => /\.(o|gate|up|down)\.weight$/.test(name));
    expect(kept).to.have.length(4 * LLAMA_SMALL.layers);
    for (const name of kept) expect(after?.get(name)?.external).to.deep.equal(before?.get(name)?.external);
  });

  it('of more than 2 GB in one protobuf are refused, without being read', () => {
    fs.writeFileSync(at('model.onnx'), '');
    fs.truncateSync(at('model.onnx'), 2 ** 31);
    const { code, stderr } = qkvgemm(['fuse', at('model.onnx')]);
    expect(stderr).to.match(/^qkvgemm: .*model\.onnx' has 2147483648 bytes.*at most 2 GB.*external data/);
    expect(code).to.equal(1);
    expect(filesIn(folder())).to.deep.equal(['model.onnx']);
  });

  it('whose result would be too large for one protobuf put new weights into a data file by themselves', async () => {
    const model = writeAttentionModel(folder());
    const { size } = fs.statSync(model);
    // The fused weight has 1536 bytes, as many as those that it replaces; a function body is added, of about 2 kB.
    expect((await fuseFileWithin(model, at('roomy.onnx'), {}, size + 4096)).data).to.equal(undefined);
    const tight = await fuseFileWithin(model, at('tight.onnx'), {}, size - 1);
    expect(tight.data).to.deep.equal({ file: at('tight.onnx.data'), bytes: 1536 });
    expect(fs.statSync(at('tight.onnx')).size).to.be.below(size);
    expect(await fileDifference(at('tight.onnx'), model)).to.be.below(1e-5);
  });

  it('or say what to do where that is not enough; nothing is left', async () => {
    const model = writeAttentionModel(folder());
    const { size } = fs.statSync(model);
    const error = await failure(() => fuseFileWithin(model, at('m.onnx'), {}, size));
    expect(error.code).to.equal('UNSUPPORTED_MODEL');
    expect(error.message).to.match(/would have \d+ bytes; .* at most \d+.*--save-as-external-data/);
    expect(filesIn(folder())).to.deep.equal(['model.onnx']);
    await fuseFileWithin(model, at('m.onnx'), { saveAsExternalData: true }, size);
    expect(filesIn(folder())).to.deep.equal(['m.onnx', 'm.onnx.data', 'model.onnx']);
  });
});

describe('--save-as-external-data and --external-data-file', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  it('weights leave the model file; small tensors stay; the result runs', async () => {
    const model = writeAttentionModel(folder());
    const { code, stdout, stderr } = qkvgemm(['fuse', model, '--save-as-external-data']);
    expect(code, stderr).to.equal(0);
    expect(stdout).to.match(/Wrote .*model\.fused\.onnx \(.*\) and .*model\.fused\.onnx\.data \(1\.5 kB\)/);
    expect(filesIn(folder())).to.deep.equal(['model.fused.onnx', 'model.fused.onnx.data', 'model.onnx']);
    const { initializers } = modelOf(at('model.fused.onnx')).graph;
    expect([...initializers.values()].filter(({ external }) => external)).to.have.length(1);
    expect(await fileDifference(at('model.fused.onnx'), model)).to.be.below(1e-5);
  });

  it('the name of another file that the model needs is not taken', async () => {
    fs.mkdirSync(at('out'));
    const model = writeAttentionModel(folder(), { location: 'm.onnx.data', external: true });
    const { data } = await fuseFile(model, at('out', 'm.onnx'));
    expect(data?.file).to.equal(at('out', 'm.onnx.1.data'));
    expect(filesIn(at('out'))).to.deep.equal(['m.onnx', 'm.onnx.1.data', 'm.onnx.data']);
    expect(await fileDifference(at('out', 'm.onnx'), model)).to.be.below(1e-5);
  });

  it('refuse what cannot be', async () => {
    const model = writeAttentionModel(folder(), { location: 'weights.bin', external: true });
    fs.mkdirSync(at('out'));
    fs.writeFileSync(at('out', 'theirs'), 'theirs');
    for (const [output, externalDataFile, code] of [
      [at('m.onnx'), 'a/b', 'INVALID_ARGUMENT'],
      [at('m.onnx'), '..', 'INVALID_ARGUMENT'],
      [at('m.onnx'), '', 'INVALID_ARGUMENT'],
      [at('m.onnx'), 'm.onnx', 'INVALID_ARGUMENT'],
      [at('m.onnx'), 'weights.bin', 'INVALID_ARGUMENT'], // the input
      [at('m.onnx'), 'model.onnx', 'INVALID_ARGUMENT'],
      [at('out', 'm.onnx'), 'theirs', 'FILE_EXISTS'],
    ] as const) {
      const error = await failure(() => fuseFile(model, output, { externalDataFile }));
      expect(error.code, externalDataFile).to.equal(code);
    }
    expect(filesIn(folder())).to.deep.equal(['model.onnx', 'out/theirs', 'weights.bin']);
    await fuseFile(model, at('out', 'm.onnx'), { externalDataFile: 'theirs', overwrite: true });
    expect(await fileDifference(at('out', 'm.onnx'), model)).to.be.below(1e-5);
  });
});
