import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { attentionModel } from '../models/attention.js';
import { LLAMA_SMALL, writeLlamaStack } from '../models/llama_stack.js';
import { benchModels, type BenchReport } from '../ts/bench/bench.js';
import { peakOf } from '../ts/bench/memory.js';
import { eventsOf, opShares } from '../ts/bench/profile.js';
import { median, ratioOf, turns } from '../ts/bench/timing.js';
import { writeAttentionModel } from './support/attention.js';
import { qkvgemm, testFolder } from './support/command.js';
import { failure } from './support/failure.js';

describe('bench: statistics', () => {
  it('a ratio of medians with the interval of the bootstrap', () => {
    const a = Array.from({ length: 200 }, (_, i) => 20 + (i % 7) - 3);
    const b = Array.from({ length: 200 }, (_, i) => 10 + ((i * 3) % 5) - 2);
    const ratio = ratioOf(a, b);
    expect(ratio.value).to.equal(2);
    expect(ratio.low).to.be.within(1.5, 2);
    expect(ratio.high).to.be.within(2, 2.5);
    expect(ratioOf(a, b)).to.deep.equal(ratio);
    expect(ratioOf([4], [2])).to.deep.equal({ value: 2, low: 2, high: 2 });
  });

  it('what slows both models of a round stays out of the interval', () => {
    const noise = Array.from({ length: 100 }, (_, i) => (i % 2 === 0 ? 1 : 10));
    const { low, high } = ratioOf(
      noise.map((slow) => 3 * slow),
      noise,
    );
    expect([low, high]).to.deep.equal([3, 3]);
  });

  it('turns alternate, each call is timed, and the mean is of the turn', async () => {
    const order: string[] = [];
    const candidate = (name: string): { name: string; run: () => Promise<void> } => ({
      name,
      run: () => {
        order.push(name);
        return new Promise((resolve) => setTimeout(resolve, 6));
      },
    });
    const rounds: number[] = [];
    const measured = await turns(
      [candidate('a'), candidate('b')],
      { seconds: 0, samples: [3, 3] },
      (done, total) => rounds.push(done / total),
    );
    expect(measured.map((own) => own.length)).to.deep.equal([3, 3]);
    expect(rounds).to.deep.equal([1 / 3, 2 / 3, 1]);
    expect(order.slice(6).join('')).to.equal('aabbbbaaaabb'); // each warmed up once, then timed once
    for (const { calls, mean } of measured.flat()) {
      expect(calls).to.have.length(1);
      expect(calls[0]).to.be.at.least(5000).and.to.be.closeTo(mean, 1);
    }
  });

  it('shares of operators are medians of runs', () => {
    const run = (
      index: number,
      matmul: number,
    ): { run: number; op: string; provider: string; microseconds: number }[] => [
      { run: index, op: 'MatMul', provider: 'P', microseconds: matmul },
      { run: index, op: 'MatMul', provider: 'P', microseconds: 10 },
      { run: index, op: 'Add', provider: 'Q', microseconds: 10 },
    ];
    expect(opShares([...run(1, 20), ...run(2, 20), ...run(3, 9000)])).to.deep.equal([
      { op: 'MatMul', nodes: 2, microseconds: 30, providers: ['P'], share: 0.75 },
      { op: 'Add', nodes: 1, microseconds: 10, providers: ['Q'], share: 0.25 },
    ]);
  });

  it('reads profiles in which names of nodes are not escaped', () => {
    const head = (cat: string, dur: number, name: string): string =>
      `{"cat" : "${cat}","pid" :1,"tid" :2,"dur" :${dur},"ts" :7,"ph" : "X","name" :"${name}","args" : {`;
    const profile = `[\n${head('Node', 5, 'a"b\nc","args" : {_kernel_time')}"provider" : "P","op_name" : "Neg"}},\n${head('Session', 9, 'model_run')}}}\n]`;
    expect(eventsOf(profile).map(({ cat, dur, name }) => [cat, dur, name])).to.deep.equal([
      ['Node', 5, 'a"b\nc","args" : {_kernel_time'],
      ['Session', 9, 'model_run'],
    ]);
  });

  it('reads the peak of a process', () => {
    expect(peakOf('Name:\tnode\nVmHWM:\t   1234 kB\nVmRSS:\t 1 kB\n')).to.equal(1234 * 1024);
    expect(median([3, 1, 2])).to.equal(2);
  });
});

