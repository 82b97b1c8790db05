"""From fits to scores: predictions, measures, and one bootstrap that pairs task, controls and baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts import Measure, Prediction, Probe
from probing.design import Labels
from probing.predicting import predict
from probing.records import Comparison, Gain, MeasureResult, Score
from probing.resampling import Resampler
from probing.statistics import (
    interval,
    one_sided_p,
    replicates,
    selectivity_interval,
    unvaried_interval,
    unvaried_p,
)  # fmt: skip

MARGINS = {"accuracy": 0.02, "macro_f1": 0.02, "log_loss": 0.05, "uas": 0.02, "uuas": 0.02}
FRACTION = "fraction"
_CELLS = 1 << 24
_NO_WIDTH = 1e-12


@dataclass(frozen=True)
class Sampled:
    """One measure on one label set and split, for each seed: `values` (S,), bootstrap `samples` (S, R)."""

    values: NDArray[np.float64]
    samples: NDArray[np.float64]
    seen: float | None
    unseen: float | None

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(self.values.mean())


Scores = Mapping[tuple[str, str], Sampled]  # by measure name and split


@dataclass(frozen=True)
class ControlScores:
    """One control: whether it defines selectivity, the ceiling and scores of each draw, the measure of the ceilings."""

    is_selectivity: bool
    ceilings: Sequence[float | None]
    draws: Sequence[Scores]
    ceilings_of: str = "accuracy"


def score_label_set(
    fits: Sequence[Probe],
    labels: Labels,
    states: Mapping[str, NDArray[Any]],
    measures: Mapping[str, Measure],
    resamplers: Mapping[str, Resampler],
    *,
    seen: NDArray[np.bool_] | None,
) -> dict[tuple[str, str], Sampled]:
    """Every measure on every split for the fits (one a seed) of one label set; `seen` is per row of the labels."""
    scores = {}
    for split, resampler in resamplers.items():
        part = labels.take(resampler.rows)
        y = part.y
        known = None if seen is None else seen[resampler.rows]
        predictions = [predict(fit, states[split], part) for fit in fits]
        for name, measure in measures.items():
            values = np.array([measure.value(y, prediction) for prediction in predictions])
            samples = np.stack([_resampled(measure, y, prediction, resampler) for prediction in predictions])
            known_here = known if measure.scores_parts else None
            parts = [_subset_value(measure, y, predictions, known_here, wanted=wanted) for wanted in (True, False)]
            scores[name, split] = Sampled(values, samples, *parts)
    return scores


def _resampled(measure: Measure, y: NDArray[Any], prediction: Prediction, resampler: Resampler) -> NDArray[np.float64]:
    """`(R,)`, in blocks so that float32 weights are never widened all at once."""
    weights = resampler.weights
    step = len(weights) if weights.dtype == np.float64 else max(1, _CELLS // weights.shape[1])
    blocks = (weights[low : low + step].astype(np.float64, copy=False) for low in range(0, len(weights), step))
    return np.concatenate([measure.resampled(y, prediction, resampler.groups, block) for block in blocks])


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
    """Scores of the task beside those of each control, and the gains over each baseline, paired."""
    results = []
    for name, split in task:
        measure, resampler, ours = measures[name], resamplers[split], task[name, split]
        comparisons = tuple(
            _comparison(control, scores, ours, name, measure, resampler) for control, scores in controls.items()
        )
        gains = tuple(
            _gain(baseline, ours, scores[name, split], name, measure, resampler)
            for baseline, scores in baselines.items()
        )
        score = _score(ours.value, interval(replicates(ours.samples[None], seed=resampler.seed)), measure, resampler)
        results.append(
            MeasureResult(name, split, score, measure.higher_is_better, ours.seen, ours.unseen, comparisons, gains)
        )
    return tuple(results)


def _comparison(
    control: str, scores: ControlScores, task: Sampled, name: str, measure: Measure, resampler: Resampler
) -> Comparison:
    draws = [draw[name, resampler.split] for draw in scores.draws]
    samples = np.stack([draw.samples for draw in draws])
    value = float(np.mean([draw.value for draw in draws]))
    bounds = selectivity_interval(task.samples, samples, higher_is_better=measure.higher_is_better, seed=resampler.seed)
    has_ceiling = name == scores.ceilings_of and resampler.split == "test"
    return Comparison(
        control=control,
        score=_score(value, interval(replicates(samples, seed=resampler.seed)), measure, resampler),
        ceiling=_mean(scores.ceilings) if has_ceiling else None,
        selectivity=_score(_better(task.value, value, measure), bounds, measure, resampler, least=-1.0),
        is_selectivity=scores.is_selectivity,
        draws=tuple(draw.value for draw in draws),
        seen=_mean([draw.seen for draw in draws]),
        unseen=_mean([draw.unseen for draw in draws]),
    )


def _gain(baseline: str, ours: Sampled, theirs: Sampled, name: str, measure: Measure, resampler: Resampler) -> Gain:
    sign = 1.0 if measure.higher_is_better else -1.0
    samples = replicates(sign * (ours.samples - theirs.samples)[None], seed=resampler.seed)
    gain, margin = _better(ours.value, theirs.value, measure), MARGINS.get(name, 0.0)
    p = one_sided_p(gain, samples, margin=margin)
    bounds = interval(samples)
    if measure.unit == FRACTION and _is_unvaried(bounds):
        p = unvaried_p(gain, resampler.weights.shape[1], margin=margin, least=-1.0)
    return Gain(baseline, _score(gain, bounds, measure, resampler, least=-1.0), margin, p, p)


def _better(ours: float, theirs: float, measure: Measure) -> float:
    return ours - theirs if measure.higher_is_better else theirs - ours


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _score(
    value: float, bounds: tuple[float, float], measure: Measure, resampler: Resampler, *, least: float = 0.0
) -> Score:
    """A score with its interval. A fraction's lies from `least` (of differences: -1) to 1, and never has no width."""
    if measure.unit == FRACTION and _is_unvaried(bounds):
        bounds = unvaried_interval(value, resampler.weights.shape[1], least=least, most=1.0)
    if measure.unit == FRACTION:
        bounds = max(least, bounds[0]), min(1.0, bounds[1])
    return Score(value, *bounds, n=resampler.n, unit=measure.unit)


def _is_unvaried(bounds: tuple[float, float]) -> bool:
    return bounds[1] - bounds[0] <= _NO_WIDTH
