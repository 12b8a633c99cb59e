/** Models whose sizes overflow, and a library that outlives its sessions: errors and answers, never a crash. */
import { expect } from 'chai';
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import {
  INPUTS,
  qkvGemmModel,
  randomOperands,
  type ModelSettings,
  type Operands,
  type QkvGemmSpec,
} from '../models/qkv_gemm.js';
import { ModelBuilder } from '../models/builder.js';
import { DataType } from '../ts/onnx/tensor.js';
import { DOMAIN, OP } from '../ts/rewrite/function_body.js';
import { withQkvGemm } from '../ts/session/index.js';
import { quiet } from './support/run.js';
import { runOp } from './support/run_op.js';

const nothing = (type: number, ...dims: number[]): NonNullable<Operands['weight']> => ({
  type,
  dims,
  values: new Float32Array(0),
});

async function failure(spec: QkvGemmSpec, operands: Operands, settings: ModelSettings = {}): Promise<string> {
  try {
    await runOp(qkvGemmModel(spec, operands, { nodeName: 'qkv', ...settings }), withQkvGemm(quiet));
  } catch (error) {
    return error instanceof Error ? error.message : String(error);
  }
  return 'no error';
}

describe('sizes that overflow', () => {
  const spec: QkvGemmSpec = { dims: [2, 8], n: 12, norm: 'none' };

  for (const fed of [[], INPUTS] as const)
    it(`refuses splits whose sum wraps around to N; operands ${fed.length > 0 ? 'fed' : 'constant'}`, async () => {
      const widths = [2 ** 62, 2 ** 62, 2 ** 62, 2 ** 62, 12];
      const message = await failure({ ...spec, fed }, randomOperands(spec), {
        attributes: { splits: { integers: widths } },
        outputs: ['y', '', 'y1', 'y2', 'y3', 'y4'],
      });
      expect(message).to.include(
        "com.deepspeed.QKVGemm node 'qkv': attribute 'splits': expected widths that sum to N = 12, " +
          `found [${widths.map(BigInt).join(', ')}], sum beyond 64 bits`,
      );
    });

  // Without rows or columns no memory bounds the other dimension.
  for (const long of [2 ** 31, 2 ** 50, 2 ** 62])
    for (const type of [DataType.float, DataType.int8])
      for (const dims of [
        [0, long],
        [long, 0],
      ] as const)
        it(`refuses weights ${DataType.int8 === type ? 'int8' : 'float'} [${dims.join(', ')}]`, async () => {
          const operands: Operands = {
            input: nothing(DataType.float, 0, dims[0]),
            weight: nothing(type, ...dims),
            scale:
              type === DataType.int8
                ? { type: DataType.float, dims: [1], values: Float32Array.of(1) }
                : undefined,
          };
          const message = await failure({ dims: [0, dims[0]], n: dims[1], norm: 'none' }, operands);
          expect(message).to.include(
            "com.deepspeed.QKVGemm node 'qkv': input 1 'weight': expected dimensions of at most 2147483647, " +
              `found [${dims.map(BigInt).join(', ')}]`,
          );
        });

  it('names an input of a type that the op lacks where the model states the type of its output', async () => {
    const builder = new ModelBuilder({ [DOMAIN]: 1 });
    builder.input('x', [2, 8], DataType.double);
    builder.tensor('w', DataType.float, [8, 12], new Uint8Array(8 * 12 * 4));
    builder.node(OP, ['x', 'w'], ['y'], { domain: DOMAIN, name: 'qkv' });
    builder.output('y', undefined, DataType.float);
    const feed = { name: 'x', type: DataType.double, dims: [2, 8], data: new Uint8Array(2 * 8 * 8) };
    const model = { bytes: builder.finish(), feeds: [feed] };
    let message = '';
    try {
      await runOp(model, withQkvGemm(quiet));
    } catch (error) {
      message = String(error);
    }
    expect(message).to.include("input 0 'input': expected float, float16 or bfloat16, found double");
  });
});

describe('the library in a process', () => {
  it('is loaded once: it stays when its last session goes', () => {
    const program = fileURLToPath(new URL('./support/session_last.ts', import.meta.url));
    const child = spawnSync(process.execPath, ['--import', 'tsx', program], {
      encoding: 'utf8',
      timeout: 60_000,
    });
    expect(child.status, `${child.signal ?? ''} ${child.stderr}`).to.equal(0);
    expect(JSON.parse(child.stdout)).to.deep.equal([true, true, true]);
  });
});
