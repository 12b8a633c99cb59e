import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium, type Browser, type Page } from 'playwright-core';
import { PNG } from 'pngjs';
import { fuseFile } from '../ts/fuse_file.js';
import { benchHtml } from '../ts/report/bench_report.js';
import { fuseHtml } from '../ts/report/fuse_report.js';
import { verifyHtml } from '../ts/report/verify_report.js';
import { benchModels } from '../ts/bench/bench.js';
import { verifyModels } from '../ts/verify/verify.js';
import { writeAttentionModel } from './support/attention.js';
import { executablePath } from './support/chromium.js';
import { testFolder } from './support/command.js';

describe('reports in a browser', () => {
  const folder = testFolder();
  let browser: Browser;

  before(async function () {
    if (executablePath === undefined) {
      console.log('  (no Chromium here; set CHROMIUM to its path: reports are not tested in a browser)');
      this.skip();
    }
    browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  });
  after(async () => {
    if (executablePath !== undefined) await browser.close();
  });

  /** Writes all three, and returns their paths. */
  async function writeReports(): Promise<string[]> {
    const input = writeAttentionModel(folder(), { residual: true, n: 16 });
    const output = path.join(folder(), 'out.onnx');
    const result = await fuseFile(input, output, { check: true });
    const pages = {
      fuse: fuseHtml({ ...result, input, output }),
      verify: verifyHtml(await verifyModels(input, output, { intermediates: true })),
      bench: benchHtml(await benchModels(input, { against: output, seconds: 0.2, memory: false })),
    };
    return Object.entries(pages).map(([name, text]) => {
      const file = path.join(folder(), `${name}.html`);
      fs.writeFileSync(file, text);
      return file;
    });
  }

  /** Opens a report; whatever it asks for or complains of is kept. */
  async function open(
    file: string,
    colorScheme: 'light' | 'dark',
    width: number,
  ): Promise<{ page: Page; complaints: string[] }> {
    const context = await browser.newContext({ colorScheme, viewport: { width, height: 844 } });
    const page = await context.newPage();
    const complaints: string[] = [];
    page.on('console', (message) => complaints.push(message.text()));
    page.on('pageerror', (error) => complaints.push(error.message));
    page.on('request', (request) => {
      if (request.url() !== pathToFileURL(file).href) complaints.push(`asks for ${request.url()}`);
    });
    await page.goto(pathToFileURL(file).href);
    return { page, complaints };
  }

  /** Mean brightness of a screenshot, 0 to 255. */
  function brightness(screenshot: Buffer): number {
    const { data } = PNG.sync.read(screenshot);
    let sum = 0;
    for (let i = 0; i < data.length; i += 4)
      sum += ((data[i] ?? 0) + (data[i + 1] ?? 0) + (data[i + 2] ?? 0)) / 3;
    return sum / (data.length / 4);
  }

  it('load nothing, run without complaint, are light and dark, and fit a phone', async () => {
    for (const file of await writeReports()) {
      const shades: number[] = [];
      for (const scheme of ['light', 'dark'] as const) {
        for (const width of [1280, 390]) {
          const { page, complaints } = await open(file, scheme, width);
          const overflow = await page.evaluate('document.documentElement.scrollWidth - window.innerWidth');
          expect(overflow, `${file} at ${width}`).to.equal(0);
          expect(complaints, file).to.deep.equal([]);
          const screenshot = await page.screenshot();
          if (width === 390) shades.push(brightness(screenshot));
          await page.context().close();
        }
      }
      expect(shades[0], file).to.be.above(200);
      expect(shades[1], file).to.be.below(80);
    }
  });

  it('graphs zoom and move by buttons, keys and pointer, and go back', async () => {
    const [fuse = ''] = await writeReports();
    const { page, complaints } = await open(fuse, 'light', 1280);
    const graph = page.locator('svg.graph').first();
    const view = async (): Promise<number[]> =>
      ((await graph.getAttribute('viewBox')) ?? '').split(' ').map(Number);
    await page.getByLabel('all of it').first().click();
    const home = await view();
    await page.getByLabel('larger').first().click();
    expect((await view())[2]).to.be.closeTo((home[2] ?? 0) * 0.8, 1);
    await page.getByLabel('smaller').first().click();
    expect((await view())[2]).to.be.closeTo(home[2] ?? 0, 1);
    await graph.focus();
    for (const key of ['+', 'ArrowRight']) await page.keyboard.press(key);
    const [x = 0, , width = 0] = await view();
    expect(width).to.be.below(home[2] ?? 0);
    const box = await graph.boundingBox();
    if (!box) throw new Error('the graph is not shown');
    await page.mouse.move(box.x + 100, box.y + 100);
    await page.mouse.down();
    await page.mouse.move(box.x + 60, box.y + 100);
    await page.mouse.up();
    expect((await view())[0]).to.be.above(x);
    await page.keyboard.press('0');
    expect(await view()).to.deep.equal(home);
    expect(complaints).to.deep.equal([]);
    await page.context().close();
  });

  it('all that scrolls or zooms can be reached by keyboard', async () => {
    const [fuse = ''] = await writeReports();
    const { page } = await open(fuse, 'dark', 390);
    const reached = new Set<string>();
    for (let i = 0; i < 40; i++) {
      await page.keyboard.press('Tab');
      reached.add(String(await page.evaluate('document.activeElement.tagName.toLowerCase()')));
    }
    expect([...reached]).to.include.members(['a', 'summary', 'button', 'svg', 'div', 'figure']);
    await page.context().close();
  });
});
