#!/usr/bin/env node
/** The command `qkvgemm`. */
import { Command, CommanderError, Option } from 'commander';
import { QkvGemmError } from '../errors.js';
import packageRoot from '../package_root.cjs';
import { SHORTEST_BLOCK } from '../rewrite/weights/quantization.js';
import { addBench } from './bench.js';
import { addDoctor } from './doctor.js';
import { EXIT } from './exit.js';
import { fuseCommand, type FuseFlags } from './fuse.js';
import { parsed, parseError, parseTargets, parseThreads, REPORT_HELP, RUN_HELP } from './flags.js';
import { parseCount, parseDims } from '../sizes.js';
import { addInspect } from './inspect.js';
import { tuneCommand, type TuneFlags } from './tune.js';
import { addVerify } from './verify.js';

const HELP = `
Exit codes:
  0  done
  1  a file, a model or the machine is not as needed; the message says what and where
  2  the command line is wrong
  3  nothing could be fused; nothing was written
  4  two models give different results, or one runs and the other does not

Examples:
  qkvgemm fuse model.onnx                          writes model.fused.onnx
  qkvgemm fuse model.onnx -o out.onnx --dtype int8
  qkvgemm fuse model.onnx all.onnx --targets qkv,mlp,linear
  qkvgemm fuse model.onnx --dry-run --explain      writes nothing, says why each norm was or was not fused
  qkvgemm tune model.fused.onnx --dims batch=1 --rows 1,16,128
  qkvgemm inspect model.onnx --dims batch=1,sequence=128
  qkvgemm verify model.onnx model.fused.onnx --dims batch=2,sequence=16
  qkvgemm bench model.onnx --fused --dims batch=1,sequence=128 --seconds 1
  qkvgemm doctor
`;

export async function main(args: readonly string[]): Promise<number> {
  const program = new Command('qkvgemm')
    .description('Norm + QKV projection as one operator in ONNX models.')
    .version(packageRoot.manifest.version)
    .exitOverride()
    .showHelpAfterError('(qkvgemm --help shows all options)')
    .addHelpText('after', HELP);
  let code: number = EXIT.ok;
  program
    .command('fuse')
    .description('rewrite a model: each norm + QKV projection becomes one com.deepspeed.QKVGemm node')
    .argument('<in>', 'model file')
    .argument('[out]', 'output file; default: IN with .fused.onnx')
    .option('-o, --output <file>', 'output file')
    .addOption(
      new Option('--dtype <type>', 'type of the fused weights')
        .choices(['keep', 'fp16', 'bf16', 'int8'])
        .default('keep'),
    )
    .addOption(
      new Option(
        '--targets <list>',
        'projections to fuse, e.g. qkv,mlp: qkv, behind a norm and leading to attention; mlp, the others behind a norm; linear, all others',
      )
        .argParser((text: string) => parsed(parseTargets, text))
        .default(['qkv'], 'qkv'),
    )
    .option(
      '--int8-block <rows>',
      'with --dtype int8: rows of a column that share a scale; default: all',
      (text) => parsed((count) => parseCount(count), text),
    )
    .option(
      '--activation-quant',
      'nodes with int8 weights round their normalised rows to int8 as well; needs --dtype int8 or integer weights in the model; default: where the model rounds them itself',
    )
    .option('--no-activation-quant', 'no node does')
    .option('--no-fallback', 'leave out the function body: the model then needs the library')
    .option('--no-verify', 'do not load the result in onnxruntime-node before it is written')
    .option('--save-as-external-data', 'weights leave the model file for OUT.data beside it')
    .option('--external-data-file <name>', 'one file beside OUT for all weights, external ones included')
    .option(
      '--check',
      'run the original and the result on generated inputs, and write nothing where they differ',
    )
    .option(
      '--max-error <number>',
      "for --check: difference allowed, of an output's largest element; default: 5e-3, with bf16 5e-2, with int8 1e-1",
      (text) => parsed(parseError, text),
    )
    .option('--dims <sizes>', `for --check: ${RUN_HELP.dims}`, (text) => parsed(parseDims, text))
    .option(
      '--skip <node>',
      'keep what this node belongs to as it is; may be given several times',
      (name, all: string[] | undefined) => [...(all ?? []), name],
    )
    .option('--dry-run', 'write nothing')
    .option('--explain', 'say of each norm what became of it, and why')
    .option('--overwrite', 'replace an existing output')
    .option('--report <file>', REPORT_HELP)
    .option('--json', 'print one JSON object instead of text')
    .action(async (input: string, output: string | undefined, flags: FuseFlags, command: Command) => {
      if (output !== undefined && flags.output !== undefined && output !== flags.output)
        command.error(`error: two outputs are named, '${output}' and '${flags.output}': give one`);
      // Of no use to any model; --activation-quant is of use to those whose weights are integers, whatever --dtype says.
      if (flags.int8Block !== undefined && flags.dtype !== 'int8')
        command.error(
          `error: --int8-block is for weights that become int8, and --dtype is ${flags.dtype}: add --dtype int8, or leave it out`,
        );
      if (flags.int8Block !== undefined && flags.int8Block < SHORTEST_BLOCK)
        command.error(
          `error: --int8-block is ${flags.int8Block}, expected ${SHORTEST_BLOCK} rows or more that share a scale`,
        );
      code = await fuseCommand(input, flags.output ?? output, flags);
    });
  program
    .command('tune')
    .description(
      "time the plans of a fused model's nodes on this machine, and keep the best for its sessions",
    )
    .argument('<model>', 'model file with com.deepspeed.QKVGemm nodes')
    .addOption(new Option('--provider <name>', RUN_HELP.provider).choices(['cpu', 'cuda']).default('cpu'))
    .addOption(
      new Option(
        '--dims <sizes>',
        'sizes of the dimensions that the model leaves open, e.g. batch=1,sequence=128; once for each run',
      )
        .argParser((text: string, all: TuneFlags['dims']) => [...all, parsed(parseDims, text)])
        .default([], 'none'),
    )
    .option(
      '--rows <counts>',
      'sizes of the one dimension that --dims leaves open, a run each',
      (text, all: number[] | undefined) => [
        ...(all ?? []),
        ...text.split(',').map((count) => parsed(parseCount, count)),
      ],
    )
    .option('--threads <count>', RUN_HELP.threads, (text) => parsed(parseThreads, text))
    .option('--json', 'print one JSON object instead of text')
    .action(async (model: string, flags: TuneFlags) => {
      code = await tuneCommand(model, flags);
    });
  const done = (result: number): void => void (code = result);
  addInspect(program, done);
  addVerify(program, done);
  addBench(program, done);
  addDoctor(program, done);
  try {
    await program.parseAsync(args, { from: 'user' });
    return code;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    const known = error instanceof QkvGemmError;
    const message = error instanceof Error ? error.message : String(error);
    if (args.includes('--json'))
      console.log(JSON.stringify({ error: { code: known ? error.code : 'UNEXPECTED', message } }));
    console.error(known ? `qkvgemm: ${message}` : `qkvgemm: unexpected error, please report it: ${message}`);
    return known && error.code === 'CHECK_FAILED' ? EXIT.different : EXIT.failed;
  }
}

// A reader that has seen enough (`qkvgemm ... | head`) is no failure.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error;
});

process.exitCode = EXIT.failed; // of a process that ends before the command is done
void main(process.argv.slice(2)).then((code) => (process.exitCode = code));
