/** Examples in the documentation. */
import fs from 'node:fs';
import path from 'node:path';
import { root } from './command.js';

/** Contents of the fenced blocks of one language in a file of the project, or in one of its sections. */
export function blocks(file: string, language: string, section?: string): string[] {
  const all = fs.readFileSync(path.join(root, file), 'utf8');
  const text =
    section === undefined ? all : (all.split(/^## /m).find((part) => part.startsWith(`${section}\n`)) ?? '');
  return [...text.matchAll(/^```(\w*)\n([^]*?)^```$/gm)]
    .filter((match) => match[1] === language)
    .map((match) => match[2] ?? '');
}
