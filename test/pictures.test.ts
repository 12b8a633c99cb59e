/** The README's pictures show what the model and the tables say now. */
import { expect } from 'chai';
import fs from 'node:fs';
import path from 'node:path';
import { column, longest, ratioIn, tablesOf } from '../scripts/draw/tables.js';
import { drawPictures, picturesFolder } from '../scripts/pictures.js';
import { root } from './support/command.js';

const LARGEST = 60_000;

describe('pictures of the README', () => {
  let drawn: Map<string, string>;

  before(async () => (drawn = await drawPictures()));

  it('are those that the data give: npm run pictures draws them anew', () => {
    expect(fs.readdirSync(picturesFolder).sort()).to.deep.equal([...drawn.keys()].sort());
    for (const [name, text] of drawn)
      expect(
        fs.readFileSync(path.join(picturesFolder, name), 'utf8') === text,
        `${name} is up to date`,
      ).to.equal(true);
  });

  it('are in the README, small, in colours for light and dark, and load nothing', () => {
    const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8');
    const shown = [...readme.matchAll(/!\[[^\]]{20,}\]\(scripts\/pictures\/([^)]+)\)/g)].map(
      (match) => match[1],
    );
    expect(shown.sort()).to.deep.equal([...drawn.keys()].sort());
    for (const [name, text] of drawn) {
      expect(text.length, name).to.be.below(LARGEST);
      expect(text, name).to.include('prefers-color-scheme: dark');
      expect(text.replace('http://www.w3.org/2000/svg', ''), name).not.to.match(
        /https?:|href|<script|@import|url\(/,
      );
    }
  });

  it('the fused site has the nodes of the model, and one in their place', () => {
    const site = drawn.get('site.svg') ?? '';
    expect(site.match(/class="node inside"/g)).to.have.length(11 + 1);
    expect(site.match(/class="op"[^>]*>\s*com\.deepspeed\.QKVGemm</g)).to.have.length(1);
    expect(site.match(/class="op"[^>]*>\s*MatMul</g)).to.have.length(3);
  });

  describe('tables', () => {
    const page = [
      '', '## One', 'First, in', 'two lines:', '', '| M | a |', '| --- | --- |', '| 1 | 7, 1.50x |', '',
      'First, again:', '', '| M | a |', '| - | - |', '| 1 | 7, 2.00x |', '| 2 | x |', '', '## Two', '', '| M |', '| - |', '| 5 |', '',
    ].join('\n'); // prettier-ignore

    it('are found below their heading, by caption and length', () => {
      const tables = tablesOf(page, '## One');
      expect(tables.map(({ caption }) => caption)).to.deep.equal(['First, in two lines:', 'First, again:']);
      const table = longest(tables, 'First');
      expect(column(table, 'M')).to.deep.equal([1, 2]);
      expect(column(longest(tables, 'First, in'), 'a', ratioIn)).to.deep.equal([1.5]);
    });

    it('say what is missing in them', () => {
      const tables = tablesOf(page, '## One');
      expect(() => tablesOf(page, '## Three')).to.throw("no heading '## Three'");
      expect(() => longest(tables, 'Second')).to.throw(
        "begins with 'Second'; there are: 'First, in two lines:'",
      );
      expect(() => column(longest(tables, 'First'), 'b')).to.throw("no column 'b'; there are: M, a");
      expect(() => column(longest(tables, 'First'), 'a', ratioIn)).to.throw("'x' in column 'a'");
    });
  });
});
