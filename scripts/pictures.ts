/**
 * Draws the README's pictures, from a model and from the tables of BENCHMARKS.md: npm run pictures. A test draws them again and
 * compares, so that none shows what is no longer so.
 */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { sitePicture } from './draw/site.js';
import { speedPicture, type Panel } from './draw/speed.js';
import { column, longest, ratioIn, tablesOf, type Table } from './draw/tables.js';

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..');

export const picturesFolder = path.join(root, 'scripts', 'pictures');

/** The machine and the date of a table are in its heading or in the paragraph below it. */
const measured = (page: string, heading: string): string =>
  /\d{4}-\d{2}-\d{2}/.exec(page.slice(page.indexOf(heading)))?.[0] ?? '';

const SHAPES = ['K=768, N=2304', 'K=4096, N=12288'] as const;

/** Cells hold the ratio to the first column behind the rows. */
function ratioPanel(table: Table, title: string): Panel {
  const [rows = '', , ...series] = table.columns;
  return {
    title,
    rows: column(table, rows),
    series: series.map((name) => ({ name, values: column(table, name, ratioIn) })),
  };
}

function cpuPicture(page: string, heading: string, what: string): string {
  const tables = tablesOf(page, heading);
  return speedPicture(
    `CPU, ${heading.replace(/^#+ /, '').replace(/:.*/, '')}`,
    `${what}; by the type of the weights; above the dashed line: faster; ${measured(page, heading)}`,
    SHAPES.map((shape) => ratioPanel(longest(tables, shape), shape)),
  );
}

/** Cells hold microseconds; `stock graph` is the peer. */
function cudaPicture(page: string): string {
  const heading = '### NVIDIA H200';
  const tables = tablesOf(page, heading);
  const names = { fused: 'fused', 'norm + addmm': 'norm + addmm (PyTorch)', cuBLAS: "cuBLAS' product alone" };
  return speedPicture(
    'CUDA, NVIDIA H200, float16, LayerNorm',
    `times as fast as norm + three products + three additions; above the dashed line: faster; ${measured(page, heading)}`,
    SHAPES.map((shape): Panel => {
      const table = longest(tables, `fp16, LayerNorm, ${shape}`);
      const stock = column(table, 'stock graph');
      return {
        title: shape,
        rows: column(table, 'M'),
        series: Object.entries(names).map(([own, name]) => ({
          name,
          values: column(table, own).map((time, i) => (stock[i] ?? NaN) / time),
        })),
      };
    }),
  );
}

/** All of them, by file name. */
export async function drawPictures(): Promise<Map<string, string>> {
  const page = fs.readFileSync(path.join(root, 'BENCHMARKS.md'), 'utf8');
  const model = path.join(root, 'models', 'fixtures', 'exported', 'gemma2.dynamo18raw', 'model.onnx');
  return new Map([
    ['site.svg', await sitePicture(model, "Gemma 2 as torch.onnx exports it: a layer's RMSNorm and Q, K, V")],
    [
      'cpu_two_threads.svg',
      cpuPicture(page, '### Two threads', "times as fast as ONNX Runtime's stock graph in float32"),
    ],
    [
      'cpu_amx.svg',
      cpuPicture(page, '### 16 threads with AMX', "times as fast as PyTorch's bfloat16 (oneDNN)"),
    ],
    ['cuda_h200.svg', cudaPicture(page)],
  ]);
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  for (const [name, text] of await drawPictures()) {
    fs.mkdirSync(picturesFolder, { recursive: true });
    fs.writeFileSync(path.join(picturesFolder, name), text);
    console.log(path.join(picturesFolder, name));
  }
