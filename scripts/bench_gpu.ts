/**
 * The op in onnxruntime-node's CUDA provider, end to end: every fused model of the corpus, and stacks of norm + query, key
 * and value layers, against their stock graphs. Verifies, then times.
 *
 *   npm run bench:gpu [-- --seconds S] [--layers L] [--m 1,16,128,512] [--only corpus|bert|llama] [--provider cuda|cpu]
 *
 * The corpus is where QKVGEMM_CORPUS says. Prints markdown tables; exits with 1 where anything is wrong. On the CPU, which
 * is there to try the script out, take few layers.
 */
import * as ort from 'onnxruntime-node';
import { parseArgs } from 'node:util';
import { cudaDevices } from '../ts/session/addon.js';
import { checkCorpus } from './bench/gpu/corpus.js';
import { Report } from './bench/gpu/report.js';
import { checkStack, stackShapes } from './bench/gpu/stacks.js';
import { machineLine } from '../ts/bench/machine.js';

// The stock graphs' float32 products would be rounded to TensorFloat32, and the comparison say nothing.
process.env.NVIDIA_TF32_OVERRIDE = '0';

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '3' },
    layers: { type: 'string', default: '16' },
    m: { type: 'string', default: '1,16,128,512' },
    only: { type: 'string' },
    provider: { type: 'string', default: 'cuda' },
  },
});
const PARTS = ['corpus', 'bert', 'llama'];
const PROVIDERS: Record<string, string> = { cuda: 'CUDAExecutionProvider', cpu: 'CPUExecutionProvider' };

async function main(): Promise<number> {
  const seconds = Number(values.seconds);
  const layers = Number(values.layers);
  const rows = values.m.split(',').map(Number);
  const provider = PROVIDERS[values.provider];
  const parts = values.only === undefined ? PARTS : values.only.split(',');
  const positive = (value: number): boolean => Number.isInteger(value) && value > 0;
  if (
    !(seconds > 0) ||
    ![layers, ...rows].every(positive) ||
    !provider ||
    !parts.every((p) => PARTS.includes(p))
  ) {
    console.error(
      `bench:gpu: expected --seconds > 0, --layers and --m in whole numbers, --only of ${PARTS.join(', ')}, --provider cuda or cpu.`,
    );
    return 2;
  }
  console.log(machineLine());
  console.log(`CUDA devices: ${cudaDevices().join('; ') || 'none'}`);
  const options: ort.InferenceSession.SessionOptions = {
    executionProviders: [values.provider],
    logSeverityLevel: 4,
  };
  const report = new Report();
  if (parts.includes('corpus')) await checkCorpus(options, provider, report);
  for (const shape of stackShapes) {
    if (!parts.some((part) => shape.name.toLowerCase().startsWith(part))) continue;
    for (const weights of ['fp16', 'int8'] as const)
      await checkStack(shape, weights, { layers, rows, seconds, options, provider }, report);
  }
  console.log(
    "\nTimes are medians per call from JavaScript, samples taken in turn; a layer's are without those of a model that has none.\n" +
      'The stock graph of int8 weights holds them dequantised to float16. Errors are from the same graph in float32, of the\nlargest output.',
  );
  for (const failure of report.failures) console.error(`wrong: ${failure}`);
  console.log(report.failures.length === 0 ? 'all right' : `${report.failures.length} wrong`);
  return report.failures.length === 0 ? 0 : 1;
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(
    `bench:gpu failed: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`,
  );
  process.exitCode = 1;
}
