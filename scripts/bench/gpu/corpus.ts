/** Every model of the corpus, as it stands and fused, on the device: both must be as close to the CPU's answer. */
import type * as ort from 'onnxruntime-node';
import { corpusInputs, corpusModel, corpusModels, withoutTraining } from '../../../models/corpus.js';
import { runModel } from '../../../test/support/run.js';
import { Model } from '../../../ts/onnx/model.js';
import type { Node } from '../../../ts/onnx/node.js';
import { fuseBytes } from '../../../ts/rewrite/fuse.js';
import { withQkvGemm } from '../../../ts/session/index.js';
import { worstDifference } from '../difference.js';
import { roundingOfModel } from '../rounding.js';
import { copies, placement } from './profile.js';
import { scientific, type Report } from './report.js';

type Options = ort.InferenceSession.SessionOptions;

/** A fused graph may be this many times as far from the reference as the stock graph is on the same device. */
const FACTOR = 2;

/**
 * What is always allowed, of the largest output, where the stock graph happens to be closer: what the same models are
 * allowed on the CPU. float16 graphs round every intermediate to 11 bits; float32 sums differ in their order. cuDNN
 * chooses a convolution's algorithm anew in each session, and with one of them the stock graph of a Whisper encoder is
 * 4.8e-5 away (6 of 150 sessions on an H100, where all others are 2.3e-7 away).
 */
function allowed(name: string, { graph }: Model): number {
  if (name.endsWith('.fp16')) return 4e-3;
  if (graph.nodes.some(quantisesActivations)) return QUANTISED_STEP;
  return graph.nodes.some((node) => node.is('Conv')) ? 1e-4 : 2e-5;
}

/** What one step of an 8-bit quantiser can change in such a model: float32 summed in another order moves some values over a step. */
const QUANTISED_STEP = 1e-2;

const quantisesActivations = (node: Node): boolean =>
  node.is('DynamicQuantizeLinear') || node.is('QuantizeLinear');

/**
 * The reference is the CPU, all in float32: the original, or, where the node's weights or rows differ from it on purpose,
 * the rewritten model without the library's kernels.
 *
 * @param options session options with the execution provider that is tested.
 * @param provider its name in profiles.
 */
export async function checkCorpus(options: Options, provider: string, report: Report): Promise<void> {
  report.heading('Corpus: differences from the CPU, of the largest output');
  report.columns('model', 'weights', 'targets', 'fused nodes', 'stock graph', 'fused graph', 'allowed', '');
  let fusedModels = 0;
  // With both targets, nodes of several kinds share one function body: outputs of no columns, biases of zeros.
  const forms = (['keep', 'fp16', 'bf16', 'int8'] as const).flatMap((dtype) => [
    [dtype, ['qkv']] as const,
    [dtype, ['qkv', 'mlp']] as const,
  ]);
  for (const name of corpusModels()) {
    const original = withoutTraining(corpusModel(name));
    const parsed = new Model(original);
    const inputs = corpusInputs(name);
    const onCpu: Options = { logSeverityLevel: 4 };
    const expected = await runModel(original, inputs, { ...onCpu, graphOptimizationLevel: 'disabled' });
    const stock = worstDifference(expected, await runModel(original, inputs, options));
    for (const [dtype, targets] of forms) {
      const { model, report: fused } = fuseBytes(original, { dtype, targets });
      if (fused.fused.length === 0) continue;
      fusedModels++;
      const same = dtype === 'keep' && !parsed.graph.nodes.some(quantisesActivations);
      const reference = same ? expected : await runModel(model, inputs, onCpu);
      const difference = worstDifference(reference, await runModel(model, inputs, withQkvGemm(options)));
      if (dtype === 'keep') {
        const before = await placement(original, inputs, options);
        const after = await placement(model, inputs, withQkvGemm(options));
        report.check(
          String(after.providers) === provider && copies(after) <= copies(before),
          `${name}: QKVGemm on ${after.providers.join(', ')}, ${copies(after)} Memcpy nodes; expected ${provider} and at most ${copies(before)}, as in the stock graph`,
        );
      }
      const rounding = provider === 'CPUExecutionProvider' ? roundingOfModel(model) : 0;
      const bound = Math.max(FACTOR * stock, allowed(name, parsed)) + rounding;
      report.row(
        name,
        dtype,
        targets.join(','),
        fused.fused.length,
        scientific(stock),
        scientific(difference),
        scientific(bound),
        report.check(
          difference <= bound,
          `${name}, weights ${dtype}, ${targets.join(',')}: ${scientific(difference)} from the CPU, ${scientific(bound)} allowed`,
        ),
      );
    }
  }
  report.check(fusedModels > 0, 'the corpus holds no model in which anything is fused');
}
