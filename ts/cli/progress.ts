/** A progress bar with rate and time left, for work that takes its time, on a terminal. */
import { Presets, SingleBar } from 'cli-progress';
import type { Phase, Progress } from '../progress.js';
import { size } from './size.js';

/** What is said of a phase, and how its amounts are written; what is counted has no unit. */
const PHASES: Record<Phase, { what: string; amount: (count: number) => string }> = {
  pack: { what: 'packing weights', amount: size },
  move: { what: 'moving weights', amount: size },
  copy: { what: 'copying weights', amount: size },
  check: { what: 'loading the result', amount: size },
  values: { what: 'comparing values', amount: (count) => count.toFixed(1) },
  rounds: { what: 'timing', amount: (count) => count.toFixed(1) },
};
/** Work that is done before this many milliseconds shows no bar. */
const PATIENCE = 500;

function duration(seconds: number): string {
  if (!Number.isFinite(seconds)) return '-';
  const s = Math.round(seconds);
  return s < 60 ? `${s} s` : `${Math.floor(s / 60)} min ${s % 60} s`;
}

/** The bar of one phase after the other; `seen` takes what `fuseFile` reports. */
export class ProgressBar {
  private bar: SingleBar | undefined;
  private phase: Phase | undefined;
  private readonly begun = performance.now();
  private phaseBegun = 0;

  /** @param stream shown on this if it is a terminal, else nowhere. */
  constructor(private readonly stream: NodeJS.WriteStream) {}

  readonly seen = ({ phase, done, total }: Progress): void => {
    const now = performance.now();
    if (phase !== this.phase) {
      this.stop();
      this.phase = phase;
      this.phaseBegun = now;
    }
    if (!this.stream.isTTY || now - this.begun < PATIENCE || total <= 0) return;
    const elapsed = (now - this.phaseBegun) / 1000;
    const rate = elapsed > 0 ? done / elapsed : 0;
    const shown = {
      what: PHASES[phase].what,
      rate: PHASES[phase].amount(rate),
      left: duration(rate > 0 ? (total - done) / rate : Infinity),
    };
    if (!this.bar) {
      const format = '{what} [{bar}] {percentage}% | {rate}/s | {left} left';
      // Drawn when something is reported: the work between two reports does not let timers run.
      this.bar = new SingleBar(
        { format, stream: this.stream, clearOnComplete: true, fps: 10 },
        Presets.legacy,
      );
      this.bar.start(total, done, shown);
    } else {
      this.bar.update(Math.min(done, total), shown);
    }
  };

  /** Takes the bar off the terminal. */
  stop(): void {
    this.bar?.stop();
    this.bar = undefined;
  }
}
