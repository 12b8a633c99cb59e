/**
 * com.microsoft MatMulNBits of 8 bits: y = A * dequantised(B)^T + bias, B [N, blocks, block_size] uint8 with a scale and a
 * zero point (128 where there is none) for each block of a column. `accuracy_level` lets a kernel round A; the fused op
 * does not, so that it is at least as accurate at any level.
 *
 * Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
 */
import { DataType, dataTypeName } from '../../onnx/tensor.js';
import { findConstant, vectorLength, whyNotConstant } from '../constants.js';
import { fail } from '../match.js';
import { readQuantization } from '../weights/quantization.js';
import { isFloat, projectionOf, type ProjectionRule } from './projection.js';

export const matMulNBits: ProjectionRule = {
  name: 'matmul-nbits',
  match(index, node, value) {
    if (!node.is('MatMulNBits', 'com.microsoft') || node.inputs[0] !== value || !node.outputs[0])
      return undefined;
    const [, weightName = '', scaleName = '', zeroName = '', order = '', biasName = ''] = node.inputs;
    const bits = node.integer('bits', 4);
    if (bits !== 8) return fail(`MatMulNBits has ${bits} bits, expected 8`, node);
    if (order !== '')
      return fail(`MatMulNBits has g_idx '${order}', expected blocks of adjoining rows`, node);
    const [k, n, size] = ['K', 'N', 'block_size'].map((name) => node.integer(name, 0)) as [
      number,
      number,
      number,
    ];
    if (k < 1 || n < 1 || size < 1)
      return fail(`MatMulNBits has K = ${k}, N = ${n}, block_size = ${size}, expected 1 or more`, node);
    const blocks = Math.ceil(k / size);
    for (const [what, name] of [
      ['weight', weightName],
      ['scale', scaleName],
      ['zero point', zeroName],
      ['bias', biasName],
    ] as const) {
      if (name !== '' && !findConstant(index, name))
        return fail(`the ${what} is not constant: ${whyNotConstant(index, name)}`, node);
    }
    const weight = findConstant(index, weightName);
    const scale = findConstant(index, scaleName);
    if (!weight || !scale) return fail('MatMulNBits lacks its weight or scale', node);
    const dims = weight.tensor.dims.join(', ');
    if (weight.tensor.type !== DataType.uint8 || dims !== [n, blocks, size].join(', ')) {
      return fail(
        `the weight '${weightName}' is ${dataTypeName(weight.tensor.type)} [${dims}], expected uint8 [${n}, ${blocks}, ${size}]`,
        node,
      );
    }
    const zeroPoint = zeroName === '' ? undefined : findConstant(index, zeroName);
    for (const [what, constant] of [
      ['scale', scale],
      ['zero point', zeroPoint],
    ] as const) {
      if (constant && constant.tensor.count !== n * blocks) {
        return fail(
          `the ${what} '${constant.name}' has ${constant.tensor.count} elements, expected N * blocks = ${n * blocks}`,
          node,
        );
      }
    }
    const bias = biasName === '' ? undefined : findConstant(index, biasName);
    if (bias && (vectorLength(bias) !== n || !isFloat(bias.type))) {
      return fail(`the bias has shape [${bias.tensor.dims.join(', ')}], expected [N] = [${n}]`, node);
    }
    const quantization = readQuantization(index, node, {
      k,
      n,
      block: size,
      weight,
      scale,
      zeroPoint,
      otherwise: 128,
      at: (block, column) => column * blocks + block,
    });
    if (!quantization.ok) return quantization;
    const found = { weight: { ...weight, type: scale.type }, quantization: quantization.value, k, n };
    const stored = { bias, weightTransposed: true };
    return { ok: true, value: projectionOf(index, 'matmul-nbits', node, value, found, stored) };
  },
};
