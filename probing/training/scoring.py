"""Turns fits into scores: predictions, measures, and one bootstrap that pairs task, controls and baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.measure import OF_TARGET, Measure, Prediction
from probing.contracts.probe import Probe
from probing.errors import BadParameter
from probing.labels import Labels
from probing.measures._few_rows import FEW, extremes
from probing.measures._rows import Tempers, predict, resampled
from probing.results.probe import Comparison, Gain, MeasureResult, Score
from probing.statistics.bootstrap import (
    MANY,
    Bracket,
    Clusters,
    Replicates,
    detectable,
    gained,
    half_width_error,
    one_sided_p,
    possible,
    replicates,
    unvaried_p,
)
from probing.statistics.clusters import FRACTION, RHO, Resampler, bounded, is_certain_rank, is_unvaried

# By unit: the least and the largest score; if lower is better, bits and errors have no less than 0.
_RANGES = {FRACTION: (0.0, 1.0), "R²": (-math.inf, 1.0), RHO: (-1.0, 1.0), "squared probability": (0.0, 2.0)}
_ERRORS = ("bits", OF_TARGET)


@dataclass(frozen=True)
class Sampled:
    """Holds the scores of one label set by one measure on one split, for S seeds: `values` (S,), and bootstrap
    `samples` (S, R). Where a class has few rows, `lowest` and `highest` (S, R) are the samples that the ends of
    intervals are taken from (`measures/_few_rows.py`).
    """

    values: NDArray[np.float64]
    samples: NDArray[np.float64]
    seen: float | None = None
    unseen: float | None = None
    lowest: NDArray[np.float64] | None = None
    highest: NDArray[np.float64] | None = None

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(self.values.mean())

    @property
    def ends(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The samples for the lower and for the upper end of intervals."""
        if self.lowest is None or self.highest is None:
            return self.samples, self.samples
        return self.lowest, self.highest


Scores = Mapping[tuple[str, str], Sampled]  # by measure name and split


@dataclass(frozen=True)
class ControlScores:
    """Holds the scores of one control: whether it defines selectivity, its ceilings, the scores on each draw, and in
    `above` a phrase for its states.

    `ceilings_of` is the measure that the ceilings belong to; `permutes` says whether labels are permuted over rows.
    """

    is_selectivity: bool
    ceilings: Sequence[float | None]
    draws: Sequence[Scores]
    above: str = ""
    ceilings_of: str = "accuracy"
    permutes: bool = False


def kept(task: Scores, resamplers: Mapping[str, Resampler]) -> dict[str, NDArray[Any]]:
    """Return the arrays, by name, that a unit saves so that its probe can later be compared with others on the same
    rows.

    They are bootstrap samples and not sums by cluster, since samples also serve rank measures, and intervals are made
    from them.

    Returns:
        `SPLIT/MEASURE/value` (seeds,) and `SPLIT/MEASURE/samples` (seeds, R), and `lowest` and `highest` of the same
        shape if there are any; `SPLIT/clusters` (4,), the fields of `Clusters`.
    """
    arrays: dict[str, NDArray[Any]] = {
        f"{split}/clusters": np.array([*astuple(resampler.clusters)]) for split, resampler in resamplers.items()
    }
    for (name, split), found in task.items():
        arrays |= {f"{split}/{name}/value": found.values, f"{split}/{name}/samples": found.samples}
        if found.lowest is not None and found.highest is not None:
            arrays |= {f"{split}/{name}/lowest": found.lowest, f"{split}/{name}/highest": found.highest}
    return arrays


