/** How this machine's CPU kernels, or those of an instruction set, round, beyond float32 (OPERATOR.md, ops/cpu/isa.h). */
import type { Products } from '../../models/qkv_gemm_reference.js';
import { Graph } from '../../ts/onnx/graph.js';
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

/** The same for a whole model: its fused nodes' roundings, added up, those in subgraphs included. */
export function roundingOfModel(bytes: Uint8Array): number {
  return roundingOfGraph(new Model(bytes).graph, new Map());
}

/** @param outer element types of the constants that are read from around the graph. */
function roundingOfGraph(graph: Graph, outer: ReadonlyMap<string, number>): number {
  const types = new Map(outer);
  for (const [name, { type }] of graph.initializers) types.set(name, type);
  let sum = 0;
  for (const node of graph.nodes) {
    const type = node.is('QKVGemm', 'com.deepspeed') ? types.get(node.inputs[1] ?? '') : undefined;
    if (type !== undefined) sum += roundingOf(type);
    for (const inner of node.graphs) sum += roundingOfGraph(new Graph(inner), types);
  }
  return sum;
}
