/** Files of plans found by timing, as tests read them. */
import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';

export interface Tuned {
  key: string;
  plan: string;
  microseconds: number;
  heuristic: { plan: string; microseconds: number };
  measured: string;
}

/** Where the cache of a folder lies. */
export const tuningFile = (folder: string): string => path.join(folder, 'tuning.json');

/** The entries of a folder's file; none where there is no file. */
export function tuned(folder: string): Tuned[] {
  const file = tuningFile(folder);
  if (!fs.existsSync(file)) return [];
  const { version, entries } = JSON.parse(fs.readFileSync(file, 'utf8')) as {
    version: number;
    entries: Tuned[];
  };
  expect(version).to.equal(1);
  for (const entry of entries) {
    expect(entry.measured).to.match(/^\d{4}-\d\d-\d\d$/);
    expect(entry.microseconds).to.be.greaterThan(0);
    expect(entry.heuristic.microseconds).to.be.at.least(entry.microseconds);
  }
  return entries;
}

/** A field of a key, e.g. `rows`. */
export function field({ key }: Tuned, name: string): string | undefined {
  return key
    .split('; ')
    .find((part) => part.startsWith(`${name}=`))
    ?.slice(name.length + 1);
}
