// Run by Node for 64-bit Arm, beside the installed package: runs the models of `cases.json`, each with or without the library,
// and prints their outputs. Tensors are { type, dims, data }, as bytes in base64.
import fs from 'node:fs';
import { InferenceSession, Tensor } from 'onnxruntime-node';
import { withQkvGemm } from 'onnx-qkv-gemm';

const ARRAYS = { float32: Float32Array, float16: Uint16Array, int8: Int8Array };

const read = ({ type, dims, data }) => {
  const bytes = Uint8Array.from(Buffer.from(data, 'base64'));
  return new Tensor(type, new ARRAYS[type](bytes.buffer), dims);
};
const write = ({ type, dims, data }) => {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  return { type, dims, data: bytes.toString('base64') };
};
const mapValues = (object, map) =>
  Object.fromEntries(Object.entries(object).map(([key, value]) => [key, map(value)]));

async function run({ model, library, feeds }) {
  const quiet = { logSeverityLevel: 4 };
  try {
    const session = await InferenceSession.create(
      Buffer.from(model, 'base64'),
      library ? withQkvGemm(quiet) : quiet,
    );
    const outputs = await session.run(mapValues(feeds, read));
    await session.release();
    return { outputs: mapValues(outputs, write) };
  } catch (error) {
    return { error: error.message };
  }
}

const results = [];
for (const each of JSON.parse(fs.readFileSync('cases.json', 'utf8'))) results.push(await run(each));
console.log(JSON.stringify(results));
