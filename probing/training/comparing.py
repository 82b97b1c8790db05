"""Compares the scores of sites and probes on the same rows, by bootstrap samples that were saved with every fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probing.errors import BadParameter, InputError, ProvenanceMismatch, UnknownName, unknown_name
from probing.results.models import ModelFacts
from probing.results.probe import MeasureResult, ProbeResult, read_results
from probing.seeds import child_seed
from probing.statistics.bootstrap import (
    Bracket,
    Clusters,
    Replicates,
    detectable,
    possible,
)
from probing.statistics.clusters import EVALUATED, FRACTION, bounded
from probing.statistics.multiplicity import CORRECTIONS, Correction, adjust, level_after
from probing.system.machine import with_typed_errors
from probing.training.results import NO_SITE, ProbeResults
from probing.training.scoring import Sampled, error_of, p_above, paired
from probing.training.units import load_samples

Between = Literal["all", "models", "best"]
BETWEEN = ("all", "models", "best")
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
    """A result with what pairs it: its scores by seed and resample, and the clusters."""

    result: ProbeResult
    found: MeasureResult
    sampled: Sampled
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
    between: Between = "all",
    against: str | None = None,
) -> pd.DataFrame:
    """Compare every pair of results of one task (of two sites, probes or models) by the difference of their scores on
    the same rows, and return the comparisons as a table.

    The difference is computed within each bootstrap resample of the sentences, so that variation which both results
    have in common cancels: they may differ significantly although their intervals overlap. Choose a site on dev
    (`ProbeResults.best`), not by this table on test.

    Args:
        results: the folder that `train(…, to=…)` wrote.
        task: name of the task in that folder.
        measure: name of the measure; default: accuracy or R², if scored.
        probe: name of the only probe whose results are compared (default: all probes, but no baselines).
        split: `test` or `dev`; if some of its inputs occur in train, only the other rows are compared.
        correction: how p values are adjusted over the pairs, `holm` or `bh`.
        model: full name, or a part of it, of the only model whose results are compared (default: all).
        between: which pairs: `all`; `models`, two models at the same site by the same probe; or `best`, two models,
            each at the site that is best for it on dev. Of two models, a is the later checkpoint, the larger model, or
            the trained one.
        against: full name, or a part of it, of the one model that all others are compared with; None: all pairs of
            models.

    Returns:
        One row per pair of results (a and b). `difference` is the score of a minus that of b (mean over seeds; also for
        log loss, where less is better), with its 95 % interval; `p` is the two-sided p value of no difference,
        `p_adjusted` the same adjusted over the pairs, and `detectable` the smallest true difference that would have
        been shown with 80 % probability.

    Raises:
        UnknownName: the folder has no such task, probe, measure or model.
        BadParameter: there is no such split, correction or kind of pairs; or `against` names several models.
        InputError: there are fewer than two results to compare, or samples are missing or damaged.
        ProvenanceMismatch: the results are on different rows, or from different resamples.
    """
    options = (("split", split, EVALUATED), ("correction", correction, CORRECTIONS), ("pairs", between, BETWEEN))
    for kind, name, known in options:
        if name not in known:
            raise unknown_name(kind, name, known, error=BadParameter)
    chosen = _chosen(Path(results), task, probe, model)
    wanted = _best_of_each(chosen, measure) if between == "best" else chosen
    paired = _pairs(wanted, between, against, str(Path(results) / "results.jsonl"))
    pairs = differences(Path(results), wanted, paired, measure=measure, split=split, correction=correction)
    return pd.DataFrame(pairs, columns=list(_COLUMNS))


def differences(
    folder: Path,
    results: Sequence[ProbeResult],
    pairs: Sequence[tuple[int, int]],
    *,
    measure: str | None = None,
    split: str = "test",
    correction: Correction = "holm",
) -> list[dict[str, Any]]:
    """Compare pairs of results and return a record for each, with the columns of `compare`; p is adjusted over these
    pairs.

    Args:
        folder: folder of the results.
        results: results of one task, on the same rows and resamples.
        pairs: indices into `results` of a and b.
        measure, split, correction: see `compare`.

    Raises:
        InputError, UnknownName, ProvenanceMismatch: see `compare`.
    """
    _refuse_other_rows(results)
    scored = _scored(folder, results, measure, results[0].judged_split(split))
    rows = [_row(scored[a], scored[b], split) for a, b in pairs]
    p = [row["p"] for row in rows]
    level = level_after(p, correction, alpha=0.05) / 2
    for row, adjusted in zip(rows, adjust(p, correction), strict=True):
        largest = 1.0 if row["unit"] == FRACTION else None
        least = possible(detectable(row.pop("error"), row.pop("df"), alpha=level), largest)
        row |= {"p_adjusted": adjusted, "correction": correction, "detectable": least}
    return rows


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
    of_task = [result for result in of_task if _is_named(result, model or "")]
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
    return found


def _model(result: ProbeResult) -> str:
    return str(result.provenance.get("model") or "")


def _is_named(result: ProbeResult, part: str) -> bool:
    """Return whether a part of a model's full name, or of that which pages show, is given."""
    return part in _model(result) or part in ModelFacts.of_result(result).label


