/** What the checks on a GPU found: markdown tables, and whether all was right. */

export class Report {
  /** What was wrong, in words. */
  readonly failures: string[] = [];

  heading(text: string): void {
    console.log(`\n### ${text}\n`);
  }

  columns(...names: readonly string[]): void {
    console.log(`| ${names.join(' | ')} |\n|${names.map(() => '---|').join('')}`);
  }

  row(...cells: readonly (string | number)[]): void {
    console.log(`| ${cells.join(' | ')} |`);
  }

  /** Says `ok`, or what is wrong, which is kept. */
  check(right: boolean, wrong: string): string {
    if (right) return 'ok';
    this.failures.push(wrong);
    return 'WRONG';
  }
}

export const scientific = (value: number): string => value.toExponential(1);
