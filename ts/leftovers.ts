/**
 * Temporary folders that a killed process left beside an output. A folder says who made it; it is touched only where that
 * process is dead for sure: one of the same boot and process namespace whose number is free, or belongs to a process that
 * started at another time.
 */
import fs from 'node:fs';
import path from 'node:path';

/** In a temporary folder: who writes there. */
export const OWNER_FILE = '.owner';
/** In a temporary folder: what was there before under the names of the output and its data. */
export const REPLACED = '.replaced';

interface Owner {
  pid: number;
  /** When the process started, in the kernel's ticks; absent where the system does not say. */
  start?: string | undefined;
  /** Boot and process namespace in which `pid` has its meaning; absent likewise. */
  place?: string | undefined;
}

function read(action: () => string): string | undefined {
  try {
    return action();
  } catch {
    return undefined;
  }
}

/** Field 22 of /proc/PID/stat; the command before it may hold blanks and brackets. */
const startOf = (pid: number): string | undefined =>
  read(() => fs.readFileSync(`/proc/${pid}/stat`, 'utf8').replace(/^.*\)/s, '').trim().split(' ')[19] ?? '');

const placeOf = (): string | undefined =>
  read(
    () =>
      `${fs.readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()} ${fs.readlinkSync('/proc/self/ns/pid')}`,
  );

/** What a temporary folder says of this process. */
export function ownerRecord(): string {
  const owner: Owner = { pid: process.pid, start: startOf(process.pid), place: placeOf() };
  return JSON.stringify(owner);
}

function isDead(record: string): boolean {
  let owner: Partial<Owner> | null;
  try {
    owner = JSON.parse(record) as Partial<Owner> | null;
  } catch {
    return false; // not written to its end, by a process that may be at it
  }
  const { pid, start, place } = owner ?? {};
  if (!Number.isSafeInteger(pid) || pid === undefined || pid <= 0 || place === undefined) return false;
  if (place !== placeOf()) return false;
  try {
    process.kill(pid, 0); // sends nothing
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'ESRCH';
  }
  const now = startOf(pid);
  return start !== undefined && now !== undefined && now !== start;
}

/**
 * Removes the temporary folders of dead processes for an output. What such a process was about to replace is kept: it gets
 * a name that can be seen, `OUT.replaced.ID`.
 *
 * @returns those names.
 */
export function clearLeftovers(output: string): string[] {
  const folder = path.dirname(output);
  const base = path.basename(output);
  const kept: string[] = [];
  for (const { id, scratch } of leftovers(folder, base)) {
    const replaced = path.join(scratch, REPLACED);
    try {
      if (fs.existsSync(replaced) && fs.readdirSync(replaced).length > 0) {
        const to = path.join(folder, `${base}.replaced.${id}`);
        fs.renameSync(replaced, to);
        kept.push(to);
      }
      fs.rmSync(scratch, { recursive: true, force: true });
    } catch {
      // Another process is at the same, or the folder is somebody else's: it stays.
    }
  }
  return kept;
}

/** Name of the temporary folder of an output. */
export const scratchName = (output: string, id: string): string =>
  `.${path.basename(output).slice(0, 200)}.${id}.tmp`;

function leftovers(folder: string, base: string): { id: string; scratch: string }[] {
  const [before, after] = scratchName(base, '/').split('/') as [string, string];
  const found: { id: string; scratch: string }[] = [];
  let names: string[];
  try {
    names = fs.readdirSync(folder);
  } catch {
    return []; // a folder that can be written to and not listed
  }
  for (const name of names) {
    if (!name.startsWith(before) || !name.endsWith(after)) continue;
    const id = name.slice(before.length, name.length - after.length);
    if (!/^[0-9a-f]{12}$/.test(id)) continue;
    const scratch = path.join(folder, name);
    if (!fs.lstatSync(scratch, { throwIfNoEntry: false })?.isDirectory()) continue; // no link is followed
    const record = read(() => fs.readFileSync(path.join(scratch, OWNER_FILE), 'utf8'));
    if (record !== undefined && isDead(record)) found.push({ id, scratch });
  }
  return found;
}