def _best_of_each(results: Sequence[ProbeResult], measure: str | None) -> list[ProbeResult]:
    """Return, for each model and probe, the result of the site that is best on dev."""
    groups: dict[tuple[str, str], list[ProbeResult]] = {}
    for result in results:
        groups.setdefault((_model(result), result.probe), []).append(result)
    return [ProbeResults(group).best(measure or _primary(group[0], "dev")) for group in groups.values()]


def _pairs(results: Sequence[ProbeResult], between: Between, against: str | None, where: str) -> list[tuple[int, int]]:
    """Return the ordinals of the results to compare: all pairs, or of two models at one site (or each at its best)."""
    order = range(len(results))
    if between != "all":
        places = [ModelFacts.of_result(result).order for result in results]
        order = sorted(order, key=lambda i: places[i], reverse=True)  # type: ignore[assignment]
    found = [
        (a, b) for a, b in combinations(order, 2) if between == "all" or _are_of_two(results[a], results[b], between)
    ]
    if against is not None:
        named = {_model(result) for result in results if _is_named(result, against)}
        if not named:
            raise unknown_name("model", against, {_model(result) for result in results}, where=where)
        if len(named) > 1:
            raise BadParameter("this names several models", needed="one of: " + "; ".join(sorted(named)), found=against)
        sides = [(a, b) if _model(results[b]) in named else (b, a) for a, b in found]
        found = [(a, b) for a, b in sides if _model(results[b]) in named and _model(results[a]) not in named]
    if not found:
        raise InputError(
            "there is nothing to compare",
            needed="two models with results of one task and probe" + (" at one site" if between == "models" else ""),
            found=", ".join(sorted({_model(result) for result in results})),
            where=where,
            next_step="train on the states of both models with the same --to, or compare with between='best'",
        )
    return found


def _are_of_two(a: ProbeResult, b: ProbeResult, between: Between) -> bool:
    is_same = a.probe == b.probe and (between == "best" or a.site == b.site)
    return is_same and _model(a) != _model(b)


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
                    needed=f"{key} {str(one)[:16]} of {_described(first)}",
                    found=f"{key} {str(other)[:16]} of {_described(result)}",
                    where=f"{result.probe} at {result.site}",
                    next_step=_WAYS_OUT.get(key, "train both with the same corpus, task, root seed and cluster"),
                )


_WAYS_OUT = {
    "labels": "scores are compared row by row: extract both models with one kind of rows, word:… or sentence:… (pieces "
    "of two tokenizers are different rows), and with inputs that neither cuts off",
    "corpus": "extract both models from the same files, and train with them",
}


def _described(result: ProbeResult) -> str:
    """Return model, kind of rows and number of rows of a result."""
    counts = (result.facts.get("rows") or {}).get("test")
    rows = f"{result.provenance.get('rows')}" + ("" if counts is None else f", {counts:,} test rows")
    return f"{_model(result) or 'the first'} ({rows})"


def _scored(folder: Path, results: Sequence[ProbeResult], measure: str | None, split: str) -> list[_Scored]:
    chosen = measure or _primary(results[0], split)
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
        lowest, highest = (arrays.get(f"{split}/{chosen}/{end}") for end in ("lowest", "highest"))
        sampled = Sampled(values, samples, lowest=lowest, highest=highest)
        scored.append(_Scored(result, found, sampled, _clusters(arrays[f"{split}/clusters"])))
    return scored


def _primary(result: ProbeResult, split: str) -> str:
    names = [found.measure for found in result.measures if found.split == split]
    return next((name for name in (*_PREFERRED, *names) if name in names), "")


def _clusters(kept: NDArray[np.float64]) -> Clusters:
    count, effective, df, inflation = map(float, kept)
    return Clusters(int(count), effective, df, inflation)


def _row(a: _Scored, b: _Scored, split: str) -> dict[str, Any]:
    """Return the record of one pair; columns that need all pairs are added later."""
    seeds = len(a.sampled.values), len(b.sampled.values)
    if seeds[0] != seeds[1] and min(seeds) > 1:
        raise ProvenanceMismatch(
            "probes with different numbers of seeds cannot be paired",
            needed=f"{seeds[0]} seeds",
            found=f"{seeds[1]} seeds",
            where=f"{b.result.probe} at {b.result.site}",
            next_step="train both with the same --seeds",
        )
    difference = a.sampled.value - b.sampled.value
    seed = child_seed(int(a.result.provenance["root_seed"]), "compare", split)
    found = paired(a.sampled, [b.sampled], clusters=a.clusters, seed=seed)
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
        "error": error_of(found, low, high),
        "df": found.df,
    }


def _p(difference: float, found: Replicates | Bracket, unit: str, clusters: Clusters) -> float:
    """Return the two-sided p value of no difference."""
    if isinstance(found, Bracket) and difference < 0:
        found = found.turned()
    return min(1.0, 2.0 * p_above(abs(difference), found, unit=unit, clusters=clusters))
