"""The self-contained page: a single file without network or script that opens from disk."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from probing.reporting.findings import Finding, finding
from probing.reporting.heat_map import HeatMap, maps_section
from probing.reporting.markup import Markup, el, join
from probing.reporting.run_names import model_of
from probing.reporting.sections import task_section
from probing.reporting.side_by_side import side_by_side
from probing.reporting.style import STYLE
from probing.reporting.task_results import TaskResults, by_task
from probing.reporting.use_curves import Use, uses
from probing.reporting.use_sections import USE_READING, use_section, use_sections
from probing.reporting.wording import plural
from probing.results.analysis import AnalysisResult
from probing.results.failures import Failure
from probing.results.probe import ProbeResult
from probing.verdicts.use_run import UseRun

MAX_BYTES = 3_000_000


def page(
    results: Sequence[ProbeResult],
    analyses: Sequence[AnalysisResult] = (),
    failures: Sequence[Failure] = (),
    use: UseRun | None = None,
    maps: Sequence[HeatMap] = (),
) -> bytes:
    """Return the whole page, less than 3 MB: of many tasks and sites the widest tables are left out, and the page says
    so.

    `failures`: what is not among the results, shown first. `use`: what edits did, beside what probes read.
    `maps`: of patching.
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