def score_label_set(
    fits: Sequence[Probe],
    labels: Labels,
    states: Mapping[str, NDArray[Any]],
    measures: Mapping[str, Measure],
    resamplers: Mapping[str, Resampler],
    *,
    seen: NDArray[np.bool_] | None,
    tempers: Sequence[Tempers] | None,
) -> dict[tuple[str, str], Sampled]:
    """Score the fits (one per seed) of one label set by every measure on every split, and return the scores by
    (measure, split).

    `seen` says for each row of the labels whether its key occurs in train. For measures that count bits, each fit's log
    odds are scaled by its entry in `tempers` (None: not scaled).
    """
    scores = {}
    measures = {name: measure.informed(labels) for name, measure in measures.items()}
    predicted = {
        split: [predict(fit, states[split], labels.take(labels.rows(split))) for fit in fits]
        for split in dict.fromkeys(resampler.base for resampler in resamplers.values())
    }
    if tempers is not None:
        predicted = {
            split: [t.applied(one) for t, one in zip(tempers, of_split, strict=True)]
            for split, of_split in predicted.items()
        }
    for split, resampler in resamplers.items():
        y, moved = labels.y[resampler.rows], None if labels.origin is None else resampler.by_origin(labels)
        known = None if seen is None else seen[resampler.rows]
        whole = predicted[resampler.base]
        predictions = whole if resampler.split == resampler.base else [one.take(resampler.within) for one in whole]
        for name, measure in measures.items():
            values = np.array([measure.value(y, prediction) for prediction in predictions])
            if not np.isfinite(values).all():
                raise BadParameter(
                    f"the measure {name} is not defined here",
                    needed="a finite score of all rows",
                    found=str(values[~np.isfinite(values)][0]),
                    where=f"{split}, {len(y):,} rows",
                    next_step="leave the measure out, or give it rows that it is defined on",
                )
            samples = np.stack([_resampled(measure, y, prediction, resampler, moved) for prediction in predictions])
            known_here = known if measure.scores_parts else None
            parts = [_subset_value(measure, y, predictions, known_here, wanted=wanted) for wanted in (True, False)]
            seen_score, unseen_score = parts
            lowest, highest = _ends(measure, y, predictions, resampler, moved)
            scores[name, split] = Sampled(values, samples, seen_score, unseen_score, lowest, highest)
    return scores


def _resampled(
    measure: Measure, y: NDArray[Any], prediction: Prediction, resampler: Resampler, moved: Resampler | None
) -> NDArray[np.float64]:
    """Return the scores `(R,)` on the resamples; of permuted labels, on resamples of the rows read and of those
    that the labels come from (`moved`): to first order, the errors of both add up. Which row is read makes no
    difference where all predictions are the same.
    """
    if moved is None:
        return _defined(measure, y, prediction, resampler)
    of_labels = _defined(measure, y, prediction, moved)
    if _is_constant(prediction.values) and _is_constant(prediction.log_probabilities):
        return of_labels
    return of_labels + _defined(measure, y, prediction, resampler) - measure.value(y, prediction)


def _defined(measure: Measure, y: NDArray[Any], prediction: Prediction, resampler: Resampler) -> NDArray[np.float64]:
    """Return the scores `(R,)` on the resamples; if some of them leave the score undefined, as when all of their rows
    are alike, on resamples in which every cluster has some weight.
    """
    found = resampled(measure, y, prediction, resampler)
    if np.isfinite(found).all():
        return found
    return resampled(measure, y, prediction, replace(resampler, weights=resampler.smooth))


Ends = tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]


def _ends(
    measure: Measure,
    y: NDArray[Any],
    predictions: Sequence[Prediction],
    resampler: Resampler,
    moved: Resampler | None,
) -> Ends:
    """Return the lowest and highest scores `(seeds, R)` on resamples of a measure in which a class with few rows counts
    as much as others; None where all have enough.
    """
    if not (measure.by_class and resampler.fewest < FEW):
        return None, None
    both = np.stack([extremes(measure, y, prediction, resampler) for prediction in predictions], axis=1)
    if moved is not None:
        for k, prediction in enumerate(predictions):
            if not (_is_constant(prediction.values) and _is_constant(prediction.log_probabilities)):
                both[:, k] += _defined(measure, y, prediction, moved) - measure.value(y, prediction)
    return both[0], both[1]


def _is_constant(values: NDArray[Any] | None) -> bool:
    return values is None or bool((values == values[:1]).all())


