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

export async function interleaved(
  candidates: readonly Candidate[],
  { seconds, samples: [least, most] = [5, 41] }: TimingOptions,
): Promise<Timing[]> {
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
  const times = candidates.map((): number[] => []);
  for (let r = 0; r < rounds; r++) {
    for (let c = 0; c < candidates.length; c++) {
      const at = (r + c) % candidates.length; // nobody always follows the same one
      const candidate = candidates[at] as Candidate;
      const batch = calls[at] as number;
      await settle();
      await candidate.run();
      const start = performance.now();
      for (let i = 0; i < batch; i++) await candidate.run();
      times[at]?.push(((performance.now() - start) * 1000) / batch);
    }
  }
  return times.map(summary);
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

/** 1234 -> `1.23 ms`. */
export function duration(us: number): string {
  return us < 1000 ? `${us.toPrecision(3)} us` : `${(us / 1000).toPrecision(us < 1e6 ? 3 : 4)} ms`;
}
