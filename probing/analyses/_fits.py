"""Fits of all label sets at one site, and their scores on the resamples of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing import registry
from probing.contracts.analysis import SiteData
from probing.contracts.measure import Measure
from probing.contracts.prediction import Prediction
from probing.contracts.probe import Probe
from probing.labels import Labels
from probing.measures._predictions import predict, resampled
from probing.measures._temperatures import Tempers
from probing.results.analysis import Point
from probing.statistics.clusters import Resampler

States = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Sampled:
    """A score of one label set: its mean over seeds and the bootstrap samples `(seeds, R)`."""

    value: float
    samples: NDArray[np.float64]


def measure_of(name: str) -> Measure:
    """Return the registered measure of this name."""
    measure: Measure = registry.get("measures", name).MEMBER()
    return measure


def fits_of(probe: Probe, data: SiteData, states: States) -> list[list[Probe]]:
    """Fit the probe on every label set under every seed (under one seed if it is deterministic); dev stops it early."""
    label_sets = [labels for _, _, labels in data.label_sets]
    train, dev = ([labels.y[labels.rows(split)] for labels in label_sets] for split in ("train", "dev"))
    seeds = data.seeds if probe.stochastic else data.seeds[:1]
    return probe.fit_many(states["train"], train, seeds, dev=(states["dev"], dev))


def score_of(
    fits: Sequence[Probe],
    labels: Labels,
    X: NDArray[Any],
    measure: Measure,
    resampler: Resampler,
    *,
    tempers: Sequence[Tempers] | None = None,
) -> Sampled:
    """Score the fits (one a seed) of one label set on the rows of the resampler, with log probabilities scaled by
    `tempers`.
    """
    part = labels.take(resampler.rows)
    predictions = [predict(fit, X, part) for fit in fits]
    if tempers is not None:
        tempered = [t.applied(one) for t, one in zip(tempers, predictions, strict=True)]
        predictions = [replace(one, log_probabilities=one.believed) for one in tempered]
    return score_predictions(predictions, part, measure, resampler)


def score_predictions(
    predictions: Sequence[Prediction], part: Labels, measure: Measure, resampler: Resampler
) -> Sampled:
    """Score predictions of the resampler's rows, whose labels are `part`; otherwise as `score_of` does."""
    values = [measure.value(part.y, prediction) for prediction in predictions]
    samples = np.stack([resampled(measure, part.y, prediction, resampler) for prediction in predictions])
    return Sampled(float(np.mean(values)), samples)


def point(
    quantity: str,
    value: float,
    samples: NDArray[np.float64],
    unit: str,
    resampler: Resampler,
    *,
    least: float = 0.0,
    control: str = "",
    draw: int = -1,
    x: float | None = None,
    x_name: str = "",
) -> Point:
    """Return a number with the interval that its samples `(draws, seeds, R)` give, or with none where they are
    undefined.
    """
    low, high = resampler.bounds(value, samples, unit=unit, least=least)
    known = np.isfinite([low, high]).all()
    return Point(quantity, value, unit, low if known else None, high if known else None, control, draw, x, x_name)
