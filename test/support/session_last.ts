/** A program that creates a session and lets it go, several times; prints whether the library is loaded after each. */
import fs from 'node:fs';
import * as ort from 'onnxruntime-node';
import { libraryPath, withQkvGemm } from '../../ts/session/index.js';
import { fusedModel } from './session_models.js';

const bytes = fusedModel();
const loaded: boolean[] = [];
for (let round = 0; round < 3; round++) {
  const session = await ort.InferenceSession.create(bytes, withQkvGemm({ logSeverityLevel: 4 }));
  await session.release();
  loaded.push(fs.readFileSync('/proc/self/maps', 'utf8').includes(libraryPath()));
}
console.log(JSON.stringify(loaded));
