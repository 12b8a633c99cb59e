/** A PNG picture as the recogniser's input, prepared as PaddleOCR prepares it. */
import fs from 'node:fs';
import { PNG } from 'pngjs';

export interface Picture {
  width: number;
  height: number;
  /** Red, green, blue, 0 to 255, row by row; transparent pixels lie on white. */
  rgb: Float32Array;
}

export function readPng(file: string): Picture {
  const { width, height, data } = PNG.sync.read(fs.readFileSync(file));
  const rgb = new Float32Array(width * height * 3);
  for (let i = 0; i < width * height; i++) {
    const alpha = (data[i * 4 + 3] ?? 255) / 255;
    for (let c = 0; c < 3; c++) rgb[i * 3 + c] = (data[i * 4 + c] ?? 0) * alpha + 255 * (1 - alpha);
  }
  return { width, height, rgb };
}

/** Bilinear, pixel centres at half coordinates, edges repeated: OpenCV's INTER_LINEAR. */
export function resize(picture: Picture, width: number, height: number): Picture {
  const axis = (to: number, from: number): { low: number; high: number; part: number }[] =>
    Array.from({ length: to }, (_, i) => {
      const at = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
      const low = Math.floor(at);
      return { low, high: Math.min(low + 1, from - 1), part: at - low };
    });
  const columns = axis(width, picture.width);
  const rgb = new Float32Array(width * height * 3);
  axis(height, picture.height).forEach((row, y) => {
    columns.forEach((column, x) => {
      for (let c = 0; c < 3; c++) {
        const pixel = (ry: number, rx: number): number => picture.rgb[(ry * picture.width + rx) * 3 + c] ?? 0;
        const top =
          pixel(row.low, column.low) * (1 - column.part) + pixel(row.low, column.high) * column.part;
        const bottom =
          pixel(row.high, column.low) * (1 - column.part) + pixel(row.high, column.high) * column.part;
        rgb[(y * width + x) * 3 + c] = top * (1 - row.part) + bottom * row.part;
      }
    });
  });
  return { width, height, rgb };
}

/** [3, height, width]: blue, green, red planes, each value (x / 255 - 0.5) / 0.5. */
export function planes(picture: Picture): Float32Array {
  const size = picture.width * picture.height;
  const result = new Float32Array(size * 3);
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < 3; c++)
      result[c * size + i] = ((picture.rgb[i * 3 + (2 - c)] ?? 0) / 255 - 0.5) / 0.5;
  }
  return result;
}
