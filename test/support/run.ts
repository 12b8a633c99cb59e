/** Running a model. */
import * as ort from 'onnxruntime-node';
import { DataType } from '../../ts/onnx/tensor.js';
import { toFloat32 } from '../../ts/rewrite/weights/convert.js';

/** ONNX Runtime's warnings are noise in a test report; its errors come as exceptions. */
export const quiet: ort.InferenceSession.SessionOptions = { logSeverityLevel: 4 };

/** First to last output of a model, its bytes or its path, as float32, run on inputs in graph order. */
export async function runModel(
  model: string | Uint8Array,
  inputs: readonly ort.Tensor[],
  options: ort.InferenceSession.SessionOptions = quiet,
): Promise<Float32Array[]> {
  const session =
    typeof model === 'string'
      ? await ort.InferenceSession.create(model, options)
      : await ort.InferenceSession.create(model, options);
  try {
    const feeds = Object.fromEntries(session.inputNames.map((name, i) => [name, inputs[i] as ort.Tensor]));
    const results = await session.run(feeds);
    return session.outputNames.map((name) => floats(results[name] as ort.Tensor));
  } finally {
    await session.release();
  }
}

/** Elements of a float tensor as float32. */
export function floats(tensor: ort.Tensor): Float32Array {
  if (tensor.type === 'float32') return tensor.data as Float32Array;
  if (tensor.type === 'float16') {
    const bits = tensor.data as Uint16Array;
    return toFloat32(new Uint8Array(bits.buffer, bits.byteOffset, bits.byteLength), DataType.float16);
  }
  return Float32Array.from(tensor.data as ArrayLike<number>, Number);
}
