"""Probes beside control tasks on a store's states, giving ProbeResults."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sklearn.base import BaseEstimator

from probing.contracts import Control, Measure, Probe, Task
from probing.corpus import SPLITS, Corpus
from probing.design import Labels
from probing.errors import NonFiniteStates
from probing.probes.sklearn import SklearnProbe, SklearnRegressorProbe
from probing.provenance import digest
from probing.records import ProbeResult
from probing.store import Store
from probing.training.plan import Plan, make_plan, recipe_of
from probing.training.results import NO_SITE, ProbeResults, adjusted
from probing.training.scoring import ControlScores, Scores, measure_results, predict, score_label_set
from probing.training.units import commit_unit, load_unit

States = Mapping[str, Any]  # by split: arrays (N, D), or Pieces


def train(
    store: Store | str | Path,
    corpus: Corpus,
    *,
    task: str | Task,
    probes: Sequence[str | BaseEstimator] | None = None,
    controls: Sequence[str | Control] | None = None,
    measures: Sequence[str | Measure] | None = None,
    seeds: int = 1,
    root_seed: int = 0,
    sites: str | Sequence[str] = "*",
    cluster: str = "sentence",
    rows: str | None = None,
    to: str | Path | None = None,
    progress: bool = True,
) -> ProbeResults:
    """Fit every probe at every site on the task and on every draw of every control, and score all of it.

    Probes learn from train, stop early by dev, and are scored on dev (for choosing a site) and on test. The task and
    its controls get the same probe, budget and seeds. The baselines `prior`, for words `word_type`, and for sentences
    `text_length`, `bag_of_words` and `tfidf` are always fitted, with site "(none)", and every probe's gain over each is
    given.

    Args:
        store: the states, or the directory of a store.
        corpus: the corpus the store was made from, with its labels.
        task: a task or its name, e.g. `upos` or `feature:Number`.
        probes: probes, scikit-learn estimators or recipes such as `mlp:hidden=64` (default: linear; ridge for a
            real-valued target).
        controls: controls or recipes such as `word_type:draws=5` (default: word_type for words; for sentences
            shuffled_labels, a chance check, since only the caller knows what key sentences share).
        measures: default: accuracy, macro_f1 and log_loss, or r2 and spearman.
        seeds: fits of each stochastic probe.
        root_seed: root of every random draw.
        sites: patterns of sites of the store.
        cluster: what is resampled for intervals: `sentence` or `document`.
        rows: how the rows of a piece store are pooled, e.g. `word:last` (default: the mean).
        to: folder for results.jsonl, results.parquet, fitted probes, and units by which a killed run resumes.
        progress: whether to show a bar on standard error, if that is a terminal.

    Raises:
        ProvenanceMismatch: the store was made from another corpus.
        DegenerateDesign: labels from which nothing can be learned.
        NonFiniteStates: NaN or infinite states, with site and rows.
        UnknownName, BadParameter: names and parameters.
    """
    opened = store if not isinstance(store, str | Path) else Store.open(store)
    plan = make_plan(
        opened, corpus, task=task, probes=probes, controls=controls, measures=measures, seeds=seeds,
        root_seed=root_seed, sites=sites, cluster=cluster, rows=rows,
    )  # fmt: skip
    folder = Path(to) if to is not None else None
    results = adjusted(_results(plan, folder, progress=progress))
    if folder is None:
        return results
    results.write(folder)
    return results.adjusted_in(folder)


def _results(plan: Plan, folder: Path | None, *, progress: bool) -> list[ProbeResult]:
    """Results of all units in order: loaded where committed, else fitted. Each site is read once."""
    units = plan.units()
    found = [load_unit(folder, unit_id(plan, *unit)) for unit in units]
    baselines = {} if None not in found else _baseline_scores(plan)
    with _bar(len(units), plan.task, shown=progress) as advance:
        for site, members in groupby(range(len(units)), key=lambda index: units[index][0]):
            missing = [index for index in members if found[index] is None]
            states = _states(plan, site) if missing and site != NO_SITE else {}
            for index in missing:
                _, name, probe = units[index]
                advance(0, f"{site} {name}")
                here = _pieces(plan, site) if probe.reads == "pieces" else states or _stateless(plan, probe)
                found[index] = _fitted(plan, units[index], here, {} if site == NO_SITE else baselines, folder)
                advance(1, f"{site} {name}")
    return [result for result in found if result is not None]


def unit_id(plan: Plan, site: str, name: str, probe: Probe) -> str:
    """Hash of everything that determines one result."""
    return digest([recipe_of(plan, site, name, probe), dict(plan.provenance)])


def _states(plan: Plan, site: str) -> States:
    """States `(N, D)` of one site by split.

    Raises:
        NonFiniteStates: with site and the first rows.
    """
    labels = plan.labels
    states = {split: plan.store.read(site, labels.row[labels.rows(split)]) for split in SPLITS}
    for split, X in states.items():
        bad = np.flatnonzero(~np.isfinite(X.sum(axis=1, dtype=np.float64)))
        if len(bad):
            rows = labels.row[labels.rows(split)][bad[:5]].tolist()
            raise NonFiniteStates(
                "states that are not finite", needed="finite states", found=f"{len(bad)} rows with NaN or infinity",
                where=f"site {site}, {split}, rows {', '.join(map(str, rows))}",
                next_step="leave the site out, or extract again in float32",
            )  # fmt: skip
    return states


def _pieces(plan: Plan, site: str) -> States:
    """All pieces of the rows at one site, by split; `make_plan` has seen to it that the store has them."""
    labels = plan.labels
    store: Any = plan.store
    return {split: store.pieces(site, labels.row[labels.rows(split)]) for split in SPLITS}


def _stateless(plan: Plan, probe: Probe) -> States:
    """What a baseline reads, by split, `(N, 1)`: its key's codes or strings, or nothing (zeros)."""
    labels = plan.labels
    read: NDArray[Any] = np.zeros(len(labels))
    if probe.reads in labels.keys:
        codes = labels.keys[probe.reads]
        names = labels.key_names[probe.reads]
        read = np.array(names, dtype=object)[codes] if probe.reads_names else codes.astype(np.float64)
    return {split: read[labels.rows(split)][:, None] for split in SPLITS}


