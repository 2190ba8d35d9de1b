"""How the report looks: in the light and in the dark, on a desk and on a phone."""

STYLE = """
:root { color-scheme: light dark;
  --ground: #f7f6f2; --card: #fffefb; --ink: #201f1c; --soft: #6b675e; --rule: #dedad0; --accent: #3552b8;
  --t0: #201f1c; --t1: #c77700; --t2: #c23a63; --t3: #7a43d6; --t4: #1f6fd1; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #15161a; --card: #1d1f25; --ink: #e8e6e0; --soft: #9d9a92; --rule: #33363f; --accent: #9db2ff;
  --t0: #f4f2ec; --t1: #f5b342; --t2: #f5799b; --t3: #b795ff; --t4: #6db1ff; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink); overflow-wrap: anywhere;
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 56rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 3.5rem; }
h1 { font-size: clamp(1.9rem, 6vw, 2.9rem); line-height: 1.1; letter-spacing: -0.02em; margin: 0 0 0.5rem; }
h2 { font-size: 1.45rem; line-height: 1.25; letter-spacing: -0.01em; margin: 0 0 0.5rem; }
h3 { font-size: 0.95rem; margin: 1.5rem 0 0.5rem; }
p { margin: 0 0 1rem; max-width: 44rem; }
a { color: var(--accent); }
sub { line-height: 0; }
.formula { white-space: nowrap; }
.lead { font-size: 1.15rem; color: var(--soft); }
.kicker { color: var(--accent); font-weight: 600; font-size: 0.85rem; margin: 0 0 0.4rem; letter-spacing: 0.02em; }
nav { display: flex; flex-wrap: wrap; gap: 0.3rem 1.1rem; font-size: 0.9rem; margin: 1.5rem 0 0; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
section { padding: 2.5rem 0 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.75rem;
  margin: 1.5rem 0 0; }
.facts div { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 0.8rem 1rem; }
.facts strong { display: block; font-size: 1.55rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.facts span { display: block; color: var(--soft); font-size: 0.83rem; line-height: 1.4; margin-top: 0.25rem; }
figure, .scroll { margin: 0 0 1rem; background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
figure { padding: 1.1rem; }
figcaption { color: var(--soft); font-size: 0.87rem; line-height: 1.5; margin-top: 0.7rem; }
.sheet { max-width: 100%; margin: 0 auto; }
.sheet img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 3px; }
.heads { display: grid; font-size: 0.8rem; color: var(--soft); text-align: center; padding-bottom: 0.3rem; }
.heads span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; padding: 0 1px; min-width: 0; }
.chart { display: block; max-width: 100%; height: auto; margin: 0 auto; font-size: 12px;
  font-variant-numeric: tabular-nums; }
.narrow { display: none; }
.chart text { fill: var(--soft); }
.chart text.end { fill: var(--line); font-weight: 600; }
.chart .rule { stroke: var(--rule); }
.chart .tick { stroke: var(--soft); }
.curve path { fill: none; stroke: var(--line); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.curve circle { fill: var(--line); }
.curve-0 { --line: var(--t0); } .curve-1 { --line: var(--t1); } .curve-2 { --line: var(--t2); }
.curve-3 { --line: var(--t3); } .curve-4 { --line: var(--t4); }
.curve-0 path { stroke-width: 2.6; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; padding: 0; margin: 0.7rem 0 0;
  font-size: 0.87rem; color: var(--soft); }
.legend i { display: inline-block; width: 1.1rem; height: 3px; border-radius: 2px; background: var(--line);
  vertical-align: middle; margin-right: 0.45rem; }
.scroll { overflow-x: auto; }
table { overflow-wrap: break-word; border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; vertical-align: top; padding: 0.5rem 0.9rem; border-top: 1px solid var(--rule);
  line-height: 1.45; }
tr:first-child > * { border-top: 0; }
thead th { color: var(--soft); font-weight: 600; font-size: 0.8rem; }
tbody th { font-weight: 600; }
tbody + tbody tr:first-child > *, thead + tbody tr:first-child > * { border-top: 1px solid var(--rule); }
.group th { background: var(--ground); color: var(--soft); font-size: 0.83rem; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.meaning { color: var(--soft); min-width: 15rem; }
.metrics { min-width: 40rem; }
.settings { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 1rem;
  align-items: start; }
details { margin: 0.5rem 0; }
summary { cursor: pointer; font-weight: 600; font-size: 0.95rem; padding: 0.3rem 0; }
.settings td, details td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.settings tbody th, details tbody th { width: 55%; font-weight: 400; color: var(--soft); }
pre, code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.83rem; }
pre { margin: 0; padding: 0.9rem 1.1rem; line-height: 1.6; overflow-x: auto; }
.chain { list-style: none; display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1.5rem;
  padding: 0; margin: 0 0 1rem; }
.chain li { position: relative; background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 0.75rem 1rem; min-width: 0; }
.chain li + li::before { content: "→"; position: absolute; left: -1.25rem; top: 50%; transform: translateY(-50%);
  color: var(--soft); }
.chain strong { display: block; font-size: 0.87rem; }
.chain code { display: block; overflow-wrap: anywhere; color: var(--soft); line-height: 1.4; }
.none { color: var(--soft); font-style: italic; }
footer { color: var(--soft); font-size: 0.87rem; padding-top: 2.5rem; padding-bottom: 4rem; }
@media (max-width: 40rem) {
  header { padding-top: 2rem; }
  header, main, footer { padding-left: 0.9rem; padding-right: 0.9rem; }
  figure { padding: 0.7rem; }
  .wide { display: none; }
  .narrow { display: block; }
  .facts { grid-template-columns: 1fr 1fr; }
  .metrics { min-width: 0; }
  .metrics thead { display: none; }
  .metrics tr { display: grid; grid-template-columns: 1fr auto; border-top: 1px solid var(--rule);
    padding: 0.45rem 0.8rem; }
  .metrics tbody:first-of-type tr:first-child { border-top: 0; }
  .metrics th, .metrics td { border: 0 !important; padding: 0.1rem 0; }
  .metrics .group { background: var(--ground); }
  .metrics .group th { grid-column: 1 / -1; }
  .metrics td.value { font-weight: 600; }
  .metrics td.interval { order: 1; text-align: left; color: var(--soft); }
  .metrics td.n { order: 2; color: var(--soft); }
  .metrics td.n::before { content: "n = "; }
  .metrics td.meaning { order: 3; grid-column: 1 / -1; font-size: 0.85rem; }
  .heads { font-size: 0.68rem; }
  .chain { grid-template-columns: 1fr; }
  .chain li + li::before { content: "↓"; left: 50%; top: -0.75rem; transform: translate(-50%, -50%); } }
@media print { nav { display: none; } section { break-inside: avoid; } }
"""
