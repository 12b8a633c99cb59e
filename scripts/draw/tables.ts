/** Numbers of a page's tables. */

export interface Table {
  /** The paragraph above it, on one line. */
  caption: string;
  columns: string[];
  rows: string[][];
}

/** Tables below the heading that begins so, up to the next one. */
export function tablesOf(page: string, heading: string): Table[] {
  const start = page.indexOf(`\n${heading}`);
  if (start < 0)
    throw new Error(`There is no heading '${heading}' in the page. Correct it in scripts/pictures.ts.`);
  const from = page.indexOf('\n', start + 1);
  const next = /\n#{2,3} /.exec(page.slice(from));
  const paragraphs = page.slice(from, next ? from + next.index : undefined).split(/\n{2,}/);
  const cells = (line: string): string[] => line.split('|').slice(1, -1).map((cell) => cell.trim()); // prettier-ignore
  return paragraphs.flatMap((paragraph, i) => {
    const lines = paragraph.trim().split('\n');
    if (!lines[0]?.startsWith('|')) return [];
    const [columns = [], , ...rows] = lines.map(cells);
    return [{ caption: (paragraphs[i - 1] ?? '').replaceAll('\n', ' ').trim(), columns, rows }];
  });
}

/** Of these, the one with the most rows among those whose caption begins so. */
export function longest(tables: readonly Table[], caption: string): Table {
  const [found] = tables
    .filter((table) => table.caption.startsWith(caption))
    .sort((a, b) => b.rows.length - a.rows.length);
  if (found) return found;
  throw new Error(
    `No table's caption begins with '${caption}'; there are: ${tables.map((table) => `'${table.caption}'`).join(', ') || 'none'}. Correct it in scripts/pictures.ts.`,
  );
}

/** A column's cells as numbers, by what `read` takes for one. */
export function column(table: Table, name: string, read: (cell: string) => number = Number): number[] {
  const place = table.columns.indexOf(name);
  if (place < 0)
    throw new Error(
      `The table '${table.caption}' has no column '${name}'; there are: ${table.columns.join(', ')}.`,
    );
  return table.rows.map((row) => {
    const value = read(row[place] ?? '');
    if (!Number.isFinite(value))
      throw new Error(
        `'${row[place] ?? ''}' in column '${name}' of the table '${table.caption}' is no number.`,
      );
    return value;
  });
}

/** `253, 1.10x` -> 1.1. */
export const ratioIn = (cell: string): number => Number(/([\d.]+)x$/.exec(cell)?.[1] ?? NaN);
