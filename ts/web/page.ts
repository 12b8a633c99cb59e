/** The page: files and options in, a report, downloads and a comparison out. All work is its worker's. */
import 'virtual:report.css';
import { zoomGraphs } from 'virtual:zoom';
import type { FuseOptions } from '../rewrite/options.js';
import { DEFAULT_MAX_ERROR } from '../verify/bounds.js';
import type { Answer, Made, Request } from './messages.js';
import './page.css';
import workerUrl from './worker.js?worker&url';

function element<T extends HTMLElement>(id: string, type: new () => T): T {
  const found = document.getElementById(id);
  if (found instanceof type) return found;
  throw new Error(`The page has no ${type.name} '${id}'.`);
}

const div = (id: string): HTMLElement => element(id, HTMLElement);
const input = (id: string): HTMLInputElement => element(id, HTMLInputElement);
const files = input('files');
const dtype = element('dtype', HTMLSelectElement);
const rounding = element('activation-quant', HTMLSelectElement);
const provider = element('provider', HTMLSelectElement);
const skipped = element('skip', HTMLTextAreaElement);
const bar = element('bar', HTMLProgressElement);
const targets = [...document.querySelectorAll<HTMLInputElement>('input[name=target]')];

let chosen: File[] = [];
let links: string[] = [];
let worker: Worker | undefined;

/**
 * A worker whose script is made here has the page's security policy; one that is loaded from an address would have none, and
 * could send what it reads anywhere.
 */
function startWorker(): Worker {
  const script = `import ${JSON.stringify(new URL(workerUrl, location.href).href)};`;
  const address = URL.createObjectURL(new Blob([script], { type: 'text/javascript' }));
  const started = new Worker(address, { type: 'module' });
  started.addEventListener('message', ({ data }: MessageEvent<Answer>) => {
    if (started === worker) show(data);
  });
  started.addEventListener('error', (event) => {
    event.preventDefault();
    if (started === worker) fail(`The worker stopped: ${event.message || 'its script could not be loaded'}.`);
  });
  return started;
}

function stopWorker(): void {
  worker?.terminate();
  worker = undefined;
}

const size = (bytes: number): string =>
  bytes < 1e4
    ? `${bytes} bytes`
    : bytes < 1e7
      ? `${(bytes / 1e3).toFixed(1)} kB`
      : `${(bytes / 1e6).toFixed(1)} MB`;

function options(): FuseOptions {
  const block = input('block');
  const skip = skipped.value
    .split('\n')
    .map((name) => name.trim())
    .filter((name) => name !== '');
  return {
    dtype: dtype.value as NonNullable<FuseOptions['dtype']>,
    targets: targets.filter(({ checked }) => checked).map(({ value }) => value) as NonNullable<
      FuseOptions['targets']
    >,
    ...(rounding.value === '' ? {} : { activationQuant: rounding.value === 'true' }),
    ...(input('no-fallback').checked ? { fallback: false } : {}),
    ...(skip.length > 0 ? { skip } : {}),
    ...(block.disabled || block.value === '' ? {} : { int8Block: Number(block.value) }),
  };
}

function send(request: Request, doing: string): void {
  worker ??= startWorker();
  div('error').hidden = true;
  div('working').hidden = false;
  div('doing').textContent = doing;
  bar.value = 0;
  worker.postMessage(request);
}

/** Rewrites what is chosen; what ran for former choices ends. */
function fuse(): void {
  stopWorker();
  div('result').hidden = true;
  if (chosen.length > 0) send({ kind: 'fuse', files: chosen, options: options() }, 'Reading the model');
}

function choose(list: FileList | null | undefined): void {
  if (!list || list.length === 0) return;
  chosen = [...list];
  skipped.value = ''; // names of another model's nodes
  div('chosen').textContent = chosen.map((file) => `${file.name} (${size(file.size)})`).join(', ');
  fuse();
}

function fail(message: string): void {
  div('working').hidden = true;
  div('error').hidden = false;
  div('error').textContent = message;
}

