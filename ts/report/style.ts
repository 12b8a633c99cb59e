/** How reports look: light and dark, on wide and narrow screens, without anything from elsewhere. */

/** Colours of both schemes. */
export const COLOURS = `
:root {
  color-scheme: light dark;
  --page: #fff; --text: #1c2024; --soft: #5b6470; --line: #d5dae0; --panel: #f5f7f9;
  --a: #1f6fb2; --b: #b2561f; --good: #1d7a46; --bad: #b3261e; --warn: #8a5a00;
  --site: #dcebf8; --outside: #f0f2f4; --refused: #fbe6e4; --focus: #1f6fb2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --text: #e6e9ec; --soft: #a3acb6; --line: #3a424b; --panel: #1d2227;
    --a: #6db3ee; --b: #f0a06c; --good: #6fd39b; --bad: #ff8a80; --warn: #e5b567;
    --site: #17354f; --outside: #262c32; --refused: #4a2320; --focus: #6db3ee;
  }
}
`;

/** What is drawn as SVG. */
export const DRAWN = `
svg text { fill: var(--text); font: 12px ui-monospace, monospace; }
.node rect { fill: var(--outside); stroke: var(--line); } .node.inside rect { fill: var(--site); stroke: var(--a); }
.node.refused rect { fill: var(--refused); stroke: var(--bad); } .node.value rect { fill: var(--page); stroke-dasharray: 4 3; }
.node .op { font-weight: 700; } .node .more, .edge text { fill: var(--soft); font-size: 10px; }
.edge text { paint-order: stroke; stroke: var(--page); stroke-width: 4px; }
.edge path { fill: none; stroke: var(--soft); } .edge .arrow { fill: var(--soft); }
.axis { stroke: var(--line); } .tick { fill: var(--soft); font-size: 11px; }
.fa { fill: var(--a); } .fb { fill: var(--b); } .sa { stroke: var(--a); } .sb { stroke: var(--b); }
.line { fill: none; stroke-width: 2; } .bound { stroke: var(--bad); stroke-dasharray: 5 4; }
`;

export const STYLE = `${COLOURS}* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0 0 .5rem; } h1, h2, h3, p, dd { overflow-wrap: anywhere; }
a { color: var(--a); } code { font: .875em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1rem; padding: 0; list-style: none; }
.verdict { font-weight: 600; padding: .5rem .75rem; border-left: .3rem solid var(--good); background: var(--panel); }
.verdict.bad { border-color: var(--bad); } .bad { color: var(--bad); } .good { color: var(--good); }
.verdict.bad, .verdict { color: var(--text); }
.soft { color: var(--soft); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); gap: .5rem 1.5rem; margin: 0 0 .75rem; }
dt { color: var(--soft); font-size: .875rem; } dd { margin: 0; }
.scroll { overflow-x: auto; margin: .5rem 0; } table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; color: var(--soft); padding: .25rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); }
td code { white-space: nowrap; } .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.site, figure { border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; margin: .75rem 0; background: var(--panel); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: .75rem; }
.pair figure, .site figure { margin: 0; background: var(--page); min-width: 0; }
figcaption { font-size: .9rem; color: var(--soft); display: flex; flex-wrap: wrap; gap: .5rem; align-items: center;
  justify-content: space-between; }
summary { cursor: pointer; padding: .25rem 0; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg.graph { min-height: 20rem; max-height: min(70vh, 36rem); touch-action: none; cursor: grab; }
figure.chart { overflow-x: auto; } .chart > svg { min-width: 34rem; max-width: 44rem; }
.tools { display: inline-flex; gap: .25rem; } .tools[hidden] { display: none; }
button { font: inherit; min-width: 2.25rem; min-height: 2.25rem; border: 1px solid var(--line); border-radius: .375rem;
  background: var(--panel); color: var(--text); }
.key { display: inline-block; width: .8em; height: .8em; border-radius: .2em; } .key.a { background: var(--a); } .key.b { background: var(--b); }
footer { margin-top: 3rem; color: var(--soft); font-size: .875rem; }
@media print { .tools { display: none; } svg.graph { max-height: none; } }
${DRAWN}`;