def _baseline_scores(plan: Plan) -> dict[str, Scores]:
    """Scores of the baselines on the task, for the gains over them."""
    scores: dict[str, Scores] = {}
    for name, probe in plan.baselines.items():
        states = _stateless(plan, probe)
        (fits,) = _fits(plan, probe, states, (plan.labels,))
        scores[name] = score_label_set(
            fits, plan.labels, states, plan.measures_for(probe), plan.resamplers, seen=plan.seen
        )
    return scores


def _fits(plan: Plan, probe: Probe, states: States, label_sets: Sequence[Labels]) -> list[list[Probe]]:
    """Fits by label set and seed: one seed if the probe is deterministic."""
    seeds = plan.seeds if probe.stochastic else plan.seeds[:1]
    train, dev = ([labels.y[labels.rows(split)] for labels in label_sets] for split in ("train", "dev"))
    return probe.fit_many(states["train"], train, seeds, dev=(states["dev"], dev))


def _fitted(
    plan: Plan, unit: tuple[str, str, Probe], states: States, baselines: Mapping[str, Scores], folder: Path | None
) -> ProbeResult:
    """Fit one probe at one site on the task and all control draws, score it, and commit the result."""
    site, name, probe = unit
    fits = _fits(plan, probe, states, plan.label_sets)
    measures = plan.measures_for(probe)
    scored = [
        score_label_set(
            fits_of_set, labels, states, measures, plan.resamplers, seen=plan.seen if index == 0 else labels.seen
        )
        for index, (fits_of_set, labels) in enumerate(zip(fits, plan.label_sets, strict=True))
    ]
    draws = iter(scored[1:])
    controls = {
        one.name: ControlScores(
            one.control.is_selectivity, [labels.ceiling for labels in one.draws], [next(draws) for _ in one.draws]
        )
        for one in plan.controls
    }
    result = ProbeResult(
        task=plan.task, kind=plan.labels.kind, site=site, probe=name,
        measures=measure_results(scored[0], controls, baselines, measures, plan.resamplers),
        seed_count=len(plan.seeds), draw_count=max([len(one.draws) for one in plan.controls], default=0),
        fit_count=sum(map(len, fits)), classes=plan.labels.classes,
        confusion=_confusion(plan.labels, fits[0][0], states["test"]),
        converged=all(bool(getattr(fit, "converged_", True)) for fits_of_set in fits for fit in fits_of_set),
        facts=dict(plan.facts), provenance=_provenance(plan, unit),
    )  # fmt: skip
    commit_unit(folder, result, fits[0][0])
    return result


def _provenance(plan: Plan, unit: tuple[str, str, Probe]) -> dict[str, Any]:
    return dict(plan.provenance) | {
        "recipe": recipe_of(plan, *unit),
        "unit": unit_id(plan, *unit),
        "saved": not isinstance(unit[2], SklearnProbe | SklearnRegressorProbe),
    }


def _confusion(labels: Labels, fit: Probe, X: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
    """Counts on test, true classes by predicted classes; empty for regression."""
    n_classes = len(labels.classes)
    if not n_classes:
        return ()
    predicted = predict(fit, X, n_classes=n_classes).values
    cells = np.bincount(labels.y[labels.rows("test")] * n_classes + predicted, minlength=n_classes**2)
    return tuple(tuple(row) for row in cells.reshape(n_classes, n_classes).tolist())


@contextmanager
def _bar(total: int, title: str, *, shown: bool) -> Iterator[Callable[[int, str], None]]:
    """A progress bar on standard error, if that is a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    quiet = not (shown and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), disable=quiet, transient=True) as bar:
        job = bar.add_task(title, total=total)

        def advance(steps: int, now: str) -> None:
            bar.update(job, advance=steps, description=f"{title} · {now}")

        yield advance
