/** OPERATOR.md against the library and the rewriter: its tables, its function body, its examples. */
import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { attentionModel } from '../models/attention.js';
import {
  INPUTS,
  qkvGemmModel,
  randomOperands,
  type Operand,
  type Operands,
  type QkvGemmSpec,
} from '../models/qkv_gemm.js';
import { fuse } from '../ts/index.js';
import { Model } from '../ts/onnx/model.js';
import type { AttributeValue } from '../ts/onnx/node.js';
import { DataType } from '../ts/onnx/tensor.js';
import { ATTRIBUTES, DOMAIN, planFunctions } from '../ts/rewrite/function_body.js';
import { withQkvGemm } from '../ts/session/index.js';
import { root, testFolder } from './support/command.js';
import { functionText } from './support/function_text.js';
import { floatForm, int8Form } from './support/op_mistakes.js';
import { needPython, runPython } from './support/python.js';
import { blocks } from './support/readme.js';
import { quiet } from './support/run.js';
import { runOp } from './support/run_op.js';

const page = fs.readFileSync(path.join(root, 'OPERATOR.md'), 'utf8');

/** Text of a section, with its heading's rest. */
function sectionOf(title: string): { heading: string; text: string } {
  const found = new RegExp(`^## (${title}.*)\n([^]*?)(?=^## |(?![^]))`, 'm').exec(page);
  if (!found) throw new Error(`OPERATOR.md has no section '${title}'`);
  return { heading: found[1] ?? '', text: found[2] ?? '' };
}

/** Rows of a section's table by the names of its columns, without backquotes. */
function table(title: string): Record<string, string>[] {
  const rows = sectionOf(title)
    .text.split('\n')
    .filter((line) => line.startsWith('|'))
    .map((line) => line.split('|').slice(1, -1).map((cell) => cell.trim().replace(/^`(.*)`$/, '$1'))); // prettier-ignore
  const [head = [], , ...body] = rows;
  return body.map((cells) => Object.fromEntries(head.map((name, i) => [name, cells[i] ?? ''])));
}

const { float, float16, bfloat16, int8, uint8, int32, double } = DataType;
const TYPES = { float, float16, bfloat16, int8, uint8, int32, double };
type TypeName = keyof typeof TYPES;

const constraints = new Map(
  table('Type constraints').map(({ type = '', allowed = '' }) => [
    type,
    [...allowed.matchAll(/tensor\((\w+)\)/g)].map((match) => match[1] ?? ''),
  ]),
);

const run = (spec: QkvGemmSpec, operands: Operands, attributes: Record<string, AttributeValue> = {}) =>
  runOp(qkvGemmModel(spec, operands, { attributes }), withQkvGemm(quiet));

/** What ONNX Runtime says, in the op's words. */
async function refusal(action: () => Promise<unknown>): Promise<string> {
  try {
    await action();
  } catch (error) {
    return (error as Error).message;
  }
  throw new Error('expected an error');
}

/** An attribute as the table's type says. */
function attributeOf(type: string | undefined, value: unknown): AttributeValue {
  if (type === 'string') return { string: value as string };
  if (type === 'float') return { float: value as number };
  return type === 'ints' ? { integers: value as number[] } : { integer: value as number };
}