def _subset_value(
    measure: Measure,
    y: NDArray[Any],
    predictions: Sequence[Prediction],
    seen: NDArray[np.bool_] | None,
    *,
    wanted: bool,
) -> float | None:
    rows = np.flatnonzero(seen == wanted) if seen is not None else np.empty(0, np.int64)
    if len(rows) < 2:
        return None
    values = [measure.value(y[rows], prediction.take(rows)) for prediction in predictions]
    mean = float(np.mean(values))
    return mean if math.isfinite(mean) else None


def measure_results(
    task: Scores,
    controls: Mapping[str, ControlScores],
    baselines: Mapping[str, Scores],
    measures: Mapping[str, Measure],
    resamplers: Mapping[str, Resampler],
) -> tuple[MeasureResult, ...]:
    """Return, for every measure and split, the score of the task, its comparison with each control, and the paired
    gains over each baseline.
    """
    results = []
    for name, split in task:
        measure, resampler, ours = measures[name], resamplers[split], task[name, split]
        comparisons = tuple(
            _comparison(control, scores, ours, name, measure, resampler) for control, scores in controls.items()
        )
        gains = tuple(
            _gain(baseline, ours, scores[name, split], measure, resampler, _margin(measure, baselines, split, name))
            for baseline, scores in baselines.items()
        )
        score = score_of(ours, measure, resampler)
        results.append(
            MeasureResult(name, split, score, measure.higher_is_better, ours.seen, ours.unseen, comparisons, gains)
        )
    return tuple(results)


def _comparison(
    control: str, scores: ControlScores, task: Sampled, name: str, measure: Measure, resampler: Resampler
) -> Comparison:
    draws = [draw[name, resampler.split] for draw in scores.draws]
    value = float(np.mean([draw.value for draw in draws]))
    ours, better = _gained(task, draws, measure, resampler), _better(task.value, value, measure)
    selectivity = _score(better, ours, measure, resampler, least=-1.0)
    by_construction = scores.permutes and is_unvaried(ours.interval)  # a constant prediction, whatever the rows
    if by_construction:
        selectivity = replace(selectivity, low=better, high=better)
    least = detectable(error_of(ours, selectivity.low, selectivity.high), ours.df)
    has_ceiling = name == scores.ceilings_of and resampler.base == "test"
    return Comparison(
        control=control,
        score=_score(value, _spread(draws, resampler), measure, resampler),
        ceiling=_mean(scores.ceilings) if has_ceiling else None,
        selectivity=selectivity,
        is_selectivity=scores.is_selectivity,
        above=scores.above,
        draws=tuple(draw.value for draw in draws),
        seen=_mean([draw.seen for draw in draws]),
        unseen=_mean([draw.unseen for draw in draws]),
        detectable=None if by_construction else possible(least, _largest(value, measure)),
    )


def _margin(measure: Measure, baselines: Mapping[str, Scores], split: str, name: str) -> float:
    """Return what a gain has to exceed: the measure's margin, or this share of what `prior` reaches."""
    return measure.margin * (baselines["prior"][name, split].value if measure.unit == OF_TARGET else 1.0)


def _gain(baseline: str, ours: Sampled, theirs: Sampled, measure: Measure, resampler: Resampler, margin: float) -> Gain:
    found = _gained(ours, [theirs], measure, resampler)
    value = _better(ours.value, theirs.value, measure)
    p = p_above(value, found, unit=measure.unit, clusters=resampler.clusters, margin=margin)
    gain = _score(value, found, measure, resampler, least=-1.0)
    error = error_of(found, gain.low, gain.high)
    largest = _largest(theirs.value, measure)
    return Gain(baseline, gain, margin, p, p, error=error, df=min(found.df, MANY), largest=largest)


def score_of(found: Sampled, measure: Measure, resampler: Resampler) -> Score:
    """Return a score with its interval."""
    return _score(found.value, _spread([found], resampler), measure, resampler)


def difference_of(ours: Sampled, other: Sampled, measure: Measure, resampler: Resampler) -> Score:
    """Return by how much a score is better than another on the same resamples, with its interval."""
    found = _gained(ours, [other], measure, resampler)
    return _score(_better(ours.value, other.value, measure), found, measure, resampler, least=-1.0)