function show(answer: Answer): void {
  if (answer.kind === 'progress') {
    div('doing').textContent = answer.text;
    bar.value = answer.total > 0 ? answer.done / answer.total : 0;
    return;
  }
  div('working').hidden = true;
  if (answer.kind === 'failed') fail(answer.message);
  else if (answer.kind === 'ran') div('difference').innerHTML = answer.body;
  else showFused(answer);
}

/** What is put in as markup was escaped where it was made (report/html.ts). */
function showFused({
  head,
  sections,
  made,
  needed,
  report,
  notRun,
}: Extract<Answer, { kind: 'fused' }>): void {
  div('head').innerHTML = head;
  div('difference').replaceChildren();
  div('report').innerHTML = sections.map(({ body }) => body).join('');
  div('sections').replaceChildren(
    ...sections.map(({ id, title }) => {
      const [item, link] = [document.createElement('li'), document.createElement('a')];
      link.href = `#${id}`;
      link.textContent = title;
      item.append(link);
      return item;
    }),
  );
  showDownloads(made, needed, report);
  div('run').hidden = made.length === 0 || notRun !== undefined;
  div('not-run').textContent = notRun ?? '';
  div('result').hidden = false;
  zoomGraphs();
}

function showDownloads(made: readonly Made[], needed: readonly string[], report: Made): void {
  for (const link of links) URL.revokeObjectURL(link);
  links = [];
  const linkTo = ({ name, content }: Made): HTMLAnchorElement => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(content);
    links.push(link.href);
    link.download = name;
    link.textContent = `Download ${name} (${size(content.size)})`;
    return link;
  };
  const note = document.createElement('span');
  const beside = [...made.slice(1).map(({ name }) => name), ...needed];
  if (beside.length > 0) note.textContent = `Keep beside the model: ${beside.join(', ')}.`;
  div('downloads').replaceChildren(...made.map(linkTo), note);
  div('report-download').replaceChildren(linkTo(report));
}

/** The bound that `--check` has for weights of this type. */
function suggestError(): void {
  input('max-error').value = String(DEFAULT_MAX_ERROR[options().dtype ?? 'keep']);
}

files.addEventListener('change', () => choose(files.files));
div('form').addEventListener('submit', (event) => event.preventDefault());
div('options').addEventListener('change', () => {
  input('block').disabled = dtype.value !== 'int8';
  fuse();
});
dtype.addEventListener('change', suggestError);
div('cancel').addEventListener('click', () => {
  stopWorker();
  fail('Cancelled.');
  div('result').hidden = true; // what it had made went with the worker
});
div('run').addEventListener('submit', (event) => {
  event.preventDefault();
  if (!div('working').hidden) return; // one run at a time
  div('difference').replaceChildren();
  const maxError = Number(input('max-error').value);
  if (!(maxError >= 0)) {
    fail(`The allowed difference is '${input('max-error').value}', expected a number >= 0.`);
    return;
  }
  const { value } = provider;
  send(
    {
      kind: 'run',
      provider: value === 'webgpu' ? 'webgpu' : 'wasm',
      dims: input('dims').value,
      seed: Number(input('seed').value),
      maxError,
    },
    'Starting',
  );
});

// Files may be dropped anywhere: beside the box the browser would leave the page for them.
for (const type of ['dragenter', 'dragover']) {
  document.addEventListener(type, (event) => {
    event.preventDefault();
    div('drop').classList.add('over');
  });
}
document.addEventListener('dragleave', (event) => {
  if (event.relatedTarget === null) div('drop').classList.remove('over');
});
document.addEventListener('drop', (event) => {
  event.preventDefault();
  div('drop').classList.remove('over');
  choose(event.dataTransfer?.files);
});

/** Has this browser an adapter? What it says is not in every browser's types. */
async function offerWebGpu(): Promise<void> {
  const { gpu } = navigator as { gpu?: { requestAdapter(): Promise<unknown> } };
  const adapter = await gpu?.requestAdapter().catch(() => undefined);
  const option = provider.querySelector<HTMLOptionElement>('option[value=webgpu]');
  if (!adapter || !option) return;
  option.disabled = false;
  option.textContent = 'WebGPU';
}

suggestError();
void offerWebGpu();
