/** A report as one file, and how it is written. */
import crypto from 'node:crypto';
import fs from 'node:fs';
import { QkvGemmError, reason } from '../errors.js';
import { checkWritable, sameFile, statOf } from '../files.js';
import { writeModelWhole } from '../staging.js';
import type { Content, Section } from './html.js';
import { INLINE, MARK, pageWith, type Hashes } from './page_markup.js';

const hash = (text: string): string => crypto.createHash('sha256').update(text).digest('base64');

/** What goes into the policy of reports; the web page is built with them. */
export const HASHES: Hashes = { script: hash(INLINE.script), style: hash(INLINE.style) };

/** @param head what stands above the sections. */
export function page(title: string, head: Content, sections: readonly Section[]): string {
  return pageWith(HASHES, title, head, sections);
}

/**
 * Checks, before the work, that a report may be written there.
 *
 * @param others files of the same command, none of which it may replace.
 * @throws QkvGemmError `FILE_EXISTS` where something else than a report is there; as `checkWritable` otherwise.
 */
export function checkReport(file: string, others: readonly string[] = []): void {
  const same = others.find((other) => sameFile(file, other));
  if (same !== undefined)
    throw new QkvGemmError('INVALID_ARGUMENT', `The report '${file}' is '${same}'. Choose another name.`);
  checkWritable(file, { overwrite: isReport(file) });
}

function isReport(file: string): boolean {
  if (!statOf(file)?.isFile()) return false;
  let handle: number | undefined;
  try {
    handle = fs.openSync(file, 'r');
    const start = Buffer.alloc(MARK.length);
    fs.readSync(handle, start, 0, start.length, 0);
    return start.toString() === MARK;
  } catch (error) {
    throw new QkvGemmError('FILE_NOT_READABLE', `'${file}' cannot be read: ${reason(error)}.`);
  } finally {
    if (handle !== undefined) fs.closeSync(handle);
  }
}

/** Writes a report, whole or not at all. */
export async function writeReport(file: string, text: string): Promise<void> {
  await writeModelWhole(file, [new TextEncoder().encode(text)], [], { overwrite: isReport(file) });
}
