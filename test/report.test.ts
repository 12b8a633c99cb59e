import { expect } from 'chai';
import crypto from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { parse, type DefaultTreeAdapterMap } from 'parse5';
import { attentionModel } from '../models/attention.js';
import { ModelBuilder, uniform } from '../models/builder.js';
import { addNorm } from '../models/qkv_block.js';
import { fuseFile } from '../ts/fuse_file.js';
import { benchHtml } from '../ts/report/bench_report.js';
import { fuseHtml } from '../ts/report/fuse_report.js';
import { escaped, markup } from '../ts/report/html.js';
import { verifyHtml } from '../ts/report/verify_report.js';
import { benchModels } from '../ts/bench/bench.js';
import { verifyModels } from '../ts/verify/verify.js';
import { writeAttentionModel } from './support/attention.js';
import { filesIn, qkvgemm, testFolder } from './support/command.js';

type Node = DefaultTreeAdapterMap['node'];
type Element = DefaultTreeAdapterMap['element'];

/** Everything that a parser makes of the text, and what it complains of. */
function parsed(text: string): { elements: Element[]; errors: string[] } {
  const errors: string[] = [];
  const document = parse(text, {
    onParseError: ({ code, startLine }) => errors.push(`${code} at ${startLine}`),
  });
  const elements: Element[] = [];
  const walk = (node: Node): void => {
    if ('tagName' in node) elements.push(node);
    if ('childNodes' in node) node.childNodes.forEach(walk);
  };
  walk(document);
  return { elements, errors };
}

const attribute = (element: Element | undefined, name: string): string | undefined =>
  element?.attrs.find((attr) => attr.name === name)?.value;

function textOf(node: Node): string {
  if ('value' in node) return node.value;
  return 'childNodes' in node ? node.childNodes.map(textOf).join('') : '';
}

