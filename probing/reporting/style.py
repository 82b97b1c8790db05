"""The page's style sheet. Colours are from Okabe and Ito's palette, which all kinds of colour vision can
distinguish.
"""

from __future__ import annotations

_BASE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2024; --soft: #5b646d; --rule: #d9dee3; --box: #f4f7f9;
  --link: #00609a; --t0: #0072b2; --t1: #b0578c; --t2: #b87400; --t3: #2a93cf; --t4: #007f5c; --t5: #c24e00;
  --control: #d55e00; --selectivity: #008a63; --base: #6c757d; --heat: 0 114 178; --mark: #fff3cd; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e4e7ea; --soft: #9aa4ad; --rule: #333a41;
  --box: #1d2226; --link: #6cb8ea; --t0: #56b4e9; --t1: #d996be; --t2: #e6a93a; --t3: #8ccbf0; --t4: #3cc79c;
  --t5: #f0883e; --control: #f0883e; --selectivity: #3cc79c; --base: #9aa4ad; --heat: 86 180 233; --mark: #4a3f16; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .8rem; padding-top: .8rem; border-top: 2px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; }
h1, h2, h3, td, th, p, li { overflow-wrap: anywhere; } thead th { overflow-wrap: break-word; }
p, ul { max-width: 46rem; }
a { color: var(--link); }
.soft, .caption, figcaption { color: var(--soft); font-size: .9rem; }
.box { background: var(--box); border-left: 5px solid var(--base); padding: .9rem 1.2rem;
  border-radius: 4px; margin: 1rem 0; }
.box pre { white-space: pre-wrap; margin: .2rem 0 .6rem; }
.box p { max-width: none; margin: .35rem 0; }
.box.yes { border-color: var(--t4); } .box.half { border-color: var(--t2); }
.status { text-transform: uppercase; letter-spacing: .05em; font-size: .8rem; font-weight: 650; color: var(--soft); }
.sentence { font-size: 1.06rem; font-weight: 500; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 470px), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 1rem 0; } figcaption { max-width: 60rem; margin-top: .4rem; }
.chart { width: 100%; max-width: 620px; height: auto; display: block; }
.scroll { overflow-x: auto; margin: .3rem 0 .8rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; line-height: 1.35; }
.caption { max-width: 60rem; margin: 1.6rem 0 .3rem; }
th, td { padding: .25rem .5rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-weight: 600; } thead th { border-bottom: 2px solid var(--rule); vertical-align: bottom; }
tbody th, td.text { text-align: left; font-weight: 500; } td.text { font-weight: 400; }
thead th:first-child, table.facts thead th, table.results th:nth-child(2) { text-align: left; }
table.facts td { text-align: left; white-space: normal; max-width: 46rem; }
tr.best > * { background: var(--mark); } td small { color: var(--soft); font-size: .92em; }
table.confusion th, table.confusion td { padding: .2rem .35rem; border: 0; font-size: .8rem; text-align: center; }
table.confusion tbody th { text-align: right; }
table.confusion td.own { outline: 1px solid var(--soft); outline-offset: -1px; }
pre { font-size: .8rem; overflow-x: auto; background: var(--box); padding: .8rem 1rem; }
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 550; }
nav ul { columns: 18rem auto; padding-left: 1.2rem; max-width: none; }
.chart text { font: 11px system-ui, "Segoe UI", sans-serif; fill: var(--soft); }
.chart .title { font-size: 13px; font-weight: 600; fill: var(--ink); }
.chart .grid { stroke: var(--rule); } .chart .axis { stroke: var(--soft); }
.chart g { color: var(--base); } .chart g .name { fill: currentColor; font-weight: 550; }
.chart .line { stroke: currentColor; fill: none; stroke-width: 1.8; } .chart .dot { fill: currentColor; }
.chart .band { fill: currentColor; opacity: .2; } .chart .bar { stroke: currentColor; stroke-width: 1.6; }
.chart .within { fill: var(--base); opacity: .18; } .chart .open { fill: var(--paper); stroke: currentColor; }
.chart .open, .chart .stroke { stroke-width: 1.8; } .chart .stroke { stroke: currentColor; fill: none; }
.chart .other .line { stroke-dasharray: 5 3; stroke-width: 1.3; }
.chart.map { width: auto; max-width: 100%; } .map .tick { fill: var(--ink); }
.key { width: 100%; max-width: 620px; height: auto; display: block; color: var(--ink); }
.verdict { margin: .6rem 0; padding-left: .8rem; border-left: 4px solid var(--base); }
.verdict.yes { border-color: var(--t4); } .verdict.no { border-color: var(--t0); }
.chart .task { color: var(--t0); } .chart .control { color: var(--control); }
.chart .selectivity { color: var(--selectivity); }
.chart .ceiling .line { stroke-dasharray: 7 3; stroke-width: 1.3; } .chart .entropy .line { stroke-dasharray: 8 2 2 2; }
.chart .baseline .line { stroke-dasharray: 2 3; stroke-width: 1.4; } .chart .entropy { color: var(--ink); }
@media (max-width: 1240px) { td small { display: block; } thead th { white-space: normal; } }
@media print { details > * { display: block; } .scroll { overflow: visible; } }
"""

_SERIES = "".join(f".chart .task.p{i}, .chart .other.p{i} {{ color: var(--t{i}); }}\n" for i in range(6))
_HEAT = "".join(f".h{i} {{ background: rgb(var(--heat) / {i / 12:.2f}); }}\n" for i in range(1, 11))
STYLE = _BASE + _SERIES + _HEAT
