/** `qkvgemm tune`: times the plans of a fused model's nodes on this machine, and keeps the best. */
import fs from 'node:fs';
import path from 'node:path';
import Table from 'cli-table3';
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { QkvGemmError } from '../errors.js';
import { readModelFile } from '../files.js';
import { qkvNodes } from '../inspect/qkv_nodes.js';
import { Model } from '../onnx/model.js';
import { DOMAIN, OP } from '../rewrite/function_body.js';
import { tuningFile } from '../session/addon.js';
import { withQkvGemm } from '../session/index.js';
import { checkProvider } from '../session/provider.js';
import { EXIT } from './exit.js';
import { plain } from './fuse.js';
import { checkSizes, generate, openDimensions, type Sizes } from '../generated_inputs.js';

export interface TuneFlags {
  provider: 'cpu' | 'cuda';
  dims: Sizes[];
  rows?: number[];
  threads?: number;
  json?: boolean;
}

/** What the file keeps of one key. */
interface Entry {
  key: string;
  plan: string;
  microseconds: number;
  heuristic: { plan: string; microseconds: number };
  measured: string;
}

/** The file's entries by key; none where there is no file that the library would take. */
function entriesOf(file: string): Map<string, Entry> {
  try {
    const { version, entries } = JSON.parse(fs.readFileSync(file, 'utf8')) as {
      version: unknown;
      entries: unknown[];
    };
    return new Map(version === 1 && entries.every(isEntry) ? entries.map((entry) => [entry.key, entry]) : []);
  } catch {
    return new Map();
  }
}

function isEntry(value: unknown): value is Entry {
  const { key, plan, microseconds, heuristic, measured } = value as Partial<Entry>;
  return (
    [key, plan, heuristic?.plan, measured].every((text) => typeof text === 'string') &&
    [microseconds, heuristic?.microseconds].every((number) => typeof number === 'number')
  );
}

/** Fails where nothing could be kept, before anything is timed. */
function checkCache(file: string): void {
  if (file === '')
    throw new QkvGemmError(
      'FILE_NOT_WRITABLE',
      'There is no folder for what is found: neither QKVGEMM_CACHE_DIR nor XDG_CACHE_HOME nor HOME is set.',
    );
  try {
    const folder = path.dirname(file);
    fs.mkdirSync(folder, { recursive: true });
    fs.accessSync(folder, fs.constants.W_OK | fs.constants.X_OK);
    if (fs.statSync(file, { throwIfNoEntry: false })?.isDirectory()) throw new Error('it is a folder');
  } catch (error) {
    throw new QkvGemmError(
      'FILE_NOT_WRITABLE',
      `What is found cannot be kept in '${file}': ${error instanceof Error ? error.message : String(error)}. ` +
        'Set QKVGEMM_CACHE_DIR to a folder that can be written to.',
      { cause: error },
    );
  }
}

function fieldsOf(key: string): Record<string, string> {
  return Object.fromEntries(
    key.split('; ').map((part) => {
      const at = part.indexOf('=');
      return [part.slice(0, at), part.slice(at + 1)];
    }),
  );
}

/** The sizes of the runs that are asked for. */
function runsOf(flags: TuneFlags, inputs: readonly InferenceSession.ValueMetadata[]): Sizes[] {
  const given = flags.dims.length > 0 ? flags.dims : [{}];
  const names = openDimensions(inputs);
  return given.flatMap((sizes) => {
    checkSizes(sizes, inputs);
    const open = names.filter((name) => !Object.hasOwn(sizes, name));
    if (flags.rows === undefined) {
      if (open.length === 0) return [sizes];
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `The model leaves dimensions open that have no size: ${open.join(', ')}. ` +
          `Give them, e.g. --dims ${open.map((name) => `${name}=1`).join(',')}` +
          `${open.length === 1 ? ' or --rows 1,16,128' : ''}.`,
      );
    }
    const [rows] = open;
    if (rows === undefined || open.length > 1)
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `--rows is for the one dimension that --dims leaves open; here that is ${open.join(', ') || 'none'}. ` +
          (open.length > 1 ? 'Give all others a size there.' : 'Leave --rows or a size out.'),
      );
    return flags.rows.map((count) => ({ ...sizes, [rows]: count }));
  });
}

