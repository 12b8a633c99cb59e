/** How this machine's CPU kernels, or those of an instruction set, round, beyond float32 (OPERATOR.md, ops/cpu/isa.h). */
import type { Products } from '../../models/qkv_gemm_reference.js';
import { Model } from '../../ts/onnx/model.js';
import { DataType } from '../../ts/onnx/tensor.js';
import { instructionSet } from '../../ts/session/addon.js';

/** By instruction set, where products are not of floats alone. */
const PRODUCTS: Record<string, Products> = {
  avx_vnni: 'digits',
  avx512_vnni: 'digits',
  avx512_bf16: 'bfloat16',
  amx: 'bfloat16',
  neon_dot: 'digits',
  neon_i8mm: 'digits',
  neon_bf16: 'bfloat16',
};

export function cpuProducts(isa = instructionSet()): Products {
  return PRODUCTS[isa] ?? 'float32';
}

/**
 * How far a fused product's outputs may be from those of float32, of the largest: six standard deviations of K independent
 * roundings of the row, where the largest output is at least two deviations of the outputs, that is sqrt(K) times the mean
 * squares' roots of row and weights. Rounding to bfloat16 is off by at most 2^-8 of an element, evenly spread: a deviation
 * of 2^-8 / sqrt(3). Two digits are off by at most 2^-16 of the row's largest, a deviation of 2^-16 / sqrt(3) of it, and
 * the largest is taken to be at most twelve times the mean square's root.
 */
export function roundingOf(weightType: number): number {
  const products = cpuProducts();
  if (weightType === DataType.bfloat16 && products === 'bfloat16') return (3 * 2 ** -8) / Math.sqrt(3);
  if (weightType === DataType.int8 && products !== 'float32') return (3 * 12 * 2 ** -16) / Math.sqrt(3);
  return 0;
}

/** The same for a whole model: its fused nodes' roundings, added up. */
export function roundingOfModel(bytes: Uint8Array): number {
  const { graph } = new Model(bytes);
  const nodes = graph.nodes.filter((node) => node.is('QKVGemm', 'com.deepspeed'));
  const types = nodes.map(({ inputs }) => graph.initializers.get(inputs[1] ?? '')?.type);
  return types.reduce<number>((sum, type) => sum + (type === undefined ? 0 : roundingOf(type)), 0);
}
