/** Runs the small model once, tuned as QKVGEMM_TUNE says, and prints how far it is from what it must give. */
import * as ort from 'onnxruntime-node';
import { relativeDifference } from '../../scripts/bench/difference.js';
import { withQkvGemm } from '../../ts/session/index.js';
import { quiet } from './run.js';
import { expected, fusedModel, K, ROWS, x } from './session_models.js';

const session = await ort.InferenceSession.create(fusedModel(), withQkvGemm(quiet));
const { y } = await session.run({ x: new ort.Tensor('float32', x, [ROWS, K]) });
await session.release();
console.log(relativeDifference(expected().y ?? [], y?.data as Float32Array));
