/** Runs models of models/qkv_gemm.ts. */
import * as ort from 'onnxruntime-node';
import type { Feed, QkvGemmModel } from '../../models/qkv_gemm.js';
import { DataType, dataTypeName } from '../../ts/onnx/tensor.js';
import type { Actual } from '../../models/qkv_gemm_reference.js';
import { floats } from './run.js';

/** onnxruntime-node, or onnxruntime-web, which has the same interface. */
export type Runtime = Pick<typeof ort, 'InferenceSession' | 'Tensor'>;

export function tensorOf({ type, dims, data }: Feed, runtime: Runtime = ort): ort.Tensor {
  const { buffer } = data;
  switch (type) {
    case DataType.float:
      return new runtime.Tensor('float32', new Float32Array(buffer), dims);
    case DataType.float16:
      return new runtime.Tensor('float16', new Uint16Array(buffer), dims);
    case DataType.int8:
      return new runtime.Tensor('int8', new Int8Array(buffer), dims);
    case DataType.double:
      return new runtime.Tensor('float64', new Float64Array(buffer), dims);
    case DataType.int32:
      return new runtime.Tensor('int32', new Int32Array(buffer), dims);
    default:
      throw new Error(`graph inputs of ${dataTypeName(type)} are not among what is tested`);
  }
}

/** Feeds a session; outputs by name. */
export async function runSession(
  session: ort.InferenceSession,
  feeds: readonly Feed[],
  runtime: Runtime = ort,
): Promise<Record<string, Actual>> {
  const tensors = feeds.map((feed) => [feed.name, tensorOf(feed, runtime)] as const);
  const results = await session.run(Object.fromEntries(tensors));
  return Object.fromEntries(
    Object.entries(results).map(([name, tensor]) => [name, { dims: tensor.dims, values: floats(tensor) }]),
  );
}

/** Creates a session, feeds it and lets it go. */
export async function runOp(
  { bytes, feeds }: QkvGemmModel,
  options: ort.InferenceSession.SessionOptions,
  runtime: Runtime = ort,
): Promise<Record<string, Actual>> {
  const session = await runtime.InferenceSession.create(bytes, options);
  try {
    return await runSession(session, feeds, runtime);
  } finally {
    await session.release();
  }
}