describe('OPERATOR.md', () => {
  it('has the sections of an ONNX operator page, in their order', () => {
    const titles = [...page.matchAll(/^## ([A-Z][a-z ]+[a-z])/gm)].map((match) => match[1]);
    expect(titles).to.deep.equal([
      'Summary', 'Version', 'Attributes', 'Inputs', 'Outputs', 'Type constraints', 'Function body', 'Examples', 'Notes',
    ]); // prettier-ignore
  });

  it('states the version that rewritten models import', async () => {
    const { model } = await fuse(attentionModel());
    const [, version] = /^Version (\d+) of the domain `([\w.]+)`/m.exec(sectionOf('Version').text) ?? [];
    expect(new Model(model).opsets.get(DOMAIN)).to.equal(Number(version));
  });

  describe('attributes', () => {
    const rows = table('Attributes');

    it('are those that the rewriter writes', () => {
      expect(rows.map(({ name }) => name)).to.deep.equal(ATTRIBUTES);
    });

    for (const { name = '', type, default: value = '' } of rows) {
      it(`${name} is ${type}, and ${value} where it is left out`, async () => {
        const operands = randomOperands(floatForm);
        const given = attributeOf(type, JSON.parse(value.replace('N', String(floatForm.n))));
        const [without, stated] = [
          await run(floatForm, operands),
          await run(floatForm, operands, { [name]: given }),
        ];
        expect(stated).to.deep.equal(without);
        const other: AttributeValue = type === 'string' ? { float: 1 } : { string: 'text' };
        const message = await refusal(() => run(floatForm, operands, { [name]: other }));
        expect(message).to.include(`attribute '${name}': expected`);
      });
    }
  });

  describe('inputs', () => {
    const rows = table('Inputs');

    it('have their places, and the range of the heading', () => {
      expect(rows.map(({ name }) => name)).to.deep.equal(INPUTS);
      expect(rows.map((row) => Number(row['#']))).to.deep.equal(INPUTS.map((_, i) => i));
      const required = rows.filter(({ presence }) => presence === 'required');
      expect(sectionOf('Inputs').heading).to.equal(`Inputs (${required.length} - ${rows.length})`);
    });

    for (const [i, { name = '', type = '', presence = '' }] of rows.entries()) {
      it(`${i}: ${name} is ${type}; ${presence}`, async () => {
        const spec = int8Form;
        const operands = randomOperands(spec);
        const wrong = { type: double, dims: [1], values: new Float32Array(1) };
        const message = await refusal(() => run(spec, { ...operands, [name]: wrong }));
        expect(message).to.include(`input ${i} '${name}': expected`);
        const left = { ...operands, [name]: undefined };
        if (presence.startsWith('optional')) await run(spec, left);
        else await refusal(() => run(spec, left));
      });
    }

    const allowed = (form: string, t: TypeName): string[] =>
      form.split(' or ').flatMap((part) => (part === 'T' ? [t] : (constraints.get(part) ?? [part])));

    it('have the types of the constraints and no other', async () => {
      for (const t of ['float', 'float16', 'bfloat16'] as const) {
        for (const { name = '', type = '' } of rows.slice(1)) {
          const spec = ['scale', 'zero_point'].includes(name) ? int8Form : floatForm;
          const operands = randomOperands({
            ...spec,
            type: TYPES[t],
            gamma: TYPES[t],
            beta: TYPES[t],
            bias: TYPES[t],
          });
          const own = operands[name as keyof Operands] as Operand;
          for (const [found, element] of Object.entries(TYPES)) {
            if (name === 'weight' && found === 'int8') continue; // wants a scale: below
            const attempt = () =>
              run({ ...spec, type: TYPES[t] }, { ...operands, [name]: { ...own, type: element } });
            const what = `T ${t}, ${name} ${found}`;
            if (allowed(type, t).includes(found)) await attempt();
            else expect(await refusal(attempt), what).to.include(`'${name}'`);
          }
        }
      }
      expect(constraints.get('TW')).to.include('int8');
      await run(int8Form, randomOperands(int8Form));
    });

    it('T is what the constraint says', async () => {
      for (const [found, element] of Object.entries(TYPES)) {
        if (found === 'uint8') continue; // the same branch as int32
        const spec: QkvGemmSpec = { dims: [2, 8], n: 4, norm: 'none' };
        const operands = randomOperands(spec);
        const input = { ...(operands.input as Operand), type: element };
        const attempt = () => run({ ...spec, type: element }, { ...operands, input });
        if (constraints.get('T')?.includes(found)) await attempt();
        else expect(await refusal(attempt), found).to.match(/input 0 'input'|not among what is tested/);
      }
    });
  });

  it('outputs are in their slots, with their shapes', async () => {
    const rows = table('Outputs');
    expect(rows.map((row) => row['#'])).to.deep.equal(['0', '1', '2, 3, ...']);
    const spec: QkvGemmSpec = { ...floatForm, splits: [5, 4, 3], emitNorm: true };
    const found = await run(spec, randomOperands(spec));
    expect(Object.entries(found).map(([name, { dims }]) => [name, ...dims])).to.deep.equal([
      [rows[0]?.name, 2, 3, 5],
      [rows[1]?.name, 2, 3, 8],
      ['y2', 2, 3, 4],
      ['y3', 2, 3, 3],
    ]);
  });

  it('its function body is the one that rewritten models carry', () => {
    const variant = {
      normType: 'layer_norm',
      splits: 3,
      transposed: false,
      bias: true,
      norm: false,
    } as const;
    const { functions } = planFunctions([{ ...variant, type: float, weightType: float }], 17);
    expect(blocks('OPERATOR.md', 'onnx')).to.deep.equal(
      functions.map(({ message }) => functionText(message)),
    );
  });

  describe('examples', () => {
    const folder = testFolder();

    interface Example {
      attributes: Record<string, unknown>;
      inputs: Record<string, unknown>;
      outputs: Record<string, unknown>;
    }
    const dimsOf = (value: unknown): number[] =>
      Array.isArray(value) ? [value.length, ...dimsOf(value[0])] : [];
    const numbers = (value: unknown): number[] => [value].flat(Infinity) as number[];

    function operandOf(value: unknown): Operand {
      const { type = 'float', values } = Array.isArray(value)
        ? { values: value as unknown }
        : (value as { type?: TypeName; values: unknown });
      return { type: TYPES[type], dims: dimsOf(values), values: new Float32Array(numbers(values)) };
    }

    for (const [i, source] of blocks('OPERATOR.md', 'json').entries()) {
      it(`number ${i + 1} gives what it says`, async () => {
        const { attributes, inputs, outputs } = JSON.parse(source) as Example;
        const operands = Object.fromEntries(
          Object.entries(inputs).map(([name, value]) => [name, operandOf(value)]),
        );
        expect(INPUTS).to.include.members(Object.keys(inputs));
        const types = new Map(table('Attributes').map(({ name, type }) => [name, type]));
        const splits = attributes.splits as number[] | undefined;
        const spec: QkvGemmSpec = {
          dims: operands.input?.dims ?? [],
          n: operands.weight?.dims.at(attributes.transposed === 1 ? 0 : 1) ?? 0,
          emitNorm: attributes.emit_norm === 1,
          ...(splits ? { splits } : {}),
        };
        const given: Record<string, AttributeValue> = {};
        for (const [name, value] of Object.entries(attributes))
          given[name] = attributeOf(types.get(name), value);
        const found = await run(spec, operands, given);
        expect(Object.keys(found)).to.deep.equal(Object.keys(outputs));
        for (const [name, value] of Object.entries(outputs)) {
          expect([...(found[name]?.dims ?? [])], name).to.deep.equal(dimsOf(value));
          expect(Array.from(found[name]?.values ?? []), name).to.deep.equal(numbers(value));
        }
      });
    }

    it('that in Python runs, and agrees with its formula', function () {
      const python = needPython(this, ['numpy', 'onnx', 'onnxruntime']);
      const [source = '', ...others] = blocks('OPERATOR.md', 'python');
      expect(others).to.deep.equal([]);
      const stdout = runPython(python, ['-c', source], folder());
      expect(Number(/largest difference (\S+)/.exec(stdout)?.[1])).to.be.below(1e-5);
    });
  });
});
