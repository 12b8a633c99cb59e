/** The report of `fuse`. */
import path from 'node:path';
import { FolderSource } from '../external_data.js';
import { readModelFile } from '../files.js';
import type { FusedFile } from '../fuse_file.js';
import { differenceParts } from './difference_parts.js';
import { FUSE_TITLE, fuseParts, LabelledGraph } from './fuse_parts.js';
import { section } from './html.js';
import { page } from './page.js';

/** What `fuseHtml` draws: what `fuseFile` gave, and its files. */
export interface FuseHtmlInput extends Pick<FusedFile, 'report' | 'differences'> {
  /** The file that was rewritten. */
  input: string;
  /** The file that was written; absent for a dry run, or where nothing was fused. */
  output?: string;
}

const graphOf = (file: string): LabelledGraph =>
  new LabelledGraph(readModelFile(file), new FolderSource(path.dirname(file)));

/**
 * A page with each fused site before and after, each refusal with its reason and place, operator counts and sizes.
 *
 * @returns HTML that needs nothing else and loads nothing.
 * @throws QkvGemmError `FILE_NOT_FOUND`, `FILE_NOT_READABLE`, `INVALID_MODEL` or `EXTERNAL_DATA`, where a file is no longer
 *   what it was.
 */
export function fuseHtml({ input, output, report, differences }: FuseHtmlInput): string {
  const files = output === undefined ? { input } : { input, output, after: graphOf(output) };
  const { head, sections } = fuseParts({ ...files, before: graphOf(input), report });
  return page(FUSE_TITLE, head, [
    ...sections,
    ...(differences
      ? [section('check', 'Check of the outputs', differenceParts(differences, 'Differences of the outputs'))]
      : []),
  ]);
}
