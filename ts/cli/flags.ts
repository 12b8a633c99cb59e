/** What several commands' flags hold, and how it is read from the command line. */
import { InvalidArgumentError, Option, type Command } from 'commander';
import type { Sizes } from '../generated_inputs.js';
import { TARGETS, type Target } from '../rewrite/options.js';
import { parseCount, parseDims } from '../sizes.js';
import type { InputFile } from '../verify/input_files.js';

/** Takes a command's exit code. */
export type Done = (code: number) => void;

/** What `parse` says is wrong, in commander's words. */
export function parsed<T>(parse: (text: string) => T, text: string): T {
  try {
    return parse(text);
  } catch (error) {
    throw new InvalidArgumentError(error instanceof Error ? error.message : String(error));
  }
}

/** `qkv,mlp`: names in any order, each once. */
export function parseTargets(text: string): Target[] {
  const names = text.split(',').map((name) => name.trim());
  const unknown = names.find((name) => !TARGETS.includes(name as Target));
  if (unknown !== undefined)
    throw new Error(`'${unknown}' is no target; expected one or more of ${TARGETS.join(',')}`);
  return [...new Set(names as Target[])];
}

export function parseError(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !(value >= 0)) throw new Error('expected a number >= 0.');
  return value;
}

/** Of a session, which starts as many as it is told to. */
const MOST_THREADS = 1024;

export const parseThreads = (text: string): number => parseCount(text, MOST_THREADS);

function parseSeed(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new Error(`expected a whole number below 10^9, found '${text}'`);
  return Number(text);
}

/** `x=FILE`, or a file alone. */
function parseInput(text: string): InputFile {
  const at = text.indexOf('=');
  return at > 0 ? { name: text.slice(0, at), file: text.slice(at + 1) } : { file: text };
}

/** Flags of commands that run models. */
export interface RunFlags {
  input?: InputFile[];
  dims?: Sizes;
  seed?: number;
  provider: 'cpu' | 'cuda';
  threads?: number;
}

export const RUN_HELP = {
  dims: 'sizes of dimensions that the model leaves open, e.g. batch=1,sequence=16; default: 3 each',
  provider: 'execution provider',
  threads: "threads of the session's pool",
} as const;

/** Adds the flags of `RunFlags`. */
export function addRunFlags(command: Command): Command {
  return command
    .option(
      '--input <[name=]file>',
      'an input: TensorProto (.pb), numpy (.npy), JSON, or a folder with input_0.pb; may be given several times; others are generated',
      (text: string, all: InputFile[] | undefined) => [...(all ?? []), parseInput(text)],
    )
    .option('--dims <sizes>', RUN_HELP.dims, (text) => parsed(parseDims, text))
    .option('--seed <number>', 'of the generated inputs; default: 1', (text) => parsed(parseSeed, text))
    .addOption(new Option('--provider <name>', RUN_HELP.provider).choices(['cpu', 'cuda']).default('cpu'))
    .option('--threads <count>', RUN_HELP.threads, (text) => parsed(parseThreads, text));
}

/** The same as options of a library function. */
export function runOptions({ input, dims, seed, provider, threads }: RunFlags): {
  inputFiles?: InputFile[];
  dims?: Sizes;
  seed?: number;
  provider: 'cpu' | 'cuda';
  threads?: number;
} {
  return {
    provider,
    ...(input === undefined ? {} : { inputFiles: input }),
    ...(dims === undefined ? {} : { dims }),
    ...(seed === undefined ? {} : { seed }),
    ...(threads === undefined ? {} : { threads }),
  };
}

/** Flags that say how far two models may lie apart. */
export interface BoundFlags {
  maxError?: number;
  atol?: number;
  rtol?: number;
}

export function addBoundFlags(command: Command, maxError = '5e-3, or none with --atol or --rtol'): Command {
  const number = (text: string): number => parsed(parseError, text);
  return command
    .option(
      '--max-error <number>',
      `difference allowed, of an output's largest element; default: ${maxError}`,
      number,
    )
    .option('--atol <number>', 'as numpy.allclose: |a - b| <= atol + rtol * |a| for each element', number)
    .option('--rtol <number>', 'see --atol', number);
}

export function boundOptions({ maxError, atol, rtol }: BoundFlags): BoundFlags {
  return {
    ...(maxError === undefined ? {} : { maxError }),
    ...(atol === undefined ? {} : { atol }),
    ...(rtol === undefined ? {} : { rtol }),
  };
}

export const REPORT_HELP = 'write a self-contained HTML report there; replaces a former report only';

/** Adds `--report`. */
export function addReportFlag(command: Command): Command {
  return command.option('--report <file>', REPORT_HELP);
}
