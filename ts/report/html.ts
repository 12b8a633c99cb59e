/** HTML that is escaped unless it was made here: what a model says of itself can hold anything. */

/** Markup that is safe as it is. */
export class Html {
  constructor(readonly text: string) {}
}

export type Content = Html | string | number | undefined | false | readonly Content[];

/** Control characters that HTML does not allow, but for tab and line feed, and halves of surrogate pairs. */
const NOT_ALLOWED =
  // eslint-disable-next-line no-control-regex
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\ufffe\uffff]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

const ENTITIES: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
};

/** Text for an element or an attribute in quotes. */
export function escaped(text: string): string {
  return text.replace(NOT_ALLOWED, '\ufffd').replace(/[&<>"']/g, (character) => ENTITIES[character] ?? '');
}

function rendered(content: Content): string {
  if (content instanceof Html) return content.text;
  if (content === undefined || content === false) return '';
  if (typeof content === 'object') return content.map(rendered).join('');
  return escaped(String(content));
}

/** markup`<b>${name}</b>`: what is put in is escaped, unless it is Html itself. */
export function markup(parts: TemplateStringsArray, ...contents: readonly Content[]): Html {
  return new Html(parts.map((part, i) => part + (i < contents.length ? rendered(contents[i]) : '')).join(''));
}

/** A name that may be long: its middle is left out, the whole is its title. */
export function name(text: string, most = 60): Html {
  if (text.length <= most) return markup`<code>${text}</code>`;
  const end = Math.floor(most / 2) - 1;
  return markup`<code title="${text}">${text.slice(0, end)}…${text.slice(-end)}</code>`;
}

export interface Column<T> {
  head: string;
  cell: (row: T) => Content;
  /** Numbers stand at the right. */
  number?: boolean;
}

/** A table that scrolls by itself where it is wider than the page. */
export function table<T>(caption: string, columns: readonly Column<T>[], rows: readonly T[]): Html {
  const cls = (column: Column<T>): Html => new Html(column.number ? ' class="number"' : '');
  return markup`<div class="scroll" tabindex="0" role="region" aria-label="${caption}">
    <table>
      <caption>
        ${caption}
      </caption>
      <thead>
        <tr>
          ${columns.map((column) => markup`<th scope="col"${cls(column)}>${column.head}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) =>
            markup`<tr>
              ${columns.map((column) => markup`<td${cls(column)}>${column.cell(row)}</td>`)}
            </tr> `,
        )}
      </tbody>
    </table>
  </div>`;
}

/** Facts with their names. */
export function facts(entries: readonly (readonly [string, Content])[]): Html {
  return markup`<dl>
    ${entries.map(
      ([term, value]) =>
        markup`<div>
          <dt>${term}</dt>
          <dd>${value}</dd>
        </div>`,
    )}
  </dl>`;
}

export function section(id: string, title: string, ...content: readonly Content[]): Section {
  return {
    id,
    title,
    body: markup`<section id="${id}">
      <h2>${title}</h2>
      ${content}
    </section>`,
  };
}

export interface Section {
  id: string;
  title: string;
  body: Html;
}
