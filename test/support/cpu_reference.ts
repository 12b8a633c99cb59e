/** The operator's contract in float64, with the bounds of the products that CPU kernels compute. */
import type { Operands, QkvGemmSpec } from '../../models/qkv_gemm.js';
import { reference, type Expected } from '../../models/qkv_gemm_reference.js';
import { cpuProducts } from '../../scripts/bench/rounding.js';

/** All that QKVGEMM_ISA may name. */
export const INSTRUCTION_SETS = [
  'scalar',
  'avx2',
  'avx_vnni',
  'avx512',
  'avx512_vnni',
  'avx512_bf16',
  'amx',
  'neon',
  'neon_dot',
  'neon_i8mm',
  'neon_bf16',
];

/** `isa`: default that of this machine. */
export function cpuReference(spec: QkvGemmSpec, operands: Operands, isa?: string): Record<string, Expected> {
  return reference(spec, operands, 'deviations', cpuProducts(isa));
}
