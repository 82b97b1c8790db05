"""Makes the sections of the page: for each property its claims, a figure, tables, and folded details."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from probing.reporting.blocks import (
    Block,
    Cell,
    Figure,
    Fold,
    Kind,
    Section,
    Table,
    Words,
    maps_figure,
    number,
    panels_figure,
)
from probing.reporting.features_sections import features_blocks, features_folds
from probing.reporting.findings import Finding, finding, judge
from probing.reporting.grids import confusion_map, overview_chart
from probing.reporting.methods import bibtex, methods_paragraph, names_used
from probing.reporting.overview import Overview
from probing.reporting.panels import Panel, analysis_panels, chosen_result, loss_panel, quantities, score_panels
from probing.reporting.tables import summary_rows
from probing.reporting.task_results import NO_SITE, ScoresOnTest, TaskResults, least_gain, place_of, score
from probing.reporting.use_panels import Use, use_panels
from probing.reporting.use_sections import use_folds, use_notes, use_table
from probing.reporting.use_words import use_bibtex, use_paragraph
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
    sentence_case,
)
from probing.results.analysis import AnalysisResult
from probing.states.store.views import cut_at

_KINDS: dict[str, Kind] = {"selectively decodable": "yes", "decodable": "half"}


def task_section(task: TaskResults, uses: Sequence[Use], anchor: str, claims: Sequence[str]) -> Section:
    """Return the section of one task, with the results of edits of the same property."""
    found = finding(task)
    folds = [
        *_task_folds(task, found),
        *features_folds(task.features),
        *(_analysis(task, *key, results) for key, results in task.analyses_by_kind().items()),
        *(fold for use in uses for fold in use_folds(use, len(uses) > 1)),
        _methods(task, uses),
        _provenance(task),
    ]
    return Section(
        anchor,
        task.title,
        models=[task.states],
        about=": ".join(filter(None, (f"States of {task.states}" * (task.states not in task.title), task.model.build))),
        claims=claims,
        kind=_KINDS.get(found.status, ""),
        notes=[*warnings_of_task(task), *(note for use in uses for note in use_notes(use))],
        blocks=_in_view(task, uses),
        folds=[fold for fold in folds if fold.blocks],
    )


def overview_figure(found: Overview) -> list[tuple[str, Figure]]:
    """Return, for each model, its name and a figure of properties by sites."""
    shown = []
    for model in found.models:
        rows = [row for row in found.rows if row.model == model]
        description = f"{model}: " + "; ".join(f"{row.name}: {row.line}" for row in rows)
        shown.append((model, Figure([overview_chart(found, model)], "", description)))
    return shown


def _in_view(task: TaskResults, uses: Sequence[Use]) -> list[Block]:
    panels = [panel for use in uses[:2] for panel in use_panels(use, beside=True)]
    first = score_panels(task, best=True)
    blocks: list[Block] = [panels_figure([*first, *panels], _caption(first, uses))] if first or panels else []
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
    names, best = task.columns(), task.best()
    heads = {"score": measure_title(task.primary), "gain": "gain over baseline"}
    first = ["site", "finding", "probe"] if "gain" in names else ["site", "probe"]
    rows: list[list[Cell]] = []
    for result in task.all:
        outcome = judge(task, result) if "gain" in names and result.site != NO_SITE else None
        words = {"site": place_of(result), "finding": outcome.status if outcome else "–", "probe": result.probe}
        rows.append([*(words[name] for name in first), *_cells(task.on_test(result), names)])
    of = f"; control: {task.controls()[0]}" if task.controls() else ""
    said = f"What probes read, with 95 % intervals{of}{f'; in colour the best on {task.chosen_on}' if best else ''}"
    said += f"; {CEILING}." if "ceiling" in names else "."
    marked = next((i for i, result in enumerate(task.all) if result is best), None)
    return Table(said, [*first, *(heads.get(name, name) for name in names)], rows, range(len(first)), marked)


def _cells(scores: ScoresOnTest, names: Iterable[str]) -> list[Cell]:
    """Return scores as cells of a table, with intervals; a ceiling has none."""
    return [decimal(scores.ceiling) if name == "ceiling" else number(getattr(scores, name)) for name in names]


def _task_folds(task: TaskResults, found: Finding) -> list[Fold]:
    losses = [panel for panel in [loss_panel(task)] if panel]
    panels, loss = score_panels(task)[1:] + losses, f" {_LOSS}" if losses else ""
    others = [panels_figure(panels, _caption(panels, []) + loss)] if task.results and panels else []
    confusion = confusion_map(task)
    needs = "What a judgement needs" if found.status == "not judged" else "What would overturn it"
    in_full = Words("p", [found.sentence, found.does_not_show])
    return [
        Fold("The finding in full", [in_full, *([Words("ul", found.evidence)] if found.evidence else [])]),
        Fold(needs, [Words("ul", found.overturned_by)] if found.overturned_by else []),
        Fold("Other probes, controls and measures", [*others, *_further_tables(task)]),
        Fold("Confusions", [maps_figure([confusion])] if confusion else []),
        Fold("The data", [*_facts(task), *_seen(task)]),
    ]


_LOSS = (
    "Log loss in bits per label, lower is better; the label entropy is what knowing nothing but the frequencies of "
    "the labels costs."
)


def _further_tables(task: TaskResults) -> list[Table]:
    tables = [_measures_table(task)] if task.results or task.baselines else []
    for control in (*task.controls()[1:], *task.chance_checks(), *task.state_controls()):
        said, head = _control_words(task, control)
        names = ["control", "selectivity"]
        if "ceiling" in task.columns(control):
            said, head, names = f"{said.removesuffix('.')}; {CEILING}.", [*head, "ceiling"], [*names, "ceiling"]
        known = [(result, task.on_test(result, control)) for result in task.results]
        rows: list[list[Cell]] = [
            [one.site, one.probe, *_cells(scores, names)] for one, scores in known if scores.control is not None
        ]
        tables.append(Table(said, head, rows, (0, 1)))
    return tables


def _control_words(task: TaskResults, control: str) -> tuple[str, list[str]]:
    other = example_of(task, control)
    if other is not None and other.above:
        return sentence_case(described_control(other)), ["site", "probe", "on those states", column(other)]
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
    rows: list[list[Cell]] = []
    for result in task.all:
        found = [score(result, name) for name in names]
        row: list[Cell] = [place_of(result), result.probe]
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
    "alike_inputs": "test rows whose text is not in train, and whose tokens are",
    "width": "coordinates of a state, at the widest site",
    "outlier": "value far from all others",
    "odd_numbers": "numbers taken as classes",
    "merged_values": "classes written both as numbers and as strings",
    "one_label": "splits with one label only",
    "lone_label": "splits with a single row, sentence or group of a label",
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


def _analysis(task: TaskResults, name: str, probe: str, results: list[AnalysisResult]) -> Fold:
    panels = analysis_panels(task, results)
    chosen = chosen_result(task, results)
    along = f" What is drawn along another axis than sites is at {chosen.site}, the best site on {task.chosen_on}."
    said = f"Bands are 95 % intervals where they were computed.{along if any(quantities([chosen], along=True)) else ''}"
    figures = [panels_figure(panels, said)] if panels else []
    said, head = "Every quantity; controls by their mean over draws.", ["site", "quantity", "value", "unit", "controls"]
    table = Table(said, head, summary_rows(results), (0, 1, 3, 4), source="analyses.jsonl")
    return Fold(f"{name.replace('_', ' ')}: {probe}", [*figures, table])


def _methods(task: TaskResults, uses: Sequence[Use]) -> Fold:
    said = [methods_paragraph(task), *(use_paragraph(use.result) for use in uses)]
    papers = [bibtex(names_used(task)), *(use_bibtex(use.result) for use in uses)]
    cited = list(dict.fromkeys(entry for text in papers for entry in text.split("\n\n")))
    return Fold("Methods and papers", [Words("p", said), Words("pre", ["\n\n".join(cited)])])


def _provenance(task: TaskResults) -> Fold:
    rows = []
    for key, value in sorted(task.any.provenance.items()):
        nested = json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, dict | list) else ""
        rows.append([key, nested or plain(value)])
    rows += [["seeds", str(task.any.seed_count)], ["draws", str(task.any.draw_count)]]
    rows.append(["fits", str(sum(result.fit_count for result in task.all))])
    table = Table("Where these numbers come from.", ["field", "value"], rows, (0, 1))
    return Fold("Provenance and environment", [table])


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
    rows: list[list[Cell]] = []
    for task in runs:
        best = task.best()
        where = [best.site, best.probe] if best else ["–", "–"]
        scores = _cells(task.on_test(best), ("score", "control", "selectivity", "gain"))
        rows.append([task.states, finding(task).status, *where, *scores])
    head = ["states", "finding", "site", "probe", "score", "control", "selectivity", "gain over baseline"]
    return Table(said, head, rows, range(4))
