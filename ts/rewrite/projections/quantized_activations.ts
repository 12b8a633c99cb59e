/**
 * Activations that are rounded between norm and projection: QuantizeLinear with a constant scale, then DequantizeLinear
 * and a product, or an integer product. This rule never matches. The fused op would leave out that rounding, and the
 * clipping to the range that calibration found, and so give other answers than the model; nor can it be told to keep them.
 */
import type { Node } from '../../onnx/node.js';
import { INTEGER_PRODUCTS } from '../dequantized.js';
import type { GraphIndex } from '../graph_index.js';
import { fail } from '../match.js';
import type { ProjectionRule } from './projection.js';

const PRODUCTS = new Set(['MatMul', 'Gemm']);

/** A product of a quantised value with a constant weight, DequantizeLinear between them or not. */
function projectionOf(index: GraphIndex, quantized: string): Node | undefined {
  for (const reader of index.readers(quantized)) {
    const position = INTEGER_PRODUCTS.get(reader.opType);
    if (position !== undefined && index.isConstant(reader.inputs[position] ?? '')) return reader;
    if (!reader.is('DequantizeLinear') || reader.inputs[0] !== quantized) continue;
    const product = index
      .readers(reader.outputs[0] ?? '')
      .find((node) => PRODUCTS.has(node.opType) && index.isConstant(node.inputs[1] ?? ''));
    if (product) return product;
  }
  return undefined;
}

export const quantizedActivations: ProjectionRule = {
  name: 'quantized-activations',
  match(index, node, value) {
    if (!node.is('QuantizeLinear') || node.inputs[0] !== value) return undefined;
    const product = projectionOf(index, node.outputs[0] ?? '');
    return (
      product &&
      fail(
        `its output '${value}' is rounded by QuantizeLinear before ${product.opType} '${product.label}'; the fused op would leave that rounding out`,
        node,
      )
    );
  },
};
