/** Timing of alternatives against each other: samples taken in turn, so that all see the same machine. */
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';

export interface Candidate {
  name: string;
  run: () => Promise<unknown>;
}

/** Microseconds per call. */
export interface Timing {
  median: number;
  p10: number;
  p90: number;
  samples: number;
}

export interface TimingOptions {
  /** Seconds for all candidates together; the number of samples follows. */
  seconds: number;
  /** Samples per candidate at least and at most, whatever the seconds. */
  samples?: [number, number];
}

/** A sample is a batch of calls of at least this length, after one call that is not counted. */
const BATCH_MS = 4;

/**
 * Waits until this process is idle. ONNX Runtime's threads spin for tens of milliseconds before they sleep; the previous
 * candidate's would take processors from the next one.
 */
async function settle(): Promise<void> {
  const window = 4;
  for (let waited = 0; waited < 250; waited += window) {
    const before = process.cpuUsage();
    await sleep(window);
    const { user, system } = process.cpuUsage(before);
    if (user + system < 1000) return;
  }
}

/** Microseconds of each call of one candidate's turn, and of a call on average. */
export interface Turn {
  calls: number[];
  mean: number;
}

/** Times the candidates in turn; for each, its turns in order. */
export async function turns(
  candidates: readonly Candidate[],
  { seconds, samples: [least, most] = [5, 41] }: TimingOptions,
  onRound: (done: number, total: number) => void = () => undefined,
): Promise<Turn[][]> {
  const calls: number[] = [];
  let round = 0;
  for (const candidate of candidates) {
    await candidate.run();
    const begin = performance.now();
    await settle();
    await candidate.run();
    const start = performance.now();
    await candidate.run();
    const once = performance.now() - start;
    const batch = Math.max(1, Math.ceil(BATCH_MS / once));
    calls.push(batch);
    round += start - begin + once * batch;
  }
  const rounds = Math.max(least, Math.min(most, Math.floor((seconds * 1000) / round)));
  const result = candidates.map((): Turn[] => []);
  for (let r = 0; r < rounds; r++) {
    for (let c = 0; c < candidates.length; c++) {
      const at = (r + c) % candidates.length; // nobody always follows the same one
      const candidate = candidates[at] as Candidate;
      const batch = calls[at] as number;
      await settle();
      await candidate.run();
      const stamps = [performance.now()];
      for (let i = 0; i < batch; i++) {
        await candidate.run();
        stamps.push(performance.now());
      }
      const times = stamps.slice(1).map((stamp, i) => (stamp - (stamps[i] ?? NaN)) * 1000);
      result[at]?.push({ calls: times, mean: times.reduce((sum, time) => sum + time, 0) / batch });
    }
    onRound(r + 1, rounds);
  }
  return result;
}

/** The same, as a summary of each candidate's turns. */
export async function interleaved(
  candidates: readonly Candidate[],
  options: TimingOptions,
): Promise<Timing[]> {
  return (await turns(candidates, options)).map((own) => summary(own.map(({ mean }) => mean)));
}

export function summary(times: readonly number[]): Timing {
  const sorted = [...times].sort((a, b) => a - b);
  return {
    median: quantile(sorted, 0.5),
    p10: quantile(sorted, 0.1),
    p90: quantile(sorted, 0.9),
    samples: sorted.length,
  };
}

/** Linear between the neighbours. */
export function quantile(sorted: readonly number[], q: number): number {
  const at = (sorted.length - 1) * q;
  const low = sorted[Math.floor(at)] ?? NaN;
  const high = sorted[Math.ceil(at)] ?? NaN;
  return low + (high - low) * (at - Math.floor(at));
}

export function median(values: readonly number[]): number {
  return quantile(
    [...values].sort((a, b) => a - b),
    0.5,
  );
}

/** A ratio of medians, and the interval that holds it with 95 % by the bootstrap. */
export interface Ratio {
  /** Ratio of the medians. */
  value: number;
  /** Lower end of the 95 % interval. */
  low: number;
  /** Upper end of the 95 % interval. */
  high: number;
}

const RESAMPLES = 1000;

/**
 * Median of `a` over median of `b`, which were sampled in pairs: pairs are drawn anew with replacement, so that what slows
 * both in a round stays with both. The same numbers give the same interval.
 */
export function ratioOf(a: readonly number[], b: readonly number[]): Ratio {
  const count = Math.min(a.length, b.length);
  let state = 1;
  const ratios = Array.from({ length: RESAMPLES }, () => {
    const [x, y] = [new Float64Array(count), new Float64Array(count)];
    for (let i = 0; i < count; i++) {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      const at = Math.floor((state / 2 ** 32) * count);
      [x[i], y[i]] = [a[at] ?? NaN, b[at] ?? NaN];
    }
    return quantile([...x.sort()], 0.5) / quantile([...y.sort()], 0.5);
  }).sort((p, q) => p - q);
  return { value: median(a) / median(b), low: quantile(ratios, 0.025), high: quantile(ratios, 0.975) };
}

/** 1234 -> `1.23 ms`. */
export function duration(us: number): string {
  return us < 1000 ? `${us.toPrecision(3)} us` : `${(us / 1000).toPrecision(us < 1e6 ? 3 : 4)} ms`;
}
