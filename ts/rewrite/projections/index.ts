/** The projection rules, in the order in which they are tried. */
import { activated } from './activated.js';
import { fusedMatMul } from './fused_matmul.js';
import { gemm } from './gemm.js';
import { matMul } from './matmul.js';
import { matMulInteger } from './matmul_integer.js';
import { dynamicQuantizeMatMul, matMulIntegerToFloat } from './matmul_integer_to_float.js';
import { matMulNBits } from './matmul_nbits.js';
import { quantizedActivations } from './quantized_activations.js';
import type { ProjectionRule } from './projection.js';

export const projectionRules: readonly ProjectionRule[] = [
  matMul,
  gemm,
  fusedMatMul,
  activated,
  matMulNBits,
  matMulInteger,
  matMulIntegerToFloat,
  dynamicQuantizeMatMul,
  quantizedActivations,
];
