"""The parts of the page about tasks: finding, figures, data, results, provenance; and runs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from probing.reporting.analyses import analyses_section
from probing.reporting.chart import figure
from probing.reporting.curves import loss_panel, score_panels
from probing.reporting.findings import Finding
from probing.reporting.markup import Markup, el, join, table
from probing.reporting.methods import methods_section
from probing.reporting.tables import confusion_table
from probing.reporting.task_results import NO_SITE, TaskResults, comparison, least_gain, score
from probing.reporting.warnings import column, described, example_of
from probing.reporting.wording import (
    count,
    decimal,
    interval,
    measure_title,
    p_title,
    plain,
    plural,
    with_interval,
)
from probing.results.probe import Comparison, MeasureResult, ProbeResult, Score

_OVERTURNED = {"not judged": "What a judgement needs"}
_BOX = {"selectively decodable": "box yes", "decodable": "box half"}


def task_section(
    task: TaskResults, found: Finding, anchor: str, use: Markup, *, long_table: bool, confusion: bool
) -> Markup:
    """Return the section on one task, with its results of use; long tables and confusion tables can be left out of
    pages that become too large.
    """
    parts = [
        el("h2", {"id": anchor}, task.title),
        el("p", {"class": "soft"}, f"States of {task.states}") if task.states not in task.title else "",
        _finding_box(found),
        _figures(task),
        use,
        results_table(task),
        _further_controls(task),
        confusion_table(task) if confusion else _left_out("The confusion table"),
        seen_table(task),
        analyses_section(task),
        facts_table(task),
        _long_table(task) if long_table else _left_out("The table of every measure and split"),
        methods_section(task),
        _provenance(task),
    ]
    return el("section", {"aria-labelledby": anchor}, *parts)


def _finding_box(found: Finding) -> Markup:
    return join(
        [
            el(
                "div",
                {"class": _BOX.get(found.status, "box")},
                el("p", {"class": "status"}, found.status),
                el("p", {"class": "sentence"}, found.sentence),
                el("p", None, el("strong", None, "What this does not show. "), found.does_not_show),
            ),
            _list("Further evidence", found.evidence),
            _list(_OVERTURNED.get(found.status, "What would overturn it"), found.overturned_by),
        ]
    )


def _list(title: str, lines: tuple[str, ...]) -> Markup:
    items = (el("li", None, line) for line in lines)
    return join([el("h3", None, title), el("ul", None, *items)]) if lines else Markup("")


def _figures(task: TaskResults) -> Markup:
    if not task.results:
        return Markup("")
    name = measure_title(task.primary)
    selectivity = f", {name} on the control task and their difference, the selectivity" if task.controls() else ""
    panels = score_panels(task)
    ceiling = any(curve.role == "ceiling" for panel in panels for curve in panel.curves)
    caption = [
        f"{_upper(name)} on test{selectivity}, over sites.",
        "Bands are 95 % intervals; dotted lines are baselines that read no hidden state.",
        "The dashed line is the control's ceiling: what memory of every key of train would reach there on average."
        if ceiling
        else "",
        "Hold the pointer over a mark for its numbers.",
    ]
    return join([figure(panels, task.title, " ".join(filter(None, caption))), _loss_figure(task)])


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _loss_figure(task: TaskResults) -> Markup:
    panel = loss_panel(task)
    if panel is None:
        return Markup("")
    caption = (
        "Log loss on test in bits per label, lower is better. The label entropy is what knowing nothing but the "
        "frequencies of the labels costs."
    )
    return figure([panel], task.title, caption)


def results_table(task: TaskResults) -> Markup:
    """Return a table of scores on test, with a row per site and probe: score, first control, selectivity, ceiling,
    second measure, gain; baselines come last.
    """
    control = next(iter(task.controls()), None)
    head = ["site", "probe", measure_title(task.primary)]
    head += [f"control: {control}", "selectivity", "control ceiling"] if control else []
    head += [_second_title(task.secondary)] if task.secondary else []
    gains = [gain for r in task.all if (gain := least_gain(score(r, task.primary)))]
    head += ["gain over baseline", "p alone", p_title(gains)] if gains else []
    best = task.best()
    rows = [_result_row(task, result, control, len(head)) for result in task.all]
    marked = next((i for i, result in enumerate(task.all) if result is best), None)
    chosen = f" The row in colour is the best on {task.chosen_on}." if best else ""
    return table(
        f"Results on test, with 95 % intervals; the gain is over the best baseline.{chosen}", head, rows, marked=marked
    )


def _second_title(measure: str) -> str:
    return "log loss, bits" if measure == "log_loss" else measure_title(measure)


def _result_row(task: TaskResults, result: ProbeResult, control: str | None, columns: int) -> list[Markup]:
    measured = score(result, task.primary)
    cells = [_row_head(result.site if result.site != NO_SITE else "baseline"), _text(result.probe)]
    cells.append(scored(measured.score if measured else None))
    if control is not None:
        against = comparison(measured, control)
        cells += [scored(against.score if against else None), scored(against.selectivity if against else None)]
        cells.append(_cell(decimal(against.ceiling if against else None)))
    if task.secondary:
        second = score(result, task.secondary)
        cells.append(scored(second.score if second else None))
    gain = least_gain(measured)
    if len(cells) < columns:
        p = (gain.p, gain.p_adjusted) if gain else (None, None)
        cells += [scored(gain.gain if gain else None), *(_cell(decimal(value)) for value in p)]
    return cells


def _row_head(text: object) -> Markup:
    return el("th", {"scope": "row"}, text)


def _cell(text: object) -> Markup:
    return el("td", None, text)


def _text(text: object) -> Markup:
    return el("td", {"class": "text"}, text)


def scored(found: Score | None) -> Markup:
    """Return a table cell with a number and its interval below it, or a dash if there is none."""
    return (
        _cell("–") if found is None else el("td", None, decimal(found.value), " ", el("small", None, interval(found)))
    )


def _further_controls(task: TaskResults) -> Markup:
    return join(
        _control_table(task, name, check=name in task.chance_checks())
        for name in (*task.controls()[1:], *task.chance_checks(), *task.state_controls())
    )


def _control_table(task: TaskResults, control: str, *, check: bool) -> Markup:
    found = [(result, comparison(score(result, task.primary), control)) for result in task.results]
    rows = [_control_row(result, against) for result, against in found if against]
    if (other := example_of(task, control)) is not None and other.above:
        head = ["site", "probe", "on those states", column(other)]
        return table(_upper(described(other)), head, (row[: len(head)] for row in rows), "results")
    if check:
        said = f"Chance check: {control}. The labels are permuted over rows; this is not selectivity."
        return table(said, ["site", "probe", "on permuted labels", "above it", "ceiling"], rows, "results")
    return table(
        f"A further control: {control}.", ["site", "probe", "control", "selectivity", "ceiling"], rows, "results"
    )


def _control_row(result: ProbeResult, against: Comparison) -> list[Markup]:
    numbers = [scored(against.score), scored(against.selectivity), _cell(decimal(against.ceiling))]
    return [_row_head(result.site), _text(result.probe), *numbers]


def seen_table(task: TaskResults) -> Markup:
    """Return a table of scores at the best layer, for the task and every control: on rows whose key occurs in train,
    and on the others.
    """
    best = task.best()
    measured = score(best, task.primary) if best else None
    if best is None or measured is None:
        return Markup("")
    rows: list[list[object]] = [
        [f"the task, {best.probe} at {best.site}", decimal(measured.seen), decimal(measured.unseen)]
    ]
    rows += [[f"control {c.control}", decimal(c.seen), decimal(c.unseen)] for c in measured.comparisons]
    for baseline in task.baselines:
        found = score(baseline, task.primary)
        rows += [[f"baseline {baseline.probe}", decimal(found.seen), decimal(found.unseen)]] if found else []
    kept = [row for row in rows if row[1:] != ["–", "–"]]
    name = measure_title(task.primary)
    caption = f"Seen and unseen keys: {name} on test rows whose key (word type) occurs in train or not."
    return table(caption, ["", "seen in train", "unseen"], kept) if kept else Markup("")


def facts_table(task: TaskResults) -> Markup:
    """Return a table of facts about the data: rows, classes, majority, entropy, overlap, and what was left out."""
    facts = dict(task.any.facts)
    rows = [[title, _fact(key, facts.pop(key), facts)] for key, title in _FACTS.items() if key in facts]
    rows += [[key.replace("_", " "), plain(value)] for key, value in facts.items() if key != "majority_label"]
    if not (rows := [row for row in rows if row[1] != "–"]):  # what this kind of task has not
        return Markup("")
    return join(
        [el("h3", None, "The data"), table("Facts of the labels and the corpus.", ["fact", "value"], rows, "facts")]
    )


_FACTS = {
    "level": "one row is",
    "rows": "rows",
    "sentences": "different sentences",
    "unit": "what is resampled",
    "unit_reason": "since",
    "clusters": "of these",
    "classes": "classes, in all splits",
    "majority": "majority label of train",
    "group_name": "groups are called",
    "shared_inputs": "inputs that train has, too, and others",
    "alone": "examples without a group",
    "entropy_bits": "label entropy of train, bits",
    "type_overlap": "share of test rows with a word type seen in train",
    "mean": "mean of the target in train",
    "std": "standard deviation of the target in train",
    "excluded": "rows left out, by reason",
    "duplicate_sentences": "sentences of dev and test whose text occurs in train",
    "unknown_pieces": "share of pieces that the tokenizer does not know",
    "one_label": "splits with one label only",
    "alike_labels": "labels that differ by case or white space alone",
    "conflicting_inputs": "test rows whose input occurs with another label",
}


_LEVELS = {"word": "a word", "sentence": "a sentence", "span": "a span of words", "pair": "a pair of words"}


def _fact(key: str, value: Any, facts: dict[str, Any]) -> str:
    if key == "majority" and facts.get("majority_label") is not None:
        return f"{facts['majority_label']}: {plain(value)} of the test rows"
    if key == "level":
        return _LEVELS.get(str(value), plain(value))
    return count(value)


def _long_table(task: TaskResults) -> Markup:
    head = ["site", "probe", "measure", "split", "value", "control", "control value", "selectivity", "ceiling", "n"]
    rows = [
        _long_row(result, measured, against)
        for result in task.all
        for measured in result.measures
        for against in (measured.comparisons or (None,))
    ]
    whole = table("One row per site, probe, measure, split and control.", head, rows, "results")
    return el("details", None, el("summary", None, f"Every measure and split ({plural(len(rows), 'row')})"), whole)


def _long_row(result: ProbeResult, measured: MeasureResult, against: Comparison | None) -> list[object]:
    head: list[object] = [result.site, _text(result.probe), measure_title(measured.measure), measured.split]
    head.append(f"{with_interval(measured.score)} {_unit(measured.score)}".strip())
    if against is None:
        return [*head, "–", "–", "–", "–", count(measured.score.n)]
    gap = with_interval(against.selectivity) + ("" if against.is_selectivity else f" ({_kind(against)})")
    return [
        *head,
        against.control,
        with_interval(against.score),
        gap,
        decimal(against.ceiling),
        count(measured.score.n),
    ]


def _kind(against: Comparison) -> str:
    return column(against) if against.above else "chance check"


def _unit(found: Score) -> str:
    return found.unit if found.unit == "bits" else ""


def _provenance(task: TaskResults) -> Markup:
    rows: list[list[object]] = [[key, _value(value)] for key, value in sorted(task.any.provenance.items())]
    rows += [["seeds", task.any.seed_count], ["draws", task.any.draw_count]]
    rows.append(["fits", sum(result.fit_count for result in task.all)])
    whole = table("Where these numbers come from.", ["field", "value"], rows, "facts")
    return el("details", None, el("summary", None, "Provenance and environment"), whole)


def _value(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, dict | list) else plain(value)


def _left_out(what: str) -> Markup:
    return el("p", {"class": "soft"}, f"{what} was left out to keep this page small; results.parquet holds all of it.")


_HEAD = ("states", "site", "probe", "score", "control", "selectivity", "gain over baseline", "finding")


def side_by_side(tasks: Sequence[TaskResults], findings: Sequence[Finding]) -> Markup:
    """Return a table that compares several runs of one task; each run has a row, at the site and probe that are best on
    dev.
    """
    both = list(zip(tasks, findings, strict=True))
    names = [task.task for task in tasks]
    several = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    tables = [_table(name, [one for one in both if one[0].task == name]) for name in several]
    return el("section", None, *tables) if tables else join([])


def _table(name: str, runs: Sequence[tuple[TaskResults, Finding]]) -> Markup:
    measures = ", ".join(dict.fromkeys(measure_title(task.primary) for task, _ in runs))
    caption = (
        f"{name} side by side: {measures} on test, with 95 % intervals, at the site and probe of each run that is best "
        "on dev. Runs are not compared by a test here: `probing compare` does, on the same rows."
    )
    return table(caption, _HEAD, [_row(task, found) for task, found in runs])


def _row(task: TaskResults, found: Finding) -> list[str | Markup]:
    best = task.best()
    measured = score(best, task.primary) if best else None
    against = comparison(measured, next(iter(task.controls()), None))
    gain = least_gain(measured)
    scores = [
        measured.score if measured else None,
        against.score if against else None,
        against.selectivity if against else None,
        gain.gain if gain else None,
    ]
    where = [best.site, best.probe] if best else ["–", "–"]
    return [task.states, *where, *map(scored, scores), found.status]
