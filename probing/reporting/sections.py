"""Makes the sections of the page: for each property its claims, a figure, tables, and folded details."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from probing.reporting.blocks import Figure, Fold, Kind, Number, Section, Table, Words, number
from probing.reporting.charts import described, panel_chart
from probing.reporting.features_sections import features_blocks, features_folds
from probing.reporting.findings import Finding, finding, judge
from probing.reporting.grids import HeatMap, confusion_map, map_chart, overview_chart
from probing.reporting.methods import bibtex, methods_paragraph, names_used
from probing.reporting.overview import Overview
from probing.reporting.panels import Panel, analysis_panels, chosen_result, loss_panel, quantities, score_panels
from probing.reporting.tables import summary_rows
from probing.reporting.task_results import NO_SITE, TaskResults, comparison, least_gain, score
from probing.reporting.use_panels import Use, use_panels
from probing.reporting.use_sections import use_folds, use_notes, use_table
from probing.reporting.use_words import (
    use_bibtex,
    use_paragraph,
)
from probing.reporting.warnings import column, example_of, warnings_of_task
from probing.reporting.warnings import described as described_control
from probing.reporting.wording import (
    CEILING,
    count,
    decimal,
    measure_title,
    p_title,
    p_value,
    plain,
    plural,
)
from probing.results.analysis import AnalysisResult
from probing.results.probe import ProbeResult
from probing.states.store.views import cut_at

_KINDS: dict[str, Kind] = {"selectively decodable": "yes", "decodable": "half"}


def task_section(task: TaskResults, uses: Sequence[Use], anchor: str, claims: Sequence[str]) -> Section:
    """Return the section of one task, with the results of edits of the same property."""
    found = finding(task)
    return Section(
        anchor,
        task.title,
        models=[task.states],
        about=": ".join(filter(None, (f"States of {task.states}" * (task.states not in task.title), task.model.build))),
        claims=claims,
        kind=_KINDS.get(found.status, ""),
        notes=[*warnings_of_task(task), *(note for use in uses for note in use_notes(use))],
        blocks=_in_view(task, uses),
        folds=[
            fold
            for fold in (
                *_task_folds(task, found),
                *features_folds(task.features),
                *_analyses(task),
                *(f for use in uses for f in use_folds(use, len(uses) > 1)),
                _methods(task, uses),
                _provenance(task),
            )
            if fold.blocks
        ],
    )


def map_section(anchor: str, title: str, maps: Sequence[HeatMap], caption: str, models: Sequence[str] = ()) -> Section:
    """Return a section of heat maps, such as those of patching."""
    figure = Figure([map_chart(one) for one in maps], "", ". ".join(one.description for one in maps))
    fold = Fold("The same numbers as tables", [map_table(one) for one in maps])
    return Section(anchor, title, models=models, blocks=[Words("p", [caption]), figure], folds=[fold])


def map_table(found: HeatMap) -> Table:
    """Return the numbers of a heat map as a table."""
    rows = [
        [name, *(decimal(value, 2) if math.isfinite(value) else "–" for value in values)]
        for name, values in zip(found.rows, found.values.tolist(), strict=True)
    ]
    of = f" {found.y_label.capitalize()} by {found.x_label}." if found.x_label and found.y_label else ""
    return Table(f"{found.title}: {found.label}.{of}", [found.y_label, *found.columns], rows, source="the data")


def overview_figure(found: Overview) -> list[tuple[str, Figure]]:
    """Return, for each model, its name and a figure of properties by sites."""
    shown = []
    for model in found.models:
        rows = [row for row in found.rows if row.model == model]
        description = f"{model}: " + "; ".join(f"{row.name}: {row.line}" for row in rows)
        shown.append((model, Figure([overview_chart(found, model)], "", description)))
    return shown


def _in_view(task: TaskResults, uses: Sequence[Use]) -> list[Table | Figure | Words]:
    panels = [panel for use in uses[:2] for panel in use_panels(use, beside=True)]
    first = score_panels(task, best=True)
    blocks: list[Table | Figure | Words] = []
    if first or panels:
        blocks.append(
            Figure(
                [panel_chart(panel) for panel in (*first, *panels)],
                _caption(first, uses),
                described((*first, *panels)),
            )
        )
    blocks.append(results_table(task))
    return [*blocks, *(use_table(use) for use in uses), *features_blocks(task.features, uses)]


def _caption(panels: Sequence[Panel], uses: Sequence[Use]) -> str:
    roles = {curve.role for panel in panels for curve in (*panel.curves, *panel.levels)}
    parts = ["Test rows; bands and bars are 95 % intervals."]
    parts += ["Dotted: baselines that read no state."] if "baseline" in roles else []
    parts += [f"Dashed, {CEILING}."] if "ceiling" in roles else []
    if uses:
        parts.append(f"Shaded: effects of no interest, within ±{uses[0].result.epsilon:g} SD.")
    return " ".join(parts)


def results_table(task: TaskResults) -> Table:
    """Return a table of test scores with a row for each site and probe, and for each baseline."""
    control = next(iter(task.controls()), None)
    has_gain = any(least_gain(score(result, task.primary)) for result in task.all)
    head = ["site", "probe", measure_title(task.primary)]
    has_ceiling = task.has_ceiling(control)
    head += ["control", *(["ceiling"] if has_ceiling else []), "selectivity"] if control else []
    head += ["gain over baseline", "finding"] if has_gain else []
    rows = [_result_row(task, result, control, has_ceiling, has_gain) for result in task.all]
    best = task.best()
    marked = next((i for i, result in enumerate(task.all) if result is best), None)
    chosen = f"; in colour the best on {task.chosen_on}" if best else ""
    of = f"; control: {control}" if control else ""
    texts = (0, 1, len(head) - 1) if has_gain else (0, 1)
    more = f"; {CEILING}" if has_ceiling else ""
    return Table(f"What probes read, with 95 % intervals{of}{chosen}{more}.", head, rows, texts, marked)


def _result_row(
    task: TaskResults, result: ProbeResult, control: str | None, has_ceiling: bool, has_gain: bool
) -> list[str | Number]:
    measured = score(result, task.primary)
    row: list[str | Number] = [result.site if result.site != NO_SITE else "baseline", result.probe]
    row.append(number(measured.score if measured else None))
    if control is not None:
        against = comparison(measured, control)
        row += [number(against.score if against else None)]
        row += [decimal(against.ceiling if against else None)] if has_ceiling else []
        row.append(number(against.selectivity if against else None))
    if has_gain:
        gain, outcome = least_gain(measured), judge(task, result) if result.site != NO_SITE else None
        row += [number(gain.gain if gain else None), outcome.status if outcome else "–"]
    return row


def _task_folds(task: TaskResults, found: Finding) -> list[Fold]:
    losses = [panel for panel in [loss_panel(task)] if panel]
    panels, loss = score_panels(task)[1:] + losses, f" {_LOSS}" if losses else ""
    others = (
        [Figure([panel_chart(panel) for panel in panels], _caption(panels, []) + loss, described(panels))]
        if task.results and panels
        else []
    )
    confusion = confusion_map(task)
    needs = "What a judgement needs" if found.status == "not judged" else "What would overturn it"
    return [
        Fold(
            "The finding in full",
            [
                Words("p", [found.sentence, found.does_not_show]),
                *([Words("ul", found.evidence)] if found.evidence else []),
            ],
        ),
        Fold(needs, [Words("ul", found.overturned_by)] if found.overturned_by else []),
        Fold("Other probes, controls and measures", [*others, *_further_tables(task)]),
        Fold("Confusions", [Figure([map_chart(confusion)], "", confusion.description)] if confusion else []),
        Fold("The data", [*_facts(task), *_seen(task)]),
    ]


_LOSS = (
    "Log loss in bits per label, lower is better; the label entropy is what knowing nothing but the frequencies of "
    "the labels costs."
)


def _further_tables(task: TaskResults) -> list[Table]:
    tables = [_measures_table(task)] if task.results or task.baselines else []
    for control in (*task.controls()[1:], *task.chance_checks(), *task.state_controls()):
        found = [(result, comparison(score(result, task.primary), control)) for result in task.results]
        has_ceiling = task.has_ceiling(control)
        rows: list[list[str | Number]] = [
            [
                *(result.site, result.probe, number(against.score), number(against.selectivity)),
                *([decimal(against.ceiling)] if has_ceiling else []),
            ]
            for result, against in found
            if against
        ]
        said, head = _control_words(task, control)
        if has_ceiling:
            said, head = f"{said.removesuffix('.')}; {CEILING}.", [*head, "ceiling"]
        tables.append(Table(said, head, rows, (0, 1)))
    return tables


def _control_words(task: TaskResults, control: str) -> tuple[str, list[str]]:
    other = example_of(task, control)
    if other is not None and other.above:
        said = described_control(other)
        return said[:1].upper() + said[1:], ["site", "probe", "on those states", column(other)]
    if control in task.chance_checks():
        said = f"Chance check: {control}. The labels are permuted over rows; this is not selectivity."
        return said, ["site", "probe", "on permuted labels", "above it"]
    return f"A further control: {control}.", ["site", "probe", "control", "selectivity"]


def _measures_table(task: TaskResults) -> Table:
    """Return every measure on test by site and probe, and the p values of gains."""
    names = list(dict.fromkeys(m.measure for result in task.all for m in result.measures))
    gains = [gain for result in task.all if (gain := least_gain(score(result, task.primary)))]
    head = ["site", "probe", *(f"{measure_title(name)}{', bits' if name == 'log_loss' else ''}" for name in names)]
    head += ["p alone", p_title(gains)] if gains else []
    rows: list[list[str | Number]] = []
    for result in task.all:
        found = [score(result, name) for name in names]
        row: list[str | Number] = [result.site if result.site != NO_SITE else "baseline", result.probe]
        row += [number(one.score if one else None) for one in found]
        if gains:
            gain = least_gain(score(result, task.primary))
            row += [p_value(gain.p), p_value(gain.p_adjusted)] if gain else ["–", "–"]
        rows.append(row)
    return Table("Every measure on test. Dev and every draw are in results.parquet.", head, rows, (0, 1))


def _seen(task: TaskResults) -> list[Table]:
    best = task.best()
    measured = score(best, task.primary) if best else None
    if best is None or measured is None:
        return []
    rows = [[f"the task, {best.probe} at {best.site}", decimal(measured.seen), decimal(measured.unseen)]]
    rows += [[f"control {c.control}", decimal(c.seen), decimal(c.unseen)] for c in measured.comparisons]
    for baseline in task.baselines:
        found = score(baseline, task.primary)
        rows += [[f"baseline {baseline.probe}", decimal(found.seen), decimal(found.unseen)]] if found else []
    kept = [row for row in rows if row[1:] != ["–", "–"]]
    said = f"{measure_title(task.primary)} on test rows whose key (word type) occurs in train, or not."
    return [Table(said, ["", "seen in train", "unseen"], kept)] if kept else []


def _facts(task: TaskResults) -> list[Table]:
    facts = dict(task.any.facts)
    if task.kind == "real":
        facts = {key: value for key, value in facts.items() if key not in ("classes", "unseen_classes")}
    rows = [[title, _fact(key, facts.pop(key), facts)] for key, title in _FACTS.items() if key in facts]
    rows += [[key.replace("_", " "), plain(value)] for key, value in facts.items() if key != "majority_label"]
    rows = [row for row in rows if row[1] != "–"]  # what this kind of task has not
    return [Table("Facts of the labels and the corpus.", ["fact", "value"], rows, (0, 1))] if rows else []


_FACTS = {
    "level": "one row is",
    "rows": "rows",
    "sentences": "different sentences",
    "unit": "what is resampled",
    "unit_reason": "since",
    "clusters": "of these",
    "classes": "classes, in all splits",
    "unseen_classes": "of these in dev or test and not in train",
    "unseen_rows": "test rows with such a class",
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
    "cut_inputs": "inputs longer than the model reads",
    "width": "coordinates of a state, at the widest site",
    "outlier": "value far from all others",
    "odd_numbers": "numbers taken as classes",
    "merged_values": "classes written both as numbers and as strings",
    "one_label": "splits with one label only",
    "alike_labels": "labels that differ by case or white space alone",
    "conflicting_inputs": "test rows whose input occurs with another label",
}
_LEVELS = {"word": "a word", "sentence": "a sentence", "span": "a span of words", "pair": "a pair of words"}


def _fact(key: str, value: Any, facts: dict[str, Any]) -> str:
    if key == "majority" and facts.get("majority_label") is not None:
        return f"{facts['majority_label']}: {plain(value)} of the test rows"
    if key == "cut_inputs":
        return f"{plural(value.get('inputs', 0), 'input')} cut{cut_at(value.get('tokens'))}"
    if key == "level":
        return _LEVELS.get(str(value), plain(value))
    return count(value)


def _analyses(task: TaskResults) -> list[Fold]:
    return [_analysis(task, *key, results) for key, results in task.analyses_by_kind().items()]


def _analysis(task: TaskResults, name: str, probe: str, results: list[AnalysisResult]) -> Fold:
    panels = analysis_panels(task, results)
    chosen = chosen_result(task, results)
    along = f" What is drawn along another axis than sites is at {chosen.site}, the best site on {task.chosen_on}."
    said = f"Bands are 95 % intervals where they were computed.{along if any(quantities([chosen], along=True)) else ''}"
    figures = [Figure([panel_chart(panel) for panel in panels], said, described(panels))] if panels else []
    head = ["site", "quantity", "value", "unit", "controls"]
    table = Table(
        "Every quantity; controls by their mean over draws.",
        head,
        summary_rows(results),
        (0, 1, 3, 4),
        source="analyses.jsonl",
    )
    return Fold(f"{name.replace('_', ' ')}: {probe}", [*figures, table])


def _methods(task: TaskResults, uses: Sequence[Use]) -> Fold:
    said = [methods_paragraph(task), *(use_paragraph(use.result) for use in uses)]
    papers = [bibtex(names_used(task)), *(use_bibtex(use.result) for use in uses)]
    cited = list(dict.fromkeys(entry for text in papers for entry in text.split("\n\n")))
    return Fold("Methods and papers", [Words("p", said), Words("pre", ["\n\n".join(cited)])])


def _provenance(task: TaskResults) -> Fold:
    rows = [[key, _value(value)] for key, value in sorted(task.any.provenance.items())]
    rows += [["seeds", str(task.any.seed_count)], ["draws", str(task.any.draw_count)]]
    rows.append(["fits", str(sum(result.fit_count for result in task.all))])
    return Fold(
        "Provenance and environment", [Table("Where these numbers come from.", ["field", "value"], rows, (0, 1))]
    )


def _value(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, dict | list) else plain(value)


def side_by_side(tasks: Iterable[TaskResults]) -> list[Table]:
    """Return a table for each task that was run several times in one model with different settings; a row shows a run
    at the site and probe that are best on dev.
    """
    listed = list(tasks)
    names = [task.task for task in listed]
    models = {name: len({task.model.model for task in listed if task.task == name}) for name in names}
    several = [name for name in dict.fromkeys(names) if names.count(name) > models[name]]
    return [_runs_table(name, [task for task in listed if task.task == name]) for name in several]


def _runs_table(name: str, runs: Sequence[TaskResults]) -> Table:
    said = (
        f"{name} side by side: each run at the site and probe that are best on dev. Runs are not compared by a test "
        "here: `probing compare` does, on the same rows."
    )
    head = ["states", "site", "probe", "score", "control", "selectivity", "gain over baseline", "finding"]
    return Table(said, head, [_run_row(task) for task in runs], (0, 1, 2, 7))


def _run_row(task: TaskResults) -> list[str | Number]:
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
    return [task.states, *where, *map(number, scores), finding(task).status]
