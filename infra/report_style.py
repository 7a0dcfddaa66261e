"""The stylesheet of the report: calm, light or dark as the reader's system is, printable, nothing fetched."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f6f3; --card: #ffffff; --ink: #22252b; --soft: #646a75; --line: #e3e1db; --grid: #eeece7;
  --good: #1a7f4e; --bad: #b3402f; --accent: #2f5fb3;
  --done: #2f8f63; --reused: #4a7fb5; --running: #c98a1b; --failed: #c0432f; --waiting: #a7a9ae;
  --c0: #2a9d8f; --c1: #3a7ca5; --c2: #5463b8; --c3: #8a4fb0; --c4: #b8447f; --c5: #c95d3f; --c6: #b5892a;
  --c7: #5d8a3a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171b; --card: #1d2025; --ink: #e6e4df; --soft: #9aa0ab; --line: #30343c; --grid: #272b32;
    --good: #62c796; --bad: #ef8a78; --accent: #8fb4f5;
    --done: #55b88a; --reused: #76a9dc; --running: #e2ae4e; --failed: #ea7563; --waiting: #6d727c;
    --c0: #4fc1b3; --c1: #67a9d3; --c2: #8b98ea; --c3: #bb88de; --c4: #e07fb0; --c5: #ec8f74; --c6: #d9b25c;
  --c7: #93bf70;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 44px 28px 72px; }
h1 { font-size: 34px; line-height: 1.15; letter-spacing: -.02em; margin: 2px 0 8px; font-weight: 650;
  overflow-wrap: anywhere; }
h2 { font-size: 20px; letter-spacing: -.01em; margin: 48px 0 4px; font-weight: 620; }
h3 { font-size: 15px; margin: 22px 0 8px; font-weight: 620; }
p { margin: 4px 0 14px; max-width: 76ch; }
.card > h3:first-child, .columns h3 { margin-top: 0; }
.soft, .lead { color: var(--soft); }
.eyebrow { color: var(--accent); font-size: 13px; font-weight: 600; letter-spacing: .08em; text-transform: uppercase;
  }
.summary { font-size: 18px; line-height: 1.5; margin: 18px 0 24px; max-width: 66ch; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 20px 22px;
  margin: 14px 0; }
.scroll { overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 12px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 14px 18px 15px; }
.tile b { display: block; font-size: 22px; font-weight: 640; letter-spacing: -.02em; line-height: 1.25;
  white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 550; font-size: 13px; color: var(--soft); padding: 6px 14px 6px 0;
  vertical-align: bottom; }
td { padding: 8px 14px 8px 0; border-top: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
th.n, td.n { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
tr.group th { padding-bottom: 0; text-align: center; }
tr.group th[colspan] { border-bottom: 1px solid var(--line); }
.good { color: var(--good); font-weight: 600; } .bad { color: var(--bad); font-weight: 600; }
code, .mono { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.command { display: block; padding: 12px 14px; border: 1px solid var(--line); border-radius: 10px;
  background: var(--page);
  white-space: pre-wrap; overflow-wrap: anywhere; }
svg { display: block; } svg text { font-family: inherit; fill: var(--soft); font-size: 12px; }
.chart { width: 100%; height: auto; margin: 0 0 6px; overflow: visible; }
.chart .grid { stroke: var(--grid); stroke-width: 1; }
.chart .cut { stroke: var(--line); stroke-width: 1; stroke-dasharray: 3 4; }
.chart .end { text-anchor: end; } .chart .middle { text-anchor: middle; }
.chart .label { font-weight: 620; fill: var(--c); }
.chart polyline { fill: none; stroke: var(--c); stroke-linejoin: round; stroke-linecap: round; }
.chart .raw { stroke-width: 1; opacity: .35; } .chart .curve { stroke-width: 2.4; }
.chart .hover { fill: var(--c); stroke: var(--card); stroke-width: 2; opacity: 0; } .chart .hover:hover { opacity: 1;
  }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
.graph { margin: 0 auto; }
.graph .edge { fill: none; stroke: var(--waiting); stroke-width: 1.3; opacity: .75; }
.graph .node rect { fill: var(--card); stroke: var(--s); stroke-width: 1.5; }
.graph .node circle { fill: var(--s); }
.graph .name { fill: var(--ink); font-weight: 600; } .graph .note { font-size: 11px; }
.done { --s: var(--done); } .reused { --s: var(--reused); } .running { --s: var(--running); }
.failed { --s: var(--failed); } .waiting { --s: var(--waiting); }
.graph .waiting rect { stroke-dasharray: 4 4; } .graph .running rect, .graph .failed rect { stroke-width: 2.4; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; color: var(--soft); font-size: 13px; margin: 12px 0 0; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; background: var(--s); margin-right: 7px; }
.pill { display: inline-flex; align-items: center; font-size: 12.5px; color: var(--soft); white-space: nowrap; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 14px; }
figure { margin: 0; background: #ffffff; border: 1px solid var(--line); border-radius: 14px; padding: 14px;
  color: #22252b; }
figure img { width: 100%; display: block; border-radius: 6px; }
figcaption { font-size: 13px; color: #5a606b; margin-top: 8px; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 8px 40px; }
.samples pre { max-height: 160px; overflow: auto; margin: 6px 0 14px; }
.bars { display: grid; gap: 7px; }
.bar { display: grid; grid-template-columns: minmax(84px, min(38%, 180px)) 1fr 70px; gap: 12px; align-items: center;
  font-size: 13.5px; }
.bar-name { overflow-wrap: anywhere; } .bar-figure { text-align: right; font-variant-numeric: tabular-nums; }
.bar-track { background: var(--grid); border-radius: 5px; height: 10px; } .bar-track i { display: block; height: 10px;
  min-width: 2px; border-radius: 5px; background: var(--c1); }
.stacks { display: grid; gap: 9px; }
.stack-row { display: grid; grid-template-columns: minmax(84px, min(38%, 180px)) 1fr 60px; gap: 12px;
  align-items: center; font-size: 13.5px; }
.stack { display: flex; height: 22px; border-radius: 6px; overflow: hidden; background: var(--grid); }
.stack i { background: var(--fill); font-style: normal; font-size: 11.5px; line-height: 22px; color: var(--page);
  text-align: center; overflow: hidden; border-right: 1px solid var(--card); } .stack i:last-child { border-right: 0; }
.account th.n { white-space: normal; } .account td:first-child { white-space: nowrap; }
.swatch { background: var(--fill); border-radius: 3px; }
.stack i[class^="c"], .swatch[class*=" c"] { --fill: var(--c); }
.stack .done, .swatch.done { --fill: var(--done); } .stack .waiting, .swatch.waiting { --fill: var(--waiting); }
details { border-top: 1px solid var(--line); } details:first-child { border-top: 0; }
summary { cursor: pointer; padding: 11px 0; display: grid; grid-template-columns: minmax(130px, 1.2fr) 1fr 1fr 2.2fr;
  gap: 14px;
  align-items: baseline; list-style: none; } summary::-webkit-details-marker { display: none; }
summary b { font-weight: 600; } summary b::before { content: "\\203A"; display: inline-block; width: 15px;
  color: var(--soft); }
details[open] > summary b::before { transform: translateX(-3px) rotate(90deg); }
summary span { color: var(--soft); font-size: 13.5px; font-variant-numeric: tabular-nums; }
summary.failure { grid-template-columns: minmax(110px, 1fr) 86px 86px 3.4fr; }
.inside pre { max-height: 340px; overflow: auto; margin: 0; }
.inside { padding: 0 0 20px 15px; } .inside td { padding: 4px 14px 4px 0; font-size: 13.5px; }
.inside td:first-child { color: var(--soft); width: 52%; }
footer { color: var(--soft); font-size: 13px; margin-top: 48px; }
@media print { body { background: #fff; } .card, .tile, figure { break-inside: avoid; } }
@media (max-width: 640px) { main { padding: 26px 16px; } summary { grid-template-columns: 1fr 1fr; } }
"""
