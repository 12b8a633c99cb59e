/** The operator's contract in float64, with the bounds of the products that this machine's CPU kernels compute. */
import type { Operands, QkvGemmSpec } from '../../models/qkv_gemm.js';
import { reference, type Expected, type Products } from '../../models/qkv_gemm_reference.js';
import { instructionSet } from '../../ts/session/addon.js';

/** All that QKVGEMM_ISA may name. */
export const INSTRUCTION_SETS = ['scalar', 'avx2', 'avx_vnni', 'avx512', 'avx512_vnni', 'avx512_bf16', 'amx'];

/** By instruction set, where products are not of floats alone (ops/cpu/isa.h). */
const PRODUCTS: Record<string, Products> = {
  avx_vnni: 'digits',
  avx512_vnni: 'digits',
  avx512_bf16: 'bfloat16',
  amx: 'bfloat16',
};

export function cpuProducts(): Products {
  return PRODUCTS[instructionSet()] ?? 'float32';
}

export function cpuReference(spec: QkvGemmSpec, operands: Operands): Record<string, Expected> {
  return reference(spec, operands, 'deviations', cpuProducts());
}
