/** A report as one file that needs nothing else, and how it is written. */
import crypto from 'node:crypto';
import fs from 'node:fs';
import { QkvGemmError, reason } from '../errors.js';
import { checkWritable, sameFile, statOf } from '../files.js';
import { writeModelWhole } from '../staging.js';
import { Html, markup, type Content, type Section } from './html.js';
import { STYLE } from './style.js';
import { SCRIPT } from './zoom.js';

/** By this a report is known again: it may be replaced, as no other file may. */
const MARK = '<!doctype html><!-- qkvgemm report -->';

const hash = (text: string): string =>
  `'sha256-${crypto.createHash('sha256').update(text).digest('base64')}'`;

/** @param head what stands above the sections. */
export function page(title: string, head: Content, sections: readonly Section[]): string {
  // The policy forbids what the report does not do: nothing is loaded, and no script runs but its own.
  const policy = `default-src 'none'; script-src ${hash(SCRIPT)}; style-src ${hash(STYLE)}; base-uri 'none'; form-action 'none'`;
  const body = markup`
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta http-equiv="Content-Security-Policy" content="${policy}" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>${title}</title>
        ${new Html(`<style>${STYLE}</style>`)}
      </head>
      <body>
        <header>
          <h1>${title}</h1>
          ${head}
        </header>
        <nav aria-label="Sections">
          <ul>
            ${sections.map(({ id, title: name }) => markup`<li><a href="#${id}">${name}</a></li>`)}
          </ul>
        </nav>
        <main>${sections.map(({ body: content }) => markup`${content} `)}</main>
        <footer>
          Made by qkvgemm on ${new Date().toISOString().slice(0, 10)}. Graphs: drag, Ctrl and wheel, two
          fingers or the buttons; with the keyboard + - 0 and the arrow keys.
        </footer>
        ${new Html(`<script>${SCRIPT}</script>`)}
      </body>
    </html>
  `;
  return MARK + body.text;
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