describe('bench', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);
  const dims = { batch: 2, sequence: 5 };

  it('a model alone: times, rates, operators, memory', async () => {
    const model = writeAttentionModel(folder());
    const report = await benchModels(model, { dims, seconds: 0.2 });
    expect(report).not.to.have.any.keys('ratio', 'verified');
    expect(report.inputs).to.deep.equal([{ name: 'x', type: 'float32', dims: [2, 5, 16] }]);
    const [timing] = report.models;
    expect(report.models).to.have.length(1);
    expect(timing?.file).to.equal(model);
    const { p50 = 0, p90 = 0, p99 = 0, runs = 0, runsPerSecond = 0 } = timing ?? {};
    expect(runs).to.be.at.least(10);
    expect(p50).to.be.above(0).and.at.most(p90);
    expect(p90).to.be.at.most(p99);
    expect(runsPerSecond).to.equal(1e6 / p50);
    expect(timing?.samplesPerSecond).to.be.closeTo(2 * runsPerSecond, 1e-6);
    expect(timing?.tokensPerSecond).to.be.closeTo(10 * runsPerSecond, 1e-6);
    expect(timing?.histogram.counts.reduce((sum, count) => sum + count, 0)).to.equal(runs);
    const matmul = timing?.ops.find(({ op }) => op === 'MatMul');
    expect(matmul?.nodes).to.be.above(0);
    expect(matmul?.providers).to.deep.equal(['CPUExecutionProvider']);
    expect(timing?.ops.reduce((sum, { share }) => sum + share, 0)).to.be.closeTo(1, 1e-9);
    const { peak = 0, before = 0 } = timing?.memory ?? {};
    expect(before).to.be.above(2e7);
    expect(peak).to.be.at.least(before).and.below(2e9);
  });

  it('against what fuse makes of it, verified first', async () => {
    const model = writeAttentionModel(folder());
    const report = await benchModels(model, { fused: {}, dims, seconds: 0.2, memory: false });
    expect(report.models.map(({ file }) => file)).to.deep.equal([model, `${model} (fused)`]);
    expect(report.models[0]).not.to.have.property('memory');
    expect(report.verified?.equal).to.equal(true);
    expect(report.models[1]?.ops.map(({ op }) => op)).to.include('QKVGemm');
    expect(report.ratio?.value).to.be.above(0);
    expect(report.ratio?.low).to.be.at.most(report.ratio?.value ?? 0);
    expect(report.ratio?.high).to.be.at.least(report.ratio?.value ?? 0);
  });

  it('models that give different results are an error, unless that is not asked', async () => {
    const model = writeAttentionModel(folder());
    fs.writeFileSync(at('other.onnx'), attentionModel({ biases: ['q', 'v'] }));
    const options = { against: at('other.onnx'), dims, seconds: 0.1, memory: false };
    const error = await failure(() => benchModels(model, options));
    expect(error.code).to.equal('CHECK_FAILED');
    expect(error.message).to.contain("'y' by").and.to.contain('--no-verify');
    const report = await benchModels(model, { ...options, verify: false });
    expect(report).not.to.have.property('verified');
    expect(report.models).to.have.length(2);
  });

  it('external data, and memory that grows with it', async () => {
    const model = writeLlamaStack(folder(), { ...LLAMA_SMALL, layers: 1 });
    fs.writeFileSync(at('length.json'), '[4]');
    fs.writeFileSync(at('lens.json'), '[3]');
    const inputFiles = [
      { name: 'total_sequence_length', file: at('length.json') },
      { name: 'seqlens_k', file: at('lens.json') },
    ];
    const report = await benchModels(model, {
      fused: { targets: ['qkv', 'mlp'] },
      inputFiles,
      dims: { sequence: 4 },
      maxError: 2e-2,
      seconds: 0.1,
    });
    expect(report.verified?.equal).to.equal(true);
    for (const { memory } of report.models) expect(memory && memory.peak - memory.before).to.be.above(5e6);
  });

  it('wrong options are named', async () => {
    const model = writeAttentionModel(folder(), { attention: false });
    const nothing = await failure(() => benchModels(model, { fused: {} }));
    expect(nothing.code).to.equal('UNSUPPORTED_MODEL');
    expect(nothing.message).to.contain('Nothing in').and.to.contain('--explain');
    const both = await failure(() => benchModels(model, { fused: {}, against: model }));
    expect(both.code).to.equal('INVALID_ARGUMENT');
    expect((await failure(() => benchModels(model, { seconds: 0 }))).message).to.contain('seconds is 0');
  });

  it('on the command line', () => {
    const model = writeAttentionModel(folder());
    const flags = ['--dims', 'batch=2,sequence=5', '--seconds', '0.2', '--threads', '1'];
    const { code, stdout, stderr } = qkvgemm(['bench', model, '--fused', ...flags]);
    expect([code, stderr]).to.deep.equal([0, '']);
    expect(stdout).to.match(/Verified: no output differs by more than 0.005/);
    expect(stdout).to.match(/│ model +│ runs │ P50/);
    expect(stdout).to.match(/The second runs \d\.\d+ times as fast as the first \(95 % interval/);
    expect(stdout).to.match(/│ QKVGemm +│ +│ +│ +│ 1 /);
    const json = qkvgemm(['bench', model, '--json', '--no-memory', '--tokens', '7', ...flags]);
    expect([json.code, json.stderr]).to.deep.equal([0, '']);
    const [timing] = (JSON.parse(json.stdout) as BenchReport).models;
    expect(timing?.tokensPerSecond).to.be.closeTo(7 * (timing?.runsPerSecond ?? 0), 1e-6);
    fs.writeFileSync(at('other.onnx'), attentionModel({ biases: ['q', 'v'] }));
    expect(qkvgemm(['bench', model, '--against', at('other.onnx'), ...flags]).code).to.equal(4);
    for (const wrong of [
      ['--fused', '--against', model],
      ['--seconds', '0'],
      ['--dtype', 'fp8'],
    ])
      expect(qkvgemm(['bench', model, ...wrong]).code, wrong.join(' ')).to.equal(2);
  });
});
