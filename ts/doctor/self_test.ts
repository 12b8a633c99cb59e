/** The smallest model with a com.deepspeed.QKVGemm node, run by the library: does all of it work together? */
import { profiled, type NodeRun } from '../bench/profile.js';
import { encodeAttribute, encodeNode } from '../onnx/node.js';
import { DataType, encodeTensor } from '../onnx/tensor.js';
import { MessageWriter } from '../onnx/wire.js';
import { DOMAIN, OP } from '../rewrite/function_body.js';
import { withQkvGemm } from '../session/index.js';

const X = new Float32Array([3, 4]);
const WEIGHT = new Float32Array([1, 10, 100, 1000]);
/** RMSNorm over [3, 4] divides by sqrt(12.5). */
const EXPECTED = [403, 4030].map((value) => value / Math.sqrt(12.5));

/** x [1, 2] -> y [1, 2]: RMSNorm and a product, without a function body. */
function model(): Uint8Array {
  const value = (name: string): Uint8Array => {
    const dim = (size: number): Uint8Array => new MessageWriter().integer(1, size).finish();
    const shape = new MessageWriter().bytes(1, dim(1)).bytes(1, dim(2)).finish();
    const tensor = new MessageWriter().integer(1, DataType.float).bytes(2, shape).finish();
    const type = new MessageWriter().bytes(1, tensor).finish();
    return new MessageWriter().string(1, name).bytes(2, type).finish();
  };
  const node = encodeNode({
    opType: OP,
    domain: DOMAIN,
    inputs: ['x', 'w'],
    outputs: ['y'],
    attributes: [
      encodeAttribute('norm_type', { string: 'rms_norm' }),
      encodeAttribute('epsilon', { float: 0 }),
    ],
  });
  const graph = new MessageWriter()
    .bytes(1, node)
    .string(2, 'self test')
    .bytes(5, encodeTensor('w', DataType.float, [2, 2], new Uint8Array(WEIGHT.buffer)))
    .bytes(11, value('x'))
    .bytes(12, value('y'));
  const opset = (domain: string, version: number): Uint8Array =>
    new MessageWriter().string(1, domain).integer(2, version).finish();
  return new MessageWriter()
    .integer(1, 8)
    .bytes(7, graph.parts())
    .bytes(8, opset('', 17))
    .bytes(8, opset(DOMAIN, 1))
    .finish();
}

/** Why the node's run was none on this provider; undefined where it was. */
export function misplaced(nodes: readonly NodeRun[], provider: 'cpu' | 'cuda'): string | undefined {
  const wanted = provider === 'cuda' ? 'CUDAExecutionProvider' : 'CPUExecutionProvider';
  const ran = nodes.filter(({ op }) => op === OP).map((node) => node.provider);
  if (ran.length > 0 && ran.every((own) => own === wanted)) return undefined;
  return `the node ran on ${ran.join(', ') || 'no provider'}, not on ${wanted}: the library has no kernel for it`;
}

/** Why the library does not run, in the words of its loader where it does not load; undefined where it does. */
export async function selfTest(provider: 'cpu' | 'cuda'): Promise<string | undefined> {
  const ort = await import('onnxruntime-node');
  try {
    const options = withQkvGemm({ logSeverityLevel: 4, executionProviders: [provider] });
    let found: number[] = [];
    const nodes = await profiled(async (profiling) => {
      const session = await ort.InferenceSession.create(model(), { ...options, ...profiling });
      try {
        const { y } = await session.run({ x: new ort.Tensor('float32', X, [1, 2]) });
        found = [...(y?.data as Float32Array)];
        session.endProfiling();
      } finally {
        await session.release();
      }
    });
    const right = EXPECTED.every((value, i) => Math.abs((found[i] ?? NaN) - value) <= 1e-3 * value);
    return right
      ? misplaced(nodes, provider)
      : `a node gave ${found.join(', ')} where ${EXPECTED.map((v) => v.toFixed(3)).join(', ')} is right`;
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
}
