/** Folders that must not be left behind, not even by a process that a signal ends. */
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';

/** Signals that end a process, and the exit codes that shells know them by. */
const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;
type Signal = keyof typeof SIGNALS;
const signals = Object.keys(SIGNALS) as Signal[];

interface Removable {
  remove(): void;
}

/** What this process has to remove: a signal ends it all together. */
const active = new Set<Removable>();

function interrupted(signal: Signal): void {
  for (const own of active) own.remove();
  process.exit(SIGNALS[signal]);
}

/** Has a signal remove this before the process ends. */
export function removeAtSignals(own: Removable): void {
  if (active.size === 0) for (const signal of signals) process.on(signal, interrupted);
  active.add(own);
}

/** Undoes `removeAtSignals`. */
export function keepAtSignals(own: Removable): void {
  if (active.delete(own) && active.size === 0) for (const signal of signals) process.off(signal, interrupted);
}

/** Runs `action` with a fresh folder in the system's place for such, which is removed behind it. */
export async function inTemporaryFolder<T>(action: (folder: string) => Promise<T>): Promise<T> {
  const folder = path.join(os.tmpdir(), `qkvgemm-${crypto.randomBytes(8).toString('hex')}`);
  const own = { remove: () => fs.rmSync(folder, { recursive: true, force: true }) };
  removeAtSignals(own); // before it is there: a signal in between would leave it
  try {
    fs.mkdirSync(folder, { mode: 0o700 });
    return await action(folder);
  } finally {
    own.remove();
    keepAtSignals(own);
  }
}
