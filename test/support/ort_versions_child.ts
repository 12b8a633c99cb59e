/** Started by `runWith`: folder of an onnxruntime-node, file of the jobs, file for the report. */
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import type * as Ort from 'onnxruntime-node';
import { QkvGemmError } from '../../ts/errors.js';
import { withQkvGemm } from '../../ts/session/index.js';
import type { ChildReport, Job, JobResult } from './ort_versions.js';

const [folder = '', jobFile = '', reportFile = ''] = process.argv.slice(2);
const require = createRequire(path.join(folder, 'noop.js'));
const ort = require('onnxruntime-node') as typeof Ort;
const manifest = path.join(folder, 'node_modules', 'onnxruntime-node', 'package.json');
const { version } = JSON.parse(fs.readFileSync(manifest, 'utf8')) as { version: string };

async function run(job: Job): Promise<JobResult> {
  try {
    const quiet = { logSeverityLevel: 4 } as const;
    const options = job.library ? withQkvGemm(quiet) : quiet;
    const session = job.buffer
      ? await ort.InferenceSession.create(new Uint8Array(fs.readFileSync(job.model)), options)
      : await ort.InferenceSession.create(job.model, options);
    const results = await session.run({ x: new ort.Tensor('float32', Float32Array.from(job.x), job.dims) });
    const outputs = Object.fromEntries(
      Object.entries(results).map(([name, tensor]) => [name, Array.from(tensor.data as Float32Array)]),
    );
    await session.release();
    return { ok: true, outputs };
  } catch (error) {
    const code = error instanceof QkvGemmError ? error.code : undefined;
    return { ok: false, code, message: error instanceof Error ? error.message : String(error) };
  }
}

const report: ChildReport = { version, results: [] };
for (const job of JSON.parse(fs.readFileSync(jobFile, 'utf8')) as Job[]) report.results.push(await run(job));
fs.writeFileSync(reportFile, JSON.stringify(report));
