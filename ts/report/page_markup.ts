/** A report as a page that needs nothing else; the same in Node and in the web page. */
import { Html, markup, type Content, type Section } from './html.js';
import { STYLE } from './style.js';
import { SCRIPT } from './zoom.js';

/** By this a report is known again: it may be replaced, as no other file may. */
export const MARK = '<!doctype html><!-- qkvgemm report -->';

/** The texts whose hashes the policy has. */
export const INLINE = { script: SCRIPT, style: STYLE };

/** SHA-256 of each as base64. */
export type Hashes = Record<keyof typeof INLINE, string>;

/** @param head what stands above the sections. */
export function pageWith(hashes: Hashes, title: string, head: Content, sections: readonly Section[]): string {
  // The policy forbids what the report does not do: nothing is loaded, and no script runs but its own.
  const policy = `default-src 'none'; script-src 'sha256-${hashes.script}'; style-src 'sha256-${hashes.style}'; base-uri 'none'; form-action 'none'`;
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