def _spread(draws: Sequence[Sampled], resampler: Resampler) -> Replicates | Bracket:
    """Return the replicates of the mean score over draws."""
    seed = resampler.seed
    if all(draw.lowest is None for draw in draws):
        return replicates(np.stack([draw.samples for draw in draws]), clusters=resampler.clusters, seed=seed)
    weighted = Clusters.weighted(resampler.clusters.count)
    lowest, highest = (np.stack([draw.ends[end] for draw in draws]) for end in (0, 1))
    return Bracket(
        replicates(lowest, clusters=weighted, seed=seed),
        replicates(highest, clusters=weighted, seed=seed),
    )


def paired(
    task: Sampled, others: Sequence[Sampled], *, clusters: Clusters, higher_is_better: bool = True, seed: int
) -> Replicates | Bracket:
    """Return the replicates of how much better a score is than the mean of others on the same resamples; where a class
    has few rows, those of the least and of the most that it can be.
    """
    how: dict[str, Any] = {"higher_is_better": higher_is_better, "seed": seed}
    if all(one.lowest is None for one in (task, *others)):
        return gained(task.samples, np.stack([other.samples for other in others]), clusters=clusters, **how)
    how["clusters"] = Clusters.weighted(clusters.count)
    lowest, highest = (np.stack([other.ends[end] for other in others]) for end in (0, 1))
    bounds = gained(task.ends[0], highest, **how), gained(task.ends[1], lowest, **how)
    return Bracket(*bounds) if higher_is_better else Bracket(*bounds[::-1])


def p_above(value: float, found: Replicates | Bracket, *, unit: str, clusters: Clusters, margin: float = 0.0) -> float:
    """Return the one-sided p value of a difference of at most `margin`."""
    if isinstance(found, Bracket):
        return found.p(margin) if value > margin else 1.0
    if is_certain_rank(value, unit, found.interval) or (unit == FRACTION and is_unvaried(found.interval)):
        return unvaried_p(value, clusters.effective, margin=margin, least=-1.0)
    return one_sided_p(value, found.samples, margin=margin, df=found.df)


def _gained(task: Sampled, others: Sequence[Sampled], measure: Measure, resampler: Resampler) -> Replicates | Bracket:
    better = measure.higher_is_better
    return paired(task, others, clusters=resampler.clusters, higher_is_better=better, seed=resampler.seed)


def error_of(found: Replicates | Bracket, low: float, high: float) -> float:
    """Return the standard error of a difference with this interval; if no resample changes the difference, or the
    interval is not of replicates alone, the error that the interval stands for.
    """
    if isinstance(found, Bracket) or is_unvaried(found.interval):
        return half_width_error(low, high)
    return found.error


def _better(ours: float, theirs: float, measure: Measure) -> float:
    return ours - theirs if measure.higher_is_better else theirs - ours


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _score(
    value: float, found: Replicates | Bracket, measure: Measure, resampler: Resampler, *, least: float = 0.0
) -> Score:
    bounds = bounded(value, found, unit=measure.unit, clusters=resampler.clusters, least=least)
    if least == 0.0:  # a score, and not a difference
        bottom, top = _range(measure)
        bounds = max(bounds[0], min(value, bottom)), min(bounds[1], max(value, top))
    return Score(value, *bounds, n=resampler.n, unit=measure.unit)


def _range(measure: Measure) -> tuple[float, float]:
    """Return the least and the largest score that there can be, as far as the unit tells."""
    least = 0.0 if measure.unit in _ERRORS and not measure.higher_is_better else -math.inf
    return _RANGES.get(measure.unit, (least, math.inf))


def _largest(other: float, measure: Measure) -> float | None:
    """Return the difference of a perfect score from another; None if no score is perfect."""
    bottom, top = _range(measure)
    best = _better(top if measure.higher_is_better else bottom, other, measure)
    return best if math.isfinite(best) else None
