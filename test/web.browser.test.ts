import { expect } from 'chai';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { chromium, type Browser, type BrowserContextOptions, type Page } from 'playwright-core';
import { corpusFolder, corpusModels } from '../models/corpus.js';
import { attentionModel, externalBytes } from '../models/attention.js';
import { buildWeb, webFolder } from '../scripts/build_web.js';
import { fuseFile, type FuseFileOptions } from '../ts/fuse_file.js';
import { fuse } from '../ts/index.js';
import { executablePath } from './support/chromium.js';
import { qkvgemm, testFolder } from './support/command.js';
import { serve, type StaticServer } from './support/static_server.js';

/** Of the corpus, what exporters and ORT's tools make: one a family, and quantised forms. */
const CORPUS = ['bert.ts17', 'gpt2.ts17', 'llama.dynamo18', 'llama.dynamo18.nbits8', 'bert.ts17.dynint8'];

interface Opened {
  page: Page;
  /** What the console says and what goes wrong. */
  complaints: string[];
  /** Addresses that were asked for. */
  asked: string[];
}

describe('the page in a browser', function () {
  this.timeout(60_000);
  const folder = testFolder();
  let browser: Browser | undefined;
  let server: StaticServer | undefined;

  before(async function () {
    if (executablePath === undefined) {
      console.log('  (no Chromium here; set CHROMIUM to its path: the page is not tested)');
      this.skip();
    }
    await buildWeb();
    // In a folder of the server: the page must not lean on being at its root.
    server = await serve(path.dirname(webFolder));
    browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  });
  after(async () => {
    await browser?.close();
    await server?.close();
  });

  async function open(options: BrowserContextOptions = {}): Promise<Opened> {
    if (!browser || !server) throw new Error('there is no browser');
    const context = await browser.newContext(options);
    const page = await context.newPage();
    page.setDefaultTimeout(30_000);
    const complaints: string[] = [];
    const asked: string[] = [];
    page.on('console', (message) => {
      // Chromium's own word where there is no GPU.
      if (message.text() !== 'No available adapters.') complaints.push(message.text());
    });
    page.on('pageerror', (error) => complaints.push(error.message));
    context.on('request', (request) => asked.push(request.url()));
    await page.goto(`${server.origin}/web/index.html`);
    return { page, complaints, asked };
  }

  /** Waits for an end of the rewrite, and returns the error, if it is one. */
  async function ended(page: Page): Promise<string | undefined> {
    await page.locator('#working').waitFor({ state: 'hidden' });
    const error = page.locator('#error');
    return (await error.isVisible()) ? ((await error.textContent()) ?? '') : undefined;
  }

  async function choose(page: Page, ...files: string[]): Promise<string | undefined> {
    await page.locator('#files').setInputFiles(files);
    return ended(page);
  }

  async function download(page: Page, i = 0): Promise<{ name: string; bytes: Buffer }> {
    const [got] = await Promise.all([
      page.waitForEvent('download'),
      page.locator('#downloads a').nth(i).click(),
    ]);
    return { name: got.suggestedFilename(), bytes: fs.readFileSync(await got.path()) };
  }

  /** Runs both, and returns the verdict. */
  async function run(page: Page): Promise<string> {
    await page.getByRole('button', { name: 'Run both' }).click();
    const error = await ended(page);
    if (error !== undefined) throw new Error(error);
    return (await page.locator('#difference .verdict').textContent())?.trim() ?? '';
  }

  /** What the page offers is what `fuseFile` writes. */
  async function expectSame(page: Page, input: string, options: FuseFileOptions = {}): Promise<void> {
    const name = path.basename(input).replace(/\.onnx$/, '.fused.onnx');
    const output = path.join(fs.mkdtempSync(path.join(folder(), 'cli-')), name);
    const { data } = await fuseFile(input, output, { verify: false, ...options });
    for (const [i, file] of [output, ...(data ? [data.file] : [])].entries()) {
      const got = await download(page, i);
      expect(got.name).to.equal(path.basename(file));
      expect(Buffer.compare(got.bytes, fs.readFileSync(file)), got.name).to.equal(0);
    }
    expect(await page.locator('#downloads a').count()).to.equal(data ? 2 : 1);
  }

  it('rewrites as fuseFile does, byte for byte, and runs both', async () => {
    const models = corpusModels().filter((name) => CORPUS.includes(name));
    const inputs = models.map((name) => path.join(corpusFolder, name, 'model.onnx'));
    const own = path.join(folder(), 'layer.onnx');
    fs.writeFileSync(own, attentionModel({ residual: true, n: 16 }));
    const { page, complaints, asked } = await open({ acceptDownloads: true });
    for (const input of [own, ...inputs]) {
      expect(await choose(page, input), input).to.equal(undefined);
      await expectSame(page, input);
      expect(await page.locator('#report svg.graph').count(), input).to.be.at.least(2);
      expect(await run(page), input).to.match(/^Equal: no output differs by more than 0\.005/);
      expect(await page.locator('#difference table').count()).to.equal(2);
    }
    expect(complaints).to.deep.equal([]);
    const elsewhere = asked.filter(
      (url) => !url.startsWith(`${server?.origin}/web/`) && !/^(blob|data):/.test(url),
    );
    expect(elsewhere).to.deep.equal([]);
    expect(
      server?.requests.filter((request) => !request.startsWith('GET ')),
      'uploads',
    ).to.deep.equal([]);
    expect(asked.filter((url) => url.endsWith('.wasm'))).to.not.deep.equal([]);
    await page.context().close();
  });

  it('int8 weights in blocks, other targets and int8 rows', async () => {
    const input = path.join(folder(), 'model.onnx');
    fs.writeFileSync(input, attentionModel());
    const { page, complaints } = await open();
    expect(await choose(page, input)).to.equal(undefined);
    await page.selectOption('#dtype', 'int8');
    expect(await ended(page)).to.equal(undefined);
    await expectSame(page, input, { dtype: 'int8' });
    expect(await page.locator('#max-error').inputValue()).to.equal('0.1');
    await page.locator('#block').fill('8');
    await page.locator('#block').blur();
    await ended(page);
    await page.getByLabel('linear').check();
    await ended(page);
    await page.getByLabel(/activation-quant/).selectOption('true');
    expect(await ended(page)).to.equal(undefined);
    const options = {
      dtype: 'int8',
      int8Block: 8,
      targets: ['qkv', 'linear'],
      activationQuant: true,
    } as const;
    await expectSame(page, input, options);
    expect(await page.locator('#report').textContent()).to.match(/blocks of 8; \d+\.\d dB/);
    expect(await run(page)).to.match(/^Equal/);
    // Rounded weights differ: what ran is what was made of them.
    expect(await page.locator('#difference tbody td').nth(8).textContent()).to.match(/^\d+\.\d dB$/);
    await page.locator('#block').fill('2');
    await page.locator('#block').blur();
    expect(await ended(page)).to.match(
      /^'model\.onnx': fuse: int8Block is 2, expected a whole number of rows/,
    );
    expect(complaints).to.deep.equal([]);
    await page.context().close();
  });

  it('skips nodes, leaves the function body out, and offers the report that the command writes', async () => {
    const input = path.join(folder(), 'model.onnx');
    fs.writeFileSync(input, attentionModel());
    const { page, complaints } = await open({ acceptDownloads: true });
    expect(await choose(page, input)).to.equal(undefined);
    const report = async (): Promise<string> => {
      const [got] = await Promise.all([
        page.waitForEvent('download'),
        page.locator('#report-download a').click(),
      ]);
      expect(got.suggestedFilename()).to.equal('model.fused.html');
      return fs.readFileSync(await got.path(), 'utf8');
    };
    /** What the command writes with the same choices, in the same words. */
    const written = (...flags: string[]): string => {
      const file = path.join(folder(), 'report.html');
      qkvgemm(['fuse', 'model.onnx', '--overwrite', '--report', file, ...flags], { cwd: folder() });
      return fs.readFileSync(file, 'utf8');
    };
    expect(await report()).to.equal(written());
    expect(await page.locator('#not-run').textContent()).to.equal('');

    await page.getByLabel(/no-fallback/).check();
    expect(await ended(page)).to.equal(undefined);
    await expectSame(page, input, { fallback: false });
    expect(await report()).to.equal(written('--no-fallback'));
    expect(await page.locator('#run').isVisible()).to.equal(false);
    expect(await page.locator('#not-run').textContent()).to.match(
      /^Without its function body .* the library/,
    );
    await page.getByLabel(/no-fallback/).uncheck();
    expect(await ended(page)).to.equal(undefined);
    expect(await page.locator('#run').isVisible()).to.equal(true);

    const skip = async (names: string): Promise<string | undefined> => {
      await page.locator('#skip').fill(names);
      await page.locator('#skip').blur();
      return ended(page);
    };
    const { fused } = (await fuse(input)).report;
    const norm = fused[0]?.norm ?? '';
    expect(await skip(`\n ${norm} \n`)).to.equal(undefined);
    expect(await page.locator('#refused td').last().textContent()).to.equal('it is to stay as it is (skip)');
    expect(await page.locator('#downloads a').count()).to.equal(0);
    expect(await report()).to.equal(written('--skip', norm)); // also where nothing is fused
    expect(await skip('nobody')).to.match(/skip: no node of the graph is named 'nobody'/);
    // Another model has other names.
    const other = path.join(folder(), 'other.onnx');
    fs.copyFileSync(input, other);
    expect(await choose(page, other)).to.equal(undefined);
    expect(await page.locator('#skip').inputValue()).to.equal('');
    await expectSame(page, other);
    expect(complaints).to.deep.equal([]);
    await page.context().close();
  });

  it('runs both on WebGPU', async function () {
    // Chromium's own software adapter, where its build has one.
    const args = [
      '--no-sandbox',
      '--enable-unsafe-webgpu',
      '--use-webgpu-adapter=swiftshader',
      '--enable-features=Vulkan',
    ];
    const own = await chromium.launch({ executablePath: executablePath as string, args });
    try {
      const page = await own.newPage();
      await page.goto(`${server?.origin}/web/index.html`);
      const adapter = await page.evaluate(
        `navigator.gpu ? navigator.gpu.requestAdapter().then((found) => found !== null) : false`,
      );
      if (adapter !== true) {
        console.log('  (this Chromium has no WebGPU adapter: WebGPU is not tested)');
        this.skip();
      }
      const input = path.join(folder(), 'model.onnx');
      fs.writeFileSync(input, attentionModel());
      expect(await choose(page, input)).to.equal(undefined);
      await page.selectOption('#provider', 'webgpu');
      expect(await run(page)).to.match(/^Equal/);
      expect(await page.locator('#difference dl').textContent()).to.match(/onnxruntime-web .*WebGPU/);
    } finally {
      await own.close();
    }
  });

  it('external data, dropped with the model; what is missing is said', async () => {
    const input = path.join(folder(), 'model.onnx');
    const data = path.join(folder(), 'weights.bin');
    fs.writeFileSync(input, attentionModel({ location: 'weights.bin', external: true }));
    fs.writeFileSync(data, externalBytes());
    const { page } = await open();
    expect(await choose(page, input)).to.match(
      /^'model\.onnx': Tensor 'wq' is stored in 'weights\.bin', which was not given\./,
    );
    await drop(page, [input, data]);
    expect(await ended(page)).to.equal(undefined);
    await expectSame(page, input);
    expect(await page.locator('#downloads').textContent()).to.match(
      /Keep beside the model: .*weights\.bin\.$/,
    );
    expect(await run(page)).to.match(/^Equal/);
    await page.context().close();
  });

  /** What a user's hand does: the files arrive by a drop event anywhere on the page. */
  async function drop(page: Page, files: readonly string[]): Promise<void> {
    const contents = files.map((file) => ({
      name: path.basename(file),
      bytes: [...fs.readFileSync(file)],
    }));
    const transfer = await page.evaluateHandle(
      `(() => { const t = new DataTransfer();
        for (const { name, bytes } of ${JSON.stringify(contents)}) t.items.add(new File([new Uint8Array(bytes)], name));
        return t; })()`,
    );
    await page.dispatchEvent('h1', 'drop', { dataTransfer: transfer });
  }

  it('broken files, several models and refusals are said with their reasons', async () => {
    const put = (name: string, bytes: Uint8Array): string => {
      const file = path.join(folder(), name);
      fs.writeFileSync(file, bytes);
      return file;
    };
    const model = attentionModel();
    const { page, complaints } = await open();
    expect(await choose(page, put('broken.onnx', model.subarray(0, model.length - 7)))).to.match(
      /^'broken\.onnx': Not a valid ONNX model: field 7 says \d+ bytes, \d+ are left/,
    );
    expect(await page.locator('#result').isVisible()).to.equal(false);
    expect(await choose(page, put('text.txt', new TextEncoder().encode('hello')))).to.match(
      /^'text\.txt': Not a valid/,
    );
    expect(await choose(page, put('a.onnx', model), put('b.onnx', model))).to.match(
      /found 2 among: a\.onnx, b\.onnx/,
    );
    const script = '<img src=x onerror=alert(1)>';
    const refused = put(`${script.replaceAll('/', '')}.onnx`, attentionModel({ attention: false }));
    expect(await choose(page, refused)).to.equal(undefined);
    expect(await page.locator('#head .verdict').textContent()).to.match(/0 fused, 1 refused/);
    expect(await page.locator('#head').textContent()).to.contain(script);
    expect(await page.locator('#refused td').first().isVisible()).to.equal(true);
    expect(await page.locator('#downloads a').count()).to.equal(0);
    expect(await page.locator('#run').isVisible()).to.equal(false);
    expect(await page.locator('#result img').count()).to.equal(0);
    // A file of more than 2 GB is not read: the message is that of the command.
    await page.evaluate(`(() => {
      const part = new Blob([new Uint8Array(2 ** 26)]);
      const t = new DataTransfer();
      t.items.add(new File(Array.from({ length: 33 }, () => part), 'large.onnx'));
      document.dispatchEvent(new DragEvent('drop', { dataTransfer: t }));
    })()`);
    expect(await ended(page)).to.match(
      /^'large\.onnx' has 2214592512 bytes; one protobuf message.* at most 2 GB/,
    );
    expect(complaints).to.deep.equal([]);
    await page.context().close();
  });

  it('nothing can be sent: neither the page nor its worker may connect elsewhere', async () => {
    const elsewhere = await serve(os.tmpdir());
    const input = path.join(folder(), 'model.onnx');
    fs.writeFileSync(input, attentionModel());
    const { page } = await open();
    await choose(page, input);
    const send = `fetch('${elsewhere.origin}/', { method: 'POST', body: 'x', mode: 'no-cors' }).then(() => 'sent', () => 'refused')`;
    expect(await page.evaluate(send)).to.equal('refused');
    const [worker] = page.workers();
    expect(await worker?.evaluate(send)).to.equal('refused');
    expect(elsewhere.requests).to.deep.equal([]);
    await elsewhere.close();
    await page.context().close();
  });

  it('a rewrite can be cancelled, and another one begun', async () => {
    const { page } = await open();
    const input = path.join(folder(), 'model.onnx');
    fs.writeFileSync(input, attentionModel());
    // Dropped and cancelled in one task of the page, so that the worker cannot have answered before.
    const shown = await page.evaluate(`(() => {
      const t = new DataTransfer();
      t.items.add(new File([new Uint8Array(${JSON.stringify([...fs.readFileSync(input)])})], 'model.onnx'));
      document.dispatchEvent(new DragEvent('drop', { dataTransfer: t }));
      const shown = !document.getElementById('working').hidden;
      document.getElementById('cancel').click();
      return shown;
    })()`);
    expect(shown).to.equal(true);
    await new Promise((resolve) => setTimeout(resolve, 500)); // longer than the rewrite takes
    expect(await ended(page)).to.equal('Cancelled.');
    expect(await page.locator('#result').isVisible()).to.equal(false);
    expect(page.workers()).to.deep.equal([]);
    expect(await choose(page, input)).to.equal(undefined);
    await expectSame(page, input);
    await page.context().close();
  });

  it('fits a phone, in light and dark, and works by keyboard', async () => {
    const input = path.join(folder(), 'model.onnx');
    fs.writeFileSync(input, attentionModel({ residual: true, n: 16 }));
    for (const colorScheme of ['light', 'dark'] as const) {
      for (const width of [1280, 390]) {
        const { page, complaints } = await open({ colorScheme, viewport: { width, height: 844 } });
        const overflow = (): Promise<unknown> =>
          page.evaluate('document.documentElement.scrollWidth - window.innerWidth');
        expect(await overflow()).to.equal(0);
        await choose(page, input);
        if (width === 390) {
          await page.locator('#run button[type=submit]').focus();
          await page.keyboard.press('Enter');
          await page.locator('#difference .verdict').waitFor();
        }
        expect(await overflow()).to.equal(0);
        const background = await page.evaluate('getComputedStyle(document.body).backgroundColor');
        expect(background).to.equal(colorScheme === 'light' ? 'rgb(255, 255, 255)' : 'rgb(20, 23, 26)');
        if (process.env.QKVGEMM_SCREENSHOTS !== undefined) {
          const file = path.join(process.env.QKVGEMM_SCREENSHOTS, `web-${colorScheme}-${width}.png`);
          await page.screenshot({ path: file, fullPage: true });
        }
        expect(complaints).to.deep.equal([]);
        await page.context().close();
      }
    }
    const { page } = await open();
    await choose(page, input);
    const reached = new Set<string>();
    await page.locator('#files').focus();
    for (let i = 0; i < 28; i++) {
      reached.add(
        String(
          await page.evaluate('document.activeElement.id || document.activeElement.tagName.toLowerCase()'),
        ),
      );
      await page.keyboard.press('Tab');
    }
    expect([...reached]).to.include.members([
      'files',
      'dtype',
      'activation-quant',
      'no-fallback',
      'skip',
      'a',
      'provider',
      'dims',
      'max-error',
      'button',
      'summary',
    ]);
    const graph = page.locator('svg.graph').first();
    const home = await graph.getAttribute('viewBox');
    await graph.focus();
    await page.keyboard.press('+');
    expect(await graph.getAttribute('viewBox')).to.not.equal(home);
    await page.context().close();
  });
});
