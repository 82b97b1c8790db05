"""The self-contained page and its style: one file without network or script that opens from disk."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from probing.reporting.curves import Use, uses
from probing.reporting.findings import Finding, finding
from probing.reporting.heat_map import HeatMap, maps_section
from probing.reporting.markup import Markup, el, join
from probing.reporting.sections import side_by_side, task_section
from probing.reporting.task_results import TaskResults, by_task, model_of
from probing.reporting.use_sections import USE_READING, use_section, use_sections
from probing.reporting.wording import plural
from probing.results.analysis import AnalysisResult
from probing.results.failures import Failure
from probing.results.probe import ProbeResult
from probing.verdicts.use_run import UseRun

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


MAX_BYTES = 3_000_000


def page(
    results: Sequence[ProbeResult],
    analyses: Sequence[AnalysisResult] = (),
    failures: Sequence[Failure] = (),
    use: UseRun | None = None,
    maps: Sequence[HeatMap] = (),
) -> bytes:
    """Return the whole page, smaller than 3 MB; if there are many tasks and sites, the widest tables are left out, and
    the page says so.

    `failures` lists what failed and is shown first; `use` holds the effects of edits, shown beside the results of
    probes; `maps` holds heat maps of patching.
    """
    tasks = by_task(results, analyses)
    findings = [finding(task) for task in tasks]
    for long_table, confusion in ((True, True), (False, True), (False, False)):
        options = {"long_table": long_table, "confusion": confusion}
        document = _document(tasks, findings, failures, uses(use), maps, **options).encode()
        if len(document) < MAX_BYTES:
            break
    return document


def _document(
    tasks: list[TaskResults],
    findings: list[Finding],
    failures: Sequence[Failure],
    found_use: list[Use],
    maps: Sequence[HeatMap],
    *,
    long_table: bool,
    confusion: bool,
) -> Markup:
    beside, alone = _placed(tasks, found_use)
    sections = [
        task_section(
            task, found, f"task-{i}", use_sections(of_task, whole=confusion), long_table=long_table, confusion=confusion
        )
        for i, (task, found, of_task) in enumerate(zip(tasks, findings, beside, strict=True), start=1)
    ]
    for i, use in enumerate(alone, start=1):
        sections.append(el("section", None, use_section(use, anchor=f"use-{i}", whole=confusion)))
    entries = _entries(tasks, findings, beside, alone)
    entries += [("patching", "Patching", plural(len(maps), "heat map"))] if maps else []
    main = el(
        "main",
        None,
        _header(tasks, found_use),
        _failed(failures),
        _contents(entries),
        side_by_side(tasks, findings),
        *sections,
        maps_section(maps, "patching"),
        *([_reading(found_use), _limits()] if tasks or found_use else []),
    )
    return join(
        [
            Markup("<!DOCTYPE html>\n"),
            el("html", {"lang": "en"}, _head([name for _, name, _ in entries]), el("body", None, main)),
            Markup("\n"),
        ]
    )


def _placed(tasks: list[TaskResults], found_use: list[Use]) -> tuple[list[list[Use]], list[Use]]:
    """Return for each task the results of use that are shown in its section, and the results that get their own."""
    beside: list[list[Use]] = [[] for _ in tasks]
    alone: list[Use] = []
    for use in found_use:
        of_task = [i for i, task in enumerate(tasks) if task.task == use.result.task]
        of_model = [i for i in of_task if model_of(tasks[i].any) == use.result.model]
        places = of_model or (of_task if len(of_task) == 1 else [])
        (beside[places[0]] if places else alone).append(use)
    return beside, alone


def _entries(
    tasks: list[TaskResults], findings: list[Finding], beside: list[list[Use]], alone: list[Use]
) -> list[tuple[str, str, str]]:
    """Return anchor, title and finding of each section."""
    told = []
    for i, (task, found, of_task) in enumerate(zip(tasks, findings, beside, strict=True), start=1):
        told.append((f"task-{i}", task.title, "; ".join([found.status, *(u.summary for u in of_task)])))
    return told + [(f"use-{i}", f"{u.result.task}: use", u.summary) for i, u in enumerate(alone, start=1)]


def _head(names: Sequence[str]) -> Markup:
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return el(
        "head",
        None,
        el("meta", {"charset": "utf-8"}),
        el("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        el("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        el("title", None, f"Probing report: {', '.join(names)}"),
        el("style", None, Markup(STYLE)),
    )


def _header(tasks: list[TaskResults], found_use: list[Use]) -> Markup:
    named = {model_of(task.any) for task in tasks}
    models = sorted({_model(task) for task in tasks} | {u.result.model for u in found_use} - named)
    names = {task.task for task in tasks} | {u.result.task for u in found_use}
    fingerprints = sorted({str(f)[:12] for t in tasks if (f := t.any.provenance.get("corpus_fingerprint"))})
    about = (
        [f"{'Models' if len(models) > 1 else 'Model'}: {'; '.join(models)}", plural(len(names), "task")]
        if names
        else []
    )
    about += [f"corpus {', '.join(fingerprints)}"] if fingerprints else []
    if any(_is_unknown(task) for task in tasks):
        about.append("How the imported states were computed is not known")
    title = "What can be decoded from hidden states" if names else "Where a difference between prompts travels"
    title += ", and what the model uses" if found_use else ""
    return el("header", None, el("h1", None, title), el("p", {"class": "soft"}, " · ".join(about)))


def _failed(failures: Sequence[Failure]) -> Markup:
    if not failures:
        return Markup("")
    items = (
        el("li", None, el("strong", None, one.name), el("pre", None, f"{one.error}: {one.text}")) for one in failures
    )
    said = f"This report is not complete: {plural(len(failures), 'task')} failed."
    return el("section", {"class": "box"}, el("p", {"class": "status"}, said), el("ul", None, *items))


def _model(task: TaskResults) -> str:
    identity = task.any.provenance.get("model_identity")
    return model_of(task.any) + (f" (identity {str(identity)[:12]})" if identity else "")


def _is_unknown(task: TaskResults) -> bool:
    imported = task.any.provenance.get("imported")
    return isinstance(imported, dict) and imported.get("provenance") == "unknown"


def _contents(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """Return links to anchors, with the findings beside them; `entries` are anchors, titles and findings."""
    if len(entries) < 2:
        return Markup("")
    links = [el("li", None, el("a", {"href": f"#{anchor}"}, title), f": {said}") for anchor, title, said in entries]
    links += [el("li", None, el("a", {"href": f"#{anchor}"}, title)) for anchor, title in _CLOSING]
    return el("nav", {"aria-label": "Contents"}, el("ul", None, *links))


_CLOSING = (("reading", "How to read this"), ("limits", "What these numbers do not show"))

_READING = (
    (
        "Site",
        "where in the model the state was read. resid.l enters block l; the last one leaves the last block, "
        "before any final norm; embed is the embedding of the piece alone.",
    ),
    (
        "Baselines",
        "prior knows only how frequent the labels are; word_type gives each word the label it most often has "
        "in train; of whole texts, text_length knows how long they are, bag_of_words and tfidf which words they have. "
        "None reads a hidden state, so a claim about states has to beat the best of them.",
    ),
    (
        "Control task",
        "the same rows, classes and splits, with labels that mean nothing: each key (a word type, or the "
        "field named) drew its label by lot. A probe can be good at it only by memorising keys. Its ceiling is "
        "what memory of every key of train would reach there on average: below 1, because the labels of keys that do "
        "not occur in train have to be guessed. It is about the control alone, not about the task or its baselines.",
    ),
    (
        "Selectivity",
        "the score on the task less the score on the control task, for the same probe, site, split and "
        "budget. A large one says that the probe's success is not memory for keys.",
    ),
    ("Chance check", "labels permuted over rows. It should land at the majority rate; it is never called selectivity."),
    (
        "Other states",
        "the same labels, read from states that lack something: random_states (which word it is, and "
        "nothing else), untrained_model (the architecture without its training), static (a lower site, without the "
        "context that blocks mix in). What a site scores above them is what it adds; it is never called selectivity, "
        "since no label became meaningless.",
    ),
    (
        "Gain",
        "the score less that of the best baseline, on the same rows, paired. The p value is one-sided, against "
        "the margin, and adjusted over the sites, probes, baselines and tasks of the study: by Holm (the chance of any "
        "false claim), or by Benjamini and Hochberg (the share of false claims), as the column says. Intervals of "
        "selectivity are not adjusted.",
    ),
    (
        "Intervals",
        "95 %, from resampling whole sentences (or documents), with the seeds of the probe and the draws of "
        "the control.",
    ),
    (
        "Decodable",
        "at the site and probe that score best on dev, the gain over the best baseline on test clears the "
        "margin (0.02 of accuracy) with a one-sided adjusted p of at most 0.025. Selectively decodable: the interval "
        "of selectivity also lies above 0, for every control.",
    ),
)

_LIMITS = (
    "Decodability is a property of a state together with a family of readers. It does not show that the model itself "
    "reads the label from there, or needs it, for anything it does; that takes interventions on the states.",
    "A higher score at one site than at another does not show that the label is computed there: it can have become "
    "easier to read, or been carried along.",
    "A task that is not decodable by these probes can be decodable by others: absence of evidence here has a size, "
    "which the interval gives.",
    "A control task rules out only what it is keyed on. Other regularities that come with the label (position, length, "
    "neighbouring words) can still be what the probe reads.",
    "The figures hold for this corpus and its annotation. The best site is chosen among those probed, on dev.",
)


def _reading(found_use: list[Use]) -> Markup:
    told = _READING + (USE_READING if found_use else ())
    items = (el("li", None, el("strong", None, name), f": {text}") for name, text in told)
    return el("section", None, el("h2", {"id": "reading"}, _CLOSING[0][1]), el("ul", None, *items))


def _limits() -> Markup:
    items = (el("li", None, text) for text in _LIMITS)
    return el("section", None, el("h2", {"id": "limits"}, _CLOSING[1][1]), el("ul", None, *items))