async function runAll(file: string, flags: TuneFlags): Promise<Sizes[]> {
  const options = withQkvGemm(
    {
      logSeverityLevel: 3,
      executionProviders: [flags.provider],
      ...(flags.threads === undefined ? {} : { intraOpNumThreads: flags.threads }),
    },
    { tune: 'on' },
  );
  const ort = await import('onnxruntime-node');
  const session = await ort.InferenceSession.create(file, options);
  try {
    const runs = runsOf(flags, session.inputMetadata);
    for (const sizes of runs) {
      const feeds: Record<string, Tensor> = generate(session.inputMetadata, sizes, ort.Tensor);
      try {
        await session.run(feeds);
      } catch (error) {
        throw new QkvGemmError(
          'INVALID_ARGUMENT',
          `'${file}' does not run with ${describeSizes(sizes)}: ${error instanceof Error ? error.message : String(error)}`,
          { cause: error },
        );
      }
    }
    return runs;
  } finally {
    await session.release();
  }
}

function describeSizes(sizes: Sizes): string {
  return (
    Object.entries(sizes)
      .map(([name, size]) => `${name}=${size}`)
      .join(',') || 'its own sizes'
  );
}

export async function tuneCommand(file: string, flags: TuneFlags): Promise<number> {
  const nodes = qkvNodes(new Model(readModelFile(file)));
  if (nodes.length === 0)
    throw new QkvGemmError(
      'UNSUPPORTED_MODEL',
      `'${file}' has no ${DOMAIN}.${OP} node, so that there is nothing to tune. Make them first: qkvgemm fuse ${file}`,
    );
  await checkProvider(flags.provider);
  const cache = tuningFile();
  checkCache(cache);
  const before = entriesOf(cache);
  const runs = await runAll(file, flags);
  const after = entriesOf(cache);
  const tuned = [...after.values()].flatMap((entry): Tuned[] => {
    const fields = fieldsOf(entry.key);
    const ours =
      nodes.some(({ weight: w }) => w && fields.K === String(w.k) && fields.N === String(w.n)) &&
      (fields.packing === 'panels') === (flags.provider === 'cpu');
    const known = JSON.stringify(before.get(entry.key)) === JSON.stringify(entry);
    return ours ? [{ ...entry, fields, timedNow: !known }] : [];
  });
  tuned.sort((a, b) => {
    const by = (name: string): number => Number(a.fields[name]) - Number(b.fields[name]);
    return by('K') || by('N') || by('rows');
  });
  if (flags.json) console.log(JSON.stringify({ file: cache, runs, tuned }, undefined, 2));
  else if (tuned.length > 0)
    console.log(`${describe(tuned)}\nKept in ${cache}; sessions take them from there.`);
  else console.log('Nothing was timed: no node that ran has constant weights and plans to choose from.');
  return EXIT.ok;
}

type Tuned = Entry & { fields: Record<string, string>; timedNow: boolean };

/** A table for each device and version that the file has entries of. */
function describe(tuned: readonly Tuned[]): string {
  const tables = new Map<string, InstanceType<typeof Table>>();
  for (const { fields, plan, microseconds, heuristic, timedNow, measured } of tuned) {
    const title = `${fields.device}; version ${fields.library}:`;
    const table =
      tables.get(title) ??
      new Table({
        head: ['K', 'N', 'types', 'norm', 'rows', 'estimated plan', 'us', 'best plan', 'us', 'gain', 'timed'],
        ...plain,
      });
    tables.set(title, table);
    table.push([
      fields.K,
      fields.N,
      `${fields.T} x ${fields.TW}`,
      fields.norm,
      fields.rows,
      heuristic.plan,
      heuristic.microseconds.toFixed(1),
      plan === heuristic.plan ? 'the same' : plan,
      microseconds.toFixed(1),
      `${((heuristic.microseconds / microseconds - 1) * 100).toFixed(0)} %`,
      timedNow ? 'now' : measured,
    ]);
  }
  return [...tables].map(([title, table]) => `${title}\n${table.toString()}`).join('\n');
}
