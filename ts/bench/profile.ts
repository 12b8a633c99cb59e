/** Which node ran where and for how long, as ONNX Runtime's profiler saw it. */
import fs from 'node:fs';
import path from 'node:path';
import type { InferenceSession } from 'onnxruntime-node';
import { QkvGemmError } from '../errors.js';
import { inTemporaryFolder } from '../temporary.js';
import { median } from './timing.js';

/** The run of one node. */
export interface NodeRun {
  /** Run of the model, from 0. */
  run: number;
  op: string;
  provider: string;
  microseconds: number;
}

interface Event {
  cat: string;
  ts: number;
  dur: number;
  name: string;
  args: string;
}

/** ONNX Runtime writes names of nodes into its JSON as they are, quotes and line feeds included, so that no parser takes it. */
const EVENT = /\{"cat" : "(\w+)","pid" :\d+,"tid" :\d+,"dur" :(\d+),"ts" :(\d+),"ph" : "X","name" :"/g;

export function eventsOf(profile: string): Event[] {
  const heads = [...profile.matchAll(EVENT)];
  return heads.map((head, i) => {
    const rest = profile.slice(head.index + head[0].length, heads[i + 1]?.index);
    const end = rest.lastIndexOf('","args" : {');
    const [, cat = '', dur, ts] = head;
    return { cat, dur: Number(dur), ts: Number(ts), name: rest.slice(0, end), args: rest.slice(end) };
  });
}

const argument = (args: string, name: string): string =>
  new RegExp(`"${name}" : "([^"]*)"`).exec(args)?.[1] ?? '?';

/** The node runs of a session that `use` makes with these further options, runs and ends (`endProfiling`). */
export async function profiled(
  use: (options: InferenceSession.SessionOptions) => Promise<void>,
): Promise<NodeRun[]> {
  return inTemporaryFolder(async (folder) => {
    await use({ enableProfiling: true, profileFilePrefix: path.join(folder, 'profile') });
    const [file] = fs.readdirSync(folder);
    if (file === undefined)
      throw new QkvGemmError('RUNTIME_UNSUPPORTED', `ONNX Runtime wrote no profile into '${folder}'.`);
    const events = eventsOf(fs.readFileSync(path.join(folder, file), 'utf8'));
    const starts = events
      .filter(({ cat, name }) => cat === 'Session' && name === 'model_run')
      .map(({ ts }) => ts)
      .sort((a, b) => a - b);
    return events
      .filter(({ cat, name }) => cat === 'Node' && name.endsWith('_kernel_time'))
      .map(({ args, ts, dur }) => ({
        run: starts.findLastIndex((start) => start <= ts),
        op: argument(args, 'op_name'),
        provider: argument(args, 'provider'),
        microseconds: dur,
      }));
  });
}

/** What the nodes of one operator took in a run of the model. */
export interface OpShare {
  /** Operator type, without its domain. */
  op: string;
  /** Nodes of it that run in one run of the model. */
  nodes: number;
  /** All of them in one run, in microseconds: the median of the runs, so that one that was interrupted does not count. */
  microseconds: number;
  /** Of the sum of all operators, from 0 to 1. */
  share: number;
  /** Execution providers that they ran on, e.g. `CPUExecutionProvider`. */
  providers: string[];
}

export function opShares(nodes: readonly NodeRun[]): OpShare[] {
  const runs = new Map([...new Set(nodes.map(({ run }) => run))].map((run, i) => [run, i]));
  const ops = new Map<string, { count: number; times: number[]; providers: Set<string> }>();
  for (const { run, op, provider, microseconds } of nodes) {
    const at = runs.get(run) ?? 0;
    const times = new Array<number>(runs.size).fill(0);
    const entry = ops.get(op) ?? { count: 0, times, providers: new Set<string>() };
    ops.set(op, entry);
    entry.count++;
    entry.times[at] = (entry.times[at] ?? 0) + microseconds;
    entry.providers.add(provider);
  }
  const shares = [...ops].map(([op, { count, times, providers }]) => ({
    op,
    nodes: count / runs.size,
    microseconds: median(times),
    providers: [...providers],
  }));
  const total = shares.reduce((sum, { microseconds }) => sum + microseconds, 0);
  return shares
    .map((own) => ({ ...own, share: total > 0 ? own.microseconds / total : 0 }))
    .sort((a, b) => b.microseconds - a.microseconds);
}

/**
 * Operators of a model that did not run on the device that was asked for: ONNX Runtime gives a node to the CPU, without a
 * word, where a provider has no kernel for it. Copies between host and device are nodes as well.
 */
export function notOnDevice(ops: readonly OpShare[]): OpShare[] {
  return ops.filter(({ providers }) => providers.some((provider) => provider !== 'CUDAExecutionProvider'));
}
