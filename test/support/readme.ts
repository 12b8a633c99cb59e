/** Examples in the documentation. */
import fs from 'node:fs';
import path from 'node:path';
import { root } from './command.js';

/** Contents of the fenced blocks of one language in a file of the project. */
export function blocks(file: string, language: string): string[] {
  const text = fs.readFileSync(path.join(root, file), 'utf8');
  return [...text.matchAll(/^```(\w*)\n([^]*?)^```$/gm)]
    .filter((match) => match[1] === language)
    .map((match) => match[2] ?? '');
}
