"""Compares sites and probes of one task on the same rows, paired, from the samples that every unit keeps."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing import registry
from probing.contracts.task import Task
from probing.errors import BadParameter, InputError, NotForThisTask, ProvenanceMismatch, UnknownName, unknown_name
from probing.recipes import build_task, normalised
from probing.results.probe import MeasureResult, ProbeResult, read_results
from probing.seeds import child_seed
from probing.statistics.bootstrap import (
    Clusters,
    Replicates,
    detectable,
    gained,
    half_width_error,
    two_sided_p,
    unvaried_p,
)
from probing.statistics.clusters import EVALUATED, FRACTION, bounded, is_unvaried
from probing.statistics.multiplicity import CORRECTIONS, Correction, adjust, level_after
from probing.system.machine import with_typed_errors
from probing.text.corpus import Corpus
from probing.training.build import DEFAULT_MEASURES, DEFAULT_PROBES
from probing.training.results import NO_SITE
from probing.training.units import load_samples

_SHARED = ("corpus", "labels", "root_seed", "cluster", "resamples", "version")
_PREFERRED = ("accuracy", "r2")
_COLUMNS = (
    "model_a",
    "site_a",
    "probe_a",
    "model_b",
    "site_b",
    "probe_b",
    "difference",
    "low",
    "high",
    "p",
    "p_adjusted",
    "correction",
    "detectable",
    "unit",
    "measure",
    "split",
    "n",
)


@dataclass(frozen=True)
class _Scored:
    """A result with what pairs it: `values` (seeds,), `samples` (seeds, R), and the clusters."""

    result: ProbeResult
    found: MeasureResult
    values: NDArray[np.float64]
    samples: NDArray[np.float64]
    clusters: Clusters


@with_typed_errors
def compare(
    results: str | Path,
    *,
    task: str,
    measure: str | None = None,
    probe: str | None = None,
    split: str = "test",
    correction: Correction = "holm",
    model: str | None = None,
) -> pd.DataFrame:
    """Compare every pair of sites (and probes, and models) of one task by the difference of their scores on the same
    rows.

    Differences are taken within each bootstrap resample of the sentences, so variation that two sites have in common
    cancels: they may differ significantly although their own intervals overlap. Choose a site on dev
    (`ProbeResults.best`), not by this table on test.

    Args:
        results: the folder that `train(…, to=…)` wrote.
        task: name of the task in that folder.
        measure: name of the measure; default: accuracy or R², if scored.
        probe: compare only this probe (default: all that read states).
        split: `test` or `dev`; if some of its inputs occur in train, only the other rows are compared.
        correction: how p values are adjusted over the pairs, `holm` or `bh`.
        model: compare only this model, given by its full name or a part of it (default: all).

    Returns:
        One row per pair: `difference` is the score of a minus that of b (mean over seeds; also for log loss, where less
        is better), with its 95 % interval, the two-sided `p` of no difference, `p_adjusted`, and `detectable`, the
        smallest true difference that would have been shown with 80 % probability.

    Raises:
        UnknownName: the folder has no such task, probe or measure.
        BadParameter: there is no such split or correction.
        InputError: there are fewer than two results to compare, or samples are missing or damaged.
        ProvenanceMismatch: the results are on different rows, or from different resamples.
    """
    for kind, name, known in (("split", split, EVALUATED), ("correction", correction, CORRECTIONS)):
        if name not in known:
            raise unknown_name(kind, name, known, error=BadParameter)
    chosen = _chosen(Path(results), task, probe, model)
    scored = _scored(Path(results), chosen, measure, chosen[0].judged_split(split))
    pairs = [_row(a, b, split) for a, b in combinations(scored, 2)]
    p = [row["p"] for row in pairs]
    level = level_after(p, correction, alpha=0.05) / 2
    for row, adjusted in zip(pairs, adjust(p, correction), strict=True):
        least = detectable(row.pop("error"), row.pop("df"), alpha=level)
        row |= {"p_adjusted": adjusted, "correction": correction, "detectable": least}
    return pd.DataFrame(pairs, columns=list(_COLUMNS))


def _chosen(folder: Path, task: str, probe: str | None, model: str | None) -> list[ProbeResult]:
    path = folder / "results.jsonl"
    if not path.is_file():
        raise InputError(
            "there are no results to compare",
            needed="a directory with results.jsonl",
            found="no such file",
            where=str(path),
            next_step="run `probing train … --to` on that directory first",
        )
    everything = read_results(path)
    of_task = [result for result in everything if result.task == task and result.site != NO_SITE]
    if not of_task:
        raise unknown_name("task", task, {result.task for result in everything}, where=str(path))
    of_task = [result for result in of_task if (model or "") in _model(result)]
    if not of_task:
        raise unknown_name("model", str(model), {_model(result) for result in everything}, where=str(path))
    found = [result for result in of_task if probe in (None, result.probe)]
    if not found:
        raise unknown_name("probe", str(probe), {result.probe for result in of_task}, where=str(path))
    if len(found) < 2:
        raise InputError(
            "there is nothing to compare",
            needed="at least two sites or probes of one task",
            found="one",
            where=str(path),
            next_step="train at more sites, or with more probes, with the same --to",
        )
    _refuse_two_settings(found)
    _refuse_other_rows(found)
    return found


def _model(result: ProbeResult) -> str:
    return str(result.provenance.get("model") or "")


def _refuse_two_settings(results: Sequence[ProbeResult]) -> None:
    """Refuse results of several seeds, controls or poolings, since a pair is named by model, site and probe alone."""
    names = Counter((_model(result), result.site, result.probe) for result in results)
    (model, site, probe), count = names.most_common(1)[0]
    if count > 1:
        raise InputError(
            f"{probe} at {site} was trained with several settings",
            needed="one result of each model, site and probe",
            found=f"{count} of {model}",
            next_step="train what is to be compared into a folder of its own, or again with --replace",
        )


def _refuse_other_rows(results: Sequence[ProbeResult]) -> None:
    first = results[0]
    for result in results[1:]:
        for key in _SHARED:
            one, other = first.provenance.get(key), result.provenance.get(key)
            if one != other:
                raise ProvenanceMismatch(
                    "these results are not of the same rows and resamples",
                    needed=f"{key} {one}",
                    found=f"{key} {other}",
                    where=f"{result.probe} at {result.site}",
                    next_step="train both with the same corpus, task, root seed and cluster",
                )


def _scored(folder: Path, results: Sequence[ProbeResult], measure: str | None, split: str) -> list[_Scored]:
    names = [found.measure for found in results[0].measures if found.split == split]
    chosen = measure or next((name for name in (*_PREFERRED, *names) if name in names), "")
    scored = []
    for result in results:
        found = next((m for m in result.measures if (m.measure, m.split) == (chosen, split)), None)
        arrays = load_samples(folder, result)
        if found is None or f"{split}/{chosen}/samples" not in arrays:
            known = sorted({m.measure for m in result.measures if m.split == split})
            raise UnknownName(
                f"{result.probe} at {result.site} was not scored by {chosen} on {split}",
                needed=f"one of: {', '.join(known)}",
                found=chosen,
                where=str(folder),
                next_step=f"train with --measure {chosen}, or compare by another",
            )
        values, samples = (arrays[f"{split}/{chosen}/{part}"] for part in ("value", "samples"))
        scored.append(_Scored(result, found, values, samples, _clusters(arrays[f"{split}/clusters"])))
    return scored


def _clusters(kept: NDArray[np.float64]) -> Clusters:
    count, effective, df, inflation = map(float, kept)
    return Clusters(int(count), effective, df, inflation)


def _row(a: _Scored, b: _Scored, split: str) -> dict[str, Any]:
    """Return the record of one pair; columns that need all pairs are added later."""
    if len(a.values) != len(b.values) and min(len(a.values), len(b.values)) > 1:
        raise ProvenanceMismatch(
            "probes with different numbers of seeds cannot be paired",
            needed=f"{len(a.values)} seeds",
            found=f"{len(b.values)} seeds",
            where=f"{b.result.probe} at {b.result.site}",
            next_step="train both with the same --seeds",
        )
    difference = float(a.values.mean() - b.values.mean())
    seed = child_seed(int(a.result.provenance["root_seed"]), "compare", split)
    found = gained(a.samples, b.samples, clusters=a.clusters, seed=seed)
    unit = a.found.score.unit
    low, high = bounded(difference, found, unit=unit, clusters=a.clusters, least=-1.0)
    return {
        "model_a": _model(a.result),
        "model_b": _model(b.result),
        "site_a": a.result.site,
        "probe_a": a.result.probe,
        "site_b": b.result.site,
        "probe_b": b.result.probe,
        "difference": difference,
        "low": low,
        "high": high,
        "p": _p(difference, found, unit, a.clusters),
        "unit": unit,
        "measure": a.found.measure,
        "split": split,
        "n": a.found.score.n,
        "error": half_width_error(low, high) if is_unvaried(found.interval) else found.error,
        "df": found.df,
    }


def _p(difference: float, found: Replicates, unit: str, clusters: Clusters) -> float:
    if unit == FRACTION and is_unvaried(found.interval):
        return min(1.0, 2.0 * unvaried_p(abs(difference), clusters.effective, margin=0.0, least=-1.0))
    return two_sided_p(difference, found.samples, df=found.df)


class Asked(Protocol):
    """The options of a job that concern its tasks."""

    @property
    def tasks(self) -> list[str]:
        """Recipes of all tasks."""

    @property
    def probes(self) -> list[str]:
        """Recipes of the probes; if empty, each task has its defaults."""

    @property
    def measures(self) -> list[str]:
        """Recipes of the measures; if empty, each task has its defaults."""

    @property
    def analyses(self) -> list[str]:
        """Recipes of the analyses."""


def fitting(task: str, corpus: Corpus, asked: Asked) -> dict[str, Any]:
    """Return the probes, measures and analyses that `train` is given for one task; None stands for the task's defaults.

    For a single task they are what was asked for. If there are several tasks, probes or measures that cannot be used
    for this task's kind of target or rows are replaced by the defaults, and analyses are left out; both with a warning.

    Raises:
        UnknownName: there is no such task or member.
    """
    chosen = {"probes": asked.probes, "measures": asked.measures, "analyses": asked.analyses}
    if len(asked.tasks) > 1 and any(chosen.values()):
        built = build_task(task, corpus)
        built.prepare(corpus)
        defaults = {
            "probes": built.probes or DEFAULT_PROBES[built.kind],
            "measures": built.measures or DEFAULT_MEASURES[built.kind],
        }
        chosen = {name: _kept(name, chosen[name], task, built, defaults.get(name, ())) for name in chosen}
    return {name: recipes if name == "analyses" else recipes or None for name, recipes in chosen.items()}


def _kept(folder: str, recipes: Sequence[str], name: str, task: Task, defaults: Sequence[str]) -> list[str]:
    unfit = [recipe for recipe in recipes if not _fits(folder, recipe, task)]
    if unfit:
        instead = f"{', '.join(defaults)} in {'its' if len(unfit) == 1 else 'their'} place" if defaults else "left out"
        warnings.warn(
            f"task {name} ({task.kind}, rows read as {task.row_form}): not for {', '.join(unfit)}; {instead}",
            NotForThisTask,
            stacklevel=4,
        )
    kept = [recipe for recipe in recipes if recipe not in unfit]
    named = {normalised(folder, recipe) for recipe in kept}
    return kept + [default for default in (defaults if unfit else ()) if default not in named]


def _fits(folder: str, recipe: str, task: Task) -> bool:
    """Return whether a member has a form for the task's kind of target and for its rows."""
    module = registry.get(folder, recipe.partition(":")[0].strip())
    forms = [form for form in (module.MEMBER, getattr(module, "REGRESSION_MEMBER", None)) if form is not None]
    if folder != "probes":
        return any(task.kind in form.kinds for form in forms)
    kind = "real" if task.kind == "real" else "classes"  # of several labels each is a problem of two classes
    return any(kind in form.kinds and task.row_form in (form.row_forms or (task.row_form,)) for form in forms)