/** What must hold for every report. Returns its elements. */
function checkPage(text: string): Element[] {
  const { elements, errors } = parsed(text);
  expect(errors).to.deep.equal([]);
  const named = (tag: string): Element[] => elements.filter(({ tagName }) => tagName === tag);
  const [script, ...scripts] = named('script');
  const [style, ...styles] = named('style');
  expect(scripts.length + styles.length).to.equal(0);
  const policy = attribute(
    named('meta').find((meta) => attribute(meta, 'http-equiv') === 'Content-Security-Policy'),
    'content',
  );
  for (const own of [script, style]) {
    const hash = crypto
      .createHash('sha256')
      .update(own ? textOf(own) : '')
      .digest('base64');
    expect(policy).to.contain(`'sha256-${hash}'`);
  }
  expect(policy).to.match(/^default-src 'none';/);
  // Nothing is loaded, nothing is run but the script: no attribute does either, and links stay in the page.
  const ids = new Set(elements.map((element) => attribute(element, 'id')));
  for (const element of elements) {
    expect(['link', 'img', 'iframe', 'object', 'embed', 'base', 'form']).not.to.include(element.tagName);
    for (const { name, value } of element.attrs) {
      expect(name, element.tagName).not.to.match(/^on|^src|^style$|^xlink/);
      if (name === 'href') expect([...ids], value).to.include(value.replace(/^#/, ''));
      if (/^(x|y|x1|x2|y1|y2|cx|cy|width|height|d|viewbox)$/i.test(name) && element.tagName !== 'meta')
        expect(value, `${element.tagName} ${name}`).not.to.match(/NaN|Infinity|undefined/);
    }
  }
  for (const graphic of named('svg')) expect(attribute(graphic, 'aria-label')).to.match(/\w/);
  expect(attribute(named('html')[0], 'lang')).to.equal('en');
  expect(named('title').length).to.be.at.least(1);
  expect(textOf(style as Element)).to.contain('prefers-color-scheme: dark');
  return elements;
}

const withClass = (elements: readonly Element[], tag: string, name: string): Element[] =>
  elements.filter((e) => e.tagName === tag && (attribute(e, 'class') ?? '').split(' ').includes(name));

/** A name that breaks out of wherever it is put as it is. */
const HOSTILE = `</script></title></style><img src=x onerror="alert(1)">'"&amp;\u0000\ud800 --> ]]>`;

/** A model in which every name is hostile. */
function hostileModel(): Uint8Array {
  const model = new ModelBuilder();
  const own = (name: string): string => `${name}${HOSTILE.replace('\ud800', '').replace('\u0000', '\u0001')}`;
  const x = model.input(own('x'), [own('batch'), 'sequence', 16]);
  const h = addNorm(
    model,
    'layer_norm',
    [
      x,
      model.floats(own('gamma'), [16], uniform(16, 1, 1)),
      model.floats(own('beta'), [16], uniform(16, 1, 2)),
    ],
    own('h'),
  );
  const [q = '', k = '', v = ''] = ['q', 'k', 'v'].map((name, i) =>
    model.node('MatMul', [h, model.floats(own(`w${name}`), [16, 8], uniform(128, 1, i + 3))], [own(name)]),
  );
  const attributes = { perm: { integers: [0, 2, 1] } };
  const scores = model.node(
    'MatMul',
    [q, model.node('Transpose', [k], [own('t')], { attributes })],
    [own('s')],
  );
  model.node('MatMul', [model.node('Softmax', [scores], [own('p')]), v], [own('y')]);
  model.output(own('y'), [own('batch'), 'sequence', 8]);
  return model.finish();
}

describe('reports', () => {
  const folder = testFolder();
  const at = (...names: string[]): string => path.join(folder(), ...names);

  it('what is put into markup is escaped, unless it is markup', () => {
    expect(escaped(`<&>"'`)).to.equal('&lt;&amp;&gt;&quot;&#39;');
    expect(escaped('a\u0000b\ud800c\u001bd\ne\ud83d\ude00')).to.equal(
      'a\ufffdb\ufffdc\ufffdd\ne\ud83d\ude00',
    );
    expect(markup`<p>${'<b>'}${markup`<i>${1}</i>`}${['a', undefined, false, '&']}</p>`.text).to.equal(
      '<p>&lt;b&gt;<i>1</i>a&amp;</p>',
    );
  });

  it('fuse: sites before and after, refusals, operators, differences', async () => {
    const input = writeAttentionModel(folder(), { residual: true, n: 16 });
    const result = await fuseFile(input, at('out.onnx'), { check: true });
    const elements = checkPage(fuseHtml({ ...result, input, output: at('out.onnx') }));
    const graphs = withClass(elements, 'svg', 'graph');
    expect(graphs).to.have.length(2);
    const ops = graphs.map((graph) => attribute(graph, 'aria-label'));
    expect(ops[0]).to.match(/^Before: LayerNormalization, MatMul, .*Add/);
    expect(ops[1]).to.match(/^After: com.deepspeed.QKVGemm, /);
    const inside = withClass(elements, 'g', 'inside').map(textOf).join();
    for (const part of ['h_node', 'wq: float32 [16, 16]', 'QKVGemm']) expect(inside).to.contain(part);
    const all = elements.map(textOf)[0] ?? '';
    for (const part of [
      '1 fused, 0 refused',
      'layer-normalization + matmul+add',
      'Differences of the outputs',
    ])
      expect(all).to.contain(part);
  });

  it('fuse: a refusal is drawn where it failed; nothing has an after', async () => {
    const input = writeAttentionModel(folder(), { attention: false });
    const { report } = await fuseFile(input, at('out.onnx'));
    const elements = checkPage(fuseHtml({ report, input }));
    expect(withClass(elements, 'svg', 'graph').map((svg) => attribute(svg, 'aria-label'))).to.have.length(1);
    expect(withClass(elements, 'g', 'refused')).to.have.length(1);
    expect(textOf(elements[0] as Node)).to.contain(report.refused[0]?.reason ?? '?');
  });

  it('verify: verdict, table, histograms, values inside', async () => {
    const input = writeAttentionModel(folder());
    fs.writeFileSync(at('other.onnx'), attentionModel({ biases: ['q', 'v'] }));
    const report = await verifyModels(input, at('other.onnx'), { intermediates: true });
    const elements = checkPage(verifyHtml(report));
    expect(withClass(elements, 'p', 'bad').map(textOf).join()).to.contain("Different: 'y' by");
    const charts = withClass(elements, 'figure', 'chart').map(textOf);
    expect(charts).to.have.length(2);
    const count = report.outputs[0]?.histogram.reduce((sum, bin) => sum + bin, 0);
    const bars = [...(charts[0] ?? '').matchAll(/: (\d+) elements/g)].map((match) => Number(match[1]));
    expect(bars.reduce((sum, bar) => sum + bar, 0)).to.equal(count);
    const equal = checkPage(verifyHtml(await verifyModels(input, input)));
    expect(textOf(equal[0] as Node))
      .to.contain('Equal: no output differs')
      .and.to.contain('exact');
  });

  it('verify: values that cannot be compared, NaN and empty ones are drawn without a wrong number', async () => {
    const build = (value: number, size: number): Uint8Array => {
      const model = new ModelBuilder();
      model.input('x', ['n', 2]);
      model.node('Mul', ['x', model.floats('factor', [1], [value])], [model.output('y', ['n', 2])]);
      const axis = model.integers('axis', [1], [1]);
      const bounds = [model.integers('from', [1], [0]), model.integers('to', [1], [size])];
      model.node('Slice', ['x', ...bounds, axis], [model.output('z', ['n', 'm'])]);
      return model.finish();
    };
    fs.writeFileSync(at('a.onnx'), build(NaN, 0));
    fs.writeFileSync(at('b.onnx'), build(1, 1));
    const report = await verifyModels(at('a.onnx'), at('b.onnx'), { intermediates: true });
    expect(report.equal).to.equal(false);
    checkPage(verifyHtml(report));
    checkPage(verifyHtml(await verifyModels(at('a.onnx'), at('a.onnx'))));
  });

  it('bench: distribution, operators, check', async () => {
    const input = writeAttentionModel(folder());
    const report = await benchModels(input, { fused: {}, seconds: 0.1 });
    const elements = checkPage(benchHtml(report));
    expect(withClass(elements, 'path', 'line')).to.have.length(2);
    const all = textOf(elements[0] as Node);
    for (const part of ['95 % interval', 'QKVGemm', '(fused)', 'No output differs by more than 0.005'])
      expect(all).to.contain(part);
    const alone = { ...report, models: report.models.slice(0, 1), ratio: undefined, verified: undefined };
    checkPage(benchHtml(alone as unknown as typeof report));
  });

  it('names that break out of markup stay text', async () => {
    fs.writeFileSync(at('model.onnx'), hostileModel());
    const result = await fuseFile(at('model.onnx'), at('out.onnx'), { check: true });
    expect(result.report.fused).to.have.length(1);
    const pages = [
      fuseHtml({ ...result, input: at('model.onnx'), output: at('out.onnx') }),
      verifyHtml(await verifyModels(at('model.onnx'), at('out.onnx'), { intermediates: true })),
      benchHtml(
        await benchModels(at('model.onnx'), { against: at('out.onnx'), seconds: 0.1, memory: false }),
      ),
    ];
    for (const text of pages) {
      const elements = checkPage(text);
      expect(elements.map(({ tagName }) => tagName)).not.to.include('img');
      expect(textOf(elements[0] as Node)).to.contain(
        '</script></title></style><img src=x onerror="alert(1)">',
      );
    }
    const reasons = {
      node: HOSTILE,
      opType: HOSTILE,
      rule: HOSTILE,
      reason: HOSTILE,
      at: HOSTILE,
      position: 0,
    };
    const report = { ...result.report, refused: [reasons], opsBefore: { [HOSTILE]: 1 } };
    expect(checkPage(fuseHtml({ report, input: at('model.onnx') })).map((e) => e.tagName)).not.to.include(
      'img',
    );
  });

  it('on the command line, each command writes one; --dry-run draws what is there', () => {
    const model = writeAttentionModel(folder());
    const report = (name: string): string => fs.readFileSync(at(name), 'utf8');
    for (const [args, name] of [
      [['fuse', model, '--dry-run'], 'plan.html'],
      [['fuse', model, '-o', at('fused.onnx')], 'fuse.html'],
      [['verify', model, at('fused.onnx')], 'verify.html'],
      [['bench', model, '--seconds', '0.1', '--no-memory'], 'bench.html'],
    ] as const) {
      const { code, stderr } = qkvgemm([...args, '--report', at(name)]);
      expect([code, stderr], name).to.deep.equal([0, '']);
      checkPage(report(name));
    }
    expect(report('plan.html')).to.contain('nothing was written');
    expect(filesIn(folder()).filter((file) => file.endsWith('.tmp'))).to.deep.equal([]);
  });

  it('a report replaces a report, and no other file', () => {
    const model = writeAttentionModel(folder());
    const run = (file: string): { code: number | null; stderr: string } =>
      qkvgemm(['verify', model, model, '--report', file]);
    expect(run(at('r.html')).code).to.equal(0);
    expect(run(at('r.html')).code).to.equal(0);
    fs.writeFileSync(at('notes.html'), '<p>mine</p>');
    for (const [file, message] of [
      [at('notes.html'), /exists/],
      [model, /Choose another name/],
      [at('none', 'r.html'), /is no folder/],
    ] as const) {
      const { code, stderr } = run(file);
      expect(code).to.equal(1);
      expect(stderr).to.match(message);
    }
    expect(fs.readFileSync(at('notes.html'), 'utf8')).to.equal('<p>mine</p>');
    const both = qkvgemm(['fuse', model, at('o.onnx'), '--report', at('o.onnx')]);
    expect(both.code).to.equal(1);
    expect(fs.existsSync(at('o.onnx'))).to.equal(false);
  });
});
