/** A small model that loads only where the library is registered, its input, and what it must give. */
import { qkvGemmModel, randomOperands, type QkvGemmSpec } from '../../models/qkv_gemm.js';
import { cpuReference } from './cpu_reference.js';
import { DataType } from '../../ts/onnx/tensor.js';

export const K = 8;
export const N = 16;
export const ROWS = 3;

/** The node's form where it is not the layer norm with gamma and beta. */
export type Form = Partial<QkvGemmSpec>;
const LAYER_NORM: Form = { gamma: DataType.float, beta: DataType.float };

const specOf = (form: Form): QkvGemmSpec => ({ dims: [ROWS, K], n: N, ...form });

/** Random rows; the same for every form. */
export const x = randomOperands(specOf({})).input?.values ?? new Float32Array();

/** One com.deepspeed.QKVGemm node, with no function body. */
export function fusedModel(form = LAYER_NORM): Uint8Array {
  const spec = specOf(form);
  return qkvGemmModel(spec, randomOperands(spec), { inputDims: ['rows', K] }).bytes;
}

/** What `fusedModel(form)` gives for `x`, by output name, in float64. */
export function expected(form = LAYER_NORM): Record<string, Float64Array> {
  const spec = specOf(form);
  const outputs = Object.entries(cpuReference(spec, randomOperands(spec)));
  return Object.fromEntries(outputs.map(([name, { values }]) => [name, values]));
}

/** Of the largest output: sums of few products in float32 against float64. */
export const TOLERANCE = 1e-5;
