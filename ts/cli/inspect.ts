/** `qkvgemm inspect`: what a model file is. */
import Table from 'cli-table3';
import type { Command } from 'commander';
import type { Sizes } from '../generated_inputs.js';
import {
  inspectModel,
  type Block,
  type ModelDescription,
  type ValueDescription,
} from '../inspect/inspect.js';
import type { Target } from '../rewrite/options.js';
import { EXIT } from './exit.js';
import { parsed, parseTargets, type Done } from './flags.js';
import { parseCount, parseDims } from '../sizes.js';
import { plain } from './fuse.js';
import { ProgressBar } from './progress.js';
import { size } from './size.js';

interface InspectFlags {
  targets: Target[];
  dims?: Sizes;
  rows?: number;
  json?: boolean;
}

export function addInspect(program: Command, done: Done): void {
  program
    .command('inspect')
    .description('say what a model is: interface, operators, sizes, and its norm + projection blocks')
    .argument('<model>', 'model file')
    .option(
      '--targets <list>',
      'which projections to look for, as for fuse: qkv, mlp, linear; default: qkv',
      (text) => parsed(parseTargets, text),
      ['qkv'] as Target[],
    )
    .option(
      '--dims <sizes>',
      'sizes of dimensions that the model leaves open, e.g. batch=1,sequence=128: what each block then costs',
      (text) => parsed(parseDims, text),
    )
    .option('--rows <count>', 'rows of all blocks, where --dims does not tell', (text) =>
      parsed((count) => parseCount(count), text),
    )
    .option('--json', 'print one JSON object instead of text')
    .action(async (model: string, flags: InspectFlags) => done(await inspectCommand(model, flags)));
}

async function inspectCommand(file: string, { targets, dims, rows, json }: InspectFlags): Promise<number> {
  const progress = new ProgressBar(process.stderr);
  let description: ModelDescription;
  try {
    description = await inspectModel(file, {
      targets,
      ...(dims === undefined ? {} : { dims }),
      ...(rows === undefined ? {} : { rows }),
      ...(json ? {} : { onProgress: progress.seen }),
    });
  } finally {
    progress.stop();
  }
  console.log(json ? JSON.stringify(description, undefined, 2) : describe(description));
  return EXIT.ok;
}

const value = ({ name, type, shape }: ValueDescription): string =>
  `${name}: ${type} ${shape ? `[${shape.map((dim) => (dim === '' ? '?' : dim)).join(', ')}]` : 'of unknown rank'}`;

function describe(model: ModelDescription): string {
  const lines = [`${model.file}: ${size(model.bytes)}`];
  for (const { file, bytes } of model.externalFiles) lines.push(`  external data ${file}: ${size(bytes)}`);
  const opsets = Object.entries(model.opsets).map(([domain, version]) => `${domain || 'onnx'} ${version}`);
  lines.push(
    `IR version ${model.irVersion}, opsets ${opsets.join(', ') || 'none'}, made by ${model.producer || 'nobody that it names'}`,
  );
  for (const [key, text] of Object.entries(model.metadata)) lines.push(`metadata ${key}: ${text}`);
  if (model.functions.length > 0) lines.push(`functions ${model.functions.join(', ')}`);
  for (const input of model.inputs) lines.push(`input  ${value(input)}`);
  for (const output of model.outputs) lines.push(`output ${value(output)}`);
  for (const [type, { tensors, elements, bytes }] of Object.entries(model.weights))
    lines.push(`weights ${type}: ${tensors} tensors, ${elements} elements, ${size(bytes)}`);
  const ops = Object.entries(model.ops).sort(([, x], [, y]) => y - x);
  lines.push(`ops ${ops.map(([op, count]) => `${op} ${count}`).join(', ') || 'none'}`);
  lines.push(model.blocks.length > 0 ? blockTable(model.blocks) : 'No block is or can be fused.');
  for (const { node, reason } of model.refused) lines.push(`not fusible: ${node}: ${reason}`);
  if (model.problem !== undefined) lines.push(`What could be fused is not known: ${model.problem}`);
  if (model.blocks.length > 0 && model.blocks.every(({ cost }) => !cost))
    lines.push('With --dims or --rows, each block gets its FLOPs and its least bytes.');
  return lines.join('\n');
}

function blockTable(blocks: readonly Block[]): string {
  const costs = blocks.some(({ cost }) => cost);
  const table = new Table({
    head: [
      ...['block', 'state', 'norm', 'K', 'columns', 'activations', 'weights', 'size'],
      ...(costs ? ['rows', 'MFLOP', 'least bytes'] : []),
    ],
    ...plain,
  });
  for (const block of blocks) {
    const { cost } = block;
    table.push([
      block.node,
      block.state,
      `${block.normType}${block.rules && block.norm !== undefined ? ` (${block.rules.norm})` : ''}`,
      block.k ?? '?',
      block.splits?.join(' ') ?? '?',
      block.activationType,
      block.weightType,
      block.weightBytes === undefined ? '?' : size(block.weightBytes),
      ...(costs ? [cost?.rows ?? '?', cost ? (cost.flops / 1e6).toPrecision(4) : '?'] : []),
      ...(costs ? [cost ? size(cost.bytes) : '?'] : []),
    ]);
  }
  return table.toString();
}
