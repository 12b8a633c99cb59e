/** `qkvgemm tune`: times the plans of a fused model's nodes on this machine, and keeps the best. */
import fs from 'node:fs';
import Table from 'cli-table3';
import type { InferenceSession, Tensor } from 'onnxruntime-node';
import { QkvGemmError } from '../errors.js';
import { readModelFile } from '../files.js';
import { Graph } from '../onnx/graph.js';
import { Model } from '../onnx/model.js';
import { DOMAIN, OP } from '../rewrite/function_body.js';
import { tuningFile } from '../session/addon.js';
import { withQkvGemm } from '../session/index.js';
import { EXIT } from './exit.js';
import { plain } from './fuse.js';
import { generate, openDimensions, type Sizes } from './generated_inputs.js';

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

interface Shape {
  k: number;
  n: number;
}

/** `batch=1,sequence=128` of the command line. */
export function parseDims(text: string): Sizes {
  return Object.fromEntries(
    text.split(',').map((part) => {
      const at = part.lastIndexOf('=');
      if (at < 1) throw new Error(`expected NAME=SIZE, found '${part}'`);
      return [part.slice(0, at), parseSize(part.slice(at + 1))];
    }),
  );
}

/** A count of the command line. */
export function parseSize(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new Error(`expected a size from 1 on, found '${text}'`);
  return Number(text);
}

/** K and N of the QKVGemm nodes with constant weights, in the graph and its subgraphs. */
function shapesOf(graph: Graph, shapes = new Map<string, Shape>()): { nodes: number; shapes: Shape[] } {
  let nodes = 0;
  for (const node of graph.nodes) {
    if (node.is(OP, DOMAIN)) {
      nodes++;
      const dims = graph.initializers.get(node.inputs[1] ?? '')?.dims;
      const transposed = node.attributes.get('transposed')?.integer === 1;
      const [k, n] = (transposed ? dims?.toReversed() : dims) ?? [];
      if (k !== undefined && n !== undefined) shapes.set(`${k} ${n}`, { k, n });
    }
    for (const { graphs } of node.attributes.values())
      for (const bytes of graphs) nodes += shapesOf(new Graph(bytes), shapes).nodes;
  }
  return { nodes, shapes: [...shapes.values()] };
}

/** The file's entries by key; none where there is no file that the library would take. */
function entriesOf(file: string): Map<string, Entry> {
  try {
    const { version, entries } = JSON.parse(fs.readFileSync(file, 'utf8')) as {
      version: number;
      entries: Entry[];
    };
    return new Map(version === 1 ? entries.map((entry) => [entry.key, entry]) : []);
  } catch {
    return new Map();
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
    const unknown = Object.keys(sizes).find((name) => !names.includes(name));
    if (unknown !== undefined)
      throw new QkvGemmError(
        'INVALID_ARGUMENT',
        `--dims names '${unknown}', which is no dimension that the model leaves open; those are: ${names.join(', ') || 'none'}.`,
      );
    const open = names.filter((name) => !(name in sizes));
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
        `--rows is for the one dimension that --dims leaves open; here that is ${open.join(', ') || 'none'}.`,
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
  const { nodes, shapes } = shapesOf(new Model(readModelFile(file)).graph);
  if (nodes === 0)
    throw new QkvGemmError(
      'UNSUPPORTED_MODEL',
      `'${file}' has no ${DOMAIN}.${OP} node, so that there is nothing to tune. Make them first: qkvgemm fuse ${file}`,
    );
  const cache = tuningFile();
  if (cache === '')
    throw new QkvGemmError(
      'FILE_NOT_WRITABLE',
      'There is no folder for what is found: neither QKVGEMM_CACHE_DIR nor XDG_CACHE_HOME nor HOME is set.',
    );
  const before = entriesOf(cache);
  const runs = await runAll(file, flags);
  const after = entriesOf(cache);
  const tuned = [...after.values()].flatMap((entry) => {
    const fields = fieldsOf(entry.key);
    const ours =
      shapes.some(({ k, n }) => fields.K === String(k) && fields.N === String(n)) &&
      (fields.packing === 'panels') === (flags.provider === 'cpu');
    const known = JSON.stringify(before.get(entry.key)) === JSON.stringify(entry);
    return ours ? [{ ...entry, fields, timedNow: !known }] : [];
  });
  tuned.sort((a, b) => {
    const by = (name: string): number => Number(a.fields[name]) - Number(b.fields[name]);
    return by('K') || by('N') || by('rows');
  });
  if (flags.json) {
    console.log(JSON.stringify({ file: cache, runs, tuned }, undefined, 2));
  } else {
    const table = new Table({
      head: ['K', 'N', 'types', 'norm', 'rows', 'estimated plan', 'us', 'best plan', 'us', 'gain', 'timed'],
      ...plain,
    });
    for (const { fields, plan, microseconds, heuristic, timedNow, measured } of tuned)
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
    console.log(tuned.length > 0 ? table.toString() : 'No node of the model has plans to choose from.');
    console.log(`Kept in ${cache}; sessions take them from there.`);
  }
  // Nodes with constant weights are always timed; if none is there, the file could not be written.
  if (shapes.length === 0 || tuned.length > 0) return EXIT.ok;
  throw new QkvGemmError('FILE_NOT_WRITABLE', `Nothing could be kept in '${cache}'. Set QKVGEMM_CACHE_DIR.`);
}
