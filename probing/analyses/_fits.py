"""Fits of all label sets at one site, their scores on the resamples of a split, and the costs of an online code."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing import registry
from probing.contracts.analysis import SiteData
from probing.contracts.measure import Measure, Prediction
from probing.contracts.probe import Probe
from probing.labels import Labels
from probing.measures._rows import Tempers, predict, resampled
from probing.results.analysis import Point
from probing.seeds import generator
from probing.statistics.clusters import EVALUATED, Resampler

States = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Sampled:
    """Holds the score of one label set: its mean over seeds and the bootstrap samples `(seeds, R)`."""

    value: float
    samples: NDArray[np.float64]


def measure_of(name: str) -> Measure:
    """Return the registered measure of this name."""
    measure: Measure = registry.get("measures", name).MEMBER()
    return measure


def main_measure(data: SiteData) -> tuple[str, Measure]:
    """Return name and measure of the main score: accuracy of classes; R² of numbers or, where all numbers of dev or
    test are equal, RMSE.
    """
    scored = [labels.y[labels.rows(split)] for _, _, labels in data.label_sets for split in EVALUATED]
    is_real = data.labels.kind == "real"
    name = "accuracy" if not is_real else "r2" if all(np.ptp(y) > 0 for y in scored) else "rmse"
    return name, measure_of(name)


def fits_of(probe: Probe, data: SiteData, states: States) -> list[list[Probe]]:
    """Fit the probe on every label set under every seed (a deterministic probe under one seed only), with dev held out,
    and return the fits as `result[m][s]`.
    """
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
    """Score the fits (one per seed) of one label set on the rows of the resampler. For measures that count bits, each
    fit's log odds are scaled by its entry in `tempers` (None: not scaled).
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
    """Score predictions (one per seed) for the resampler's rows, whose labels are `part`; the result is that of
    `score_of`.
    """
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
    label: str = "",
) -> Point:
    """Return a point with the 95 % interval computed from its samples `(draws, seeds, R)`; without an interval if they
    are undefined.
    """
    low, high = resampler.bounds(value, samples, unit=unit, least=least)
    known = np.isfinite([low, high]).all()
    ends = {"low": low, "high": high} if known else {}
    return Point(quantity, value, unit, **ends, control=control, draw=draw, x=x, x_name=x_name, label=label)


def beside(
    task: Sampled,
    draws: Sequence[Sampled],
    control: str,
    quantity: str,
    unit: str,
    data: SiteData,
    place: Mapping[str, Any],
) -> list[Point]:
    """Return the score of one control, over its draws, and the selectivity against it (of a control that only checks
    for chance, the score above it).

    Args:
        task, draws: scores on test of the task and of each draw.
        control: name of the control.
        quantity, unit: name of the score, and its unit.
        data: data of the site.
        place: further fields of both points.
    """
    value, samples = float(np.mean([one.value for one in draws])), np.stack([one.samples for one in draws])
    gain = "above_chance" if control in data.chance_checks else "selectivity"
    test = data.resamplers["test"]
    return [
        point(quantity, value, samples, unit, test, control=control, **place),
        point(gain, task.value - value, task.samples - samples, unit, test, least=-1.0, control=control, **place),
    ]


FRACTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
UNIFORM_WEIGHT = 1e-4  # of the uniform distribution in every prediction: no label costs more than log₂(K / weight)
_BLOCK = 8192

Dev = tuple[NDArray[np.float32], Sequence[NDArray[np.int64]]]


@dataclass(frozen=True)
class CodedRows:
    """Holds the cost of every row of one label set, in one data order. Rows are in the order in which they are sent.

    Attributes:
        nats: `(N,)` −ln of the probability with which the row's label is sent; ln K in the first block.
        final_nats: `(N,)` −ln of the label's probability under the probe fitted on all rows: the cost of the labels to
            a receiver who has that probe.
        block: `(N,)` number of the block that the row is sent in, from 0.
        groups: `(N,)` group of the row.
        starts: number of rows sent before each block; a block in which no group ends holds no rows.
    """

    nats: NDArray[np.float64]
    final_nats: NDArray[np.float64]
    block: NDArray[np.int64]
    groups: NDArray[np.int64]
    starts: tuple[int, ...]


def coded(probe: Probe, data: SiteData, order: int, *, outside_dev: bool) -> list[CodedRows]:
    """Fit the probe on every prefix of the rows in one data order, and return the costs of every label set.

    Args:
        probe: an unfitted probe.
        data: data of the site.
        order: number of the data order, a seeded permutation of the groups; it also selects the seed of a stochastic
            probe.
        outside_dev: whether training is stopped early by the dev rows, as in the published implementation; else the
            probe holds out some of the rows sent.
    """
    label_sets = [labels for _, _, labels in data.label_sets]
    train = data.labels.rows("train")
    sent = train[sending_order(data.labels.groups[train], data.seeds[0], order)]
    X = data.states["train"][np.searchsorted(train, sent)]
    groups = data.labels.groups[sent]
    ends = block_ends(groups)
    targets = [labels.y[sent] for labels in label_sets]
    dev = data.labels.rows("dev")
    held_out = (data.states["dev"], [labels.y[dev] for labels in label_sets]) if outside_dev else None
    seed = data.seeds[order % len(data.seeds)]
    distinct = sorted(set(ends))
    fits = fitted_prefixes(probe, X, targets, distinct, seed, held_out)
    block = np.searchsorted(ends, np.arange(len(sent)), side="right")
    rows = [labels.take(sent) for labels in label_sets]
    return [
        CodedRows(
            _sequential_nats([fits_of_end[m] for fits_of_end in fits], X, rows[m], distinct),
            _nats(fits[-1][m], X, rows[m], slice(0, len(sent)), seen=targets[m]),
            block,
            groups,
            (0, *ends[:-1]),
        )
        for m in range(len(label_sets))
    ]


def sending_order(groups: NDArray[np.int64], seed: int, order: int) -> NDArray[np.int64]:
    """Return `(N,)` row indices: whole groups in a seeded random order, with the rows of each group in their original
    order.
    """
    names, index = np.unique(groups, return_inverse=True)
    place = generator(seed, "data order", order).permutation(len(names))
    return np.argsort(place[index.reshape(-1)], kind="stable")


def block_ends(groups: NDArray[np.int64]) -> tuple[int, ...]:
    """Return the numbers of rows after which blocks end: the first group boundary at or after each fraction of the
    rows. Some blocks may be empty.
    """
    n = len(groups)
    boundaries = np.append(np.flatnonzero(np.diff(groups)) + 1, n)
    wanted = [fraction * n - 1e-9 for fraction in FRACTIONS]
    return tuple(boundaries[np.searchsorted(boundaries, wanted)].tolist())


def fitted_prefixes(
    probe: Probe,
    X: NDArray[np.float32],
    targets: Sequence[NDArray[np.int64]],
    ends: Sequence[int],
    seed: int,
    dev: Dev | None,
) -> list[list[Probe | None]]:
    """Fit the probe on the first `end` rows, for each end and each label set, and return the fits as `result[e][m]`.

    A fit is None if no probe can be fitted: the rows hold one class only, or dev has none of their classes.
    """
    usable = [[_can_fit(y[:end], None if dev is None else dev[1][m]) for m, y in enumerate(targets)] for end in ends]
    early = sum(not all(sets) for sets in usable)  # more rows never hold fewer classes: these come first
    found = [
        _early_fits(probe, X, targets, end, seed, dev, sets) for end, sets in zip(ends[:early], usable, strict=False)
    ]
    later = probe.fit_prefixes(X, targets, ends[early:], [seed], dev=dev) if early < len(ends) else []
    for of_end in later:
        found.append([of_set[0] for of_set in of_end])
    return found


def _early_fits(
    probe: Probe,
    X: NDArray[np.float32],
    targets: Sequence[NDArray[np.int64]],
    end: int,
    seed: int,
    dev: Dev | None,
    usable: Sequence[bool],
) -> list[Probe | None]:
    """Fit a prefix on which only some of the label sets can be fitted."""
    chosen = [m for m, can in enumerate(usable) if can]
    held_out = None if dev is None else (dev[0], [dev[1][m] for m in chosen])
    fits = probe.fit_many(X[:end], [targets[m][:end] for m in chosen], [seed], dev=held_out) if chosen else []
    by_set = {m: fits_of_set[0] for m, fits_of_set in zip(chosen, fits, strict=True)}
    return [by_set.get(m) for m in range(len(targets))]


def _can_fit(y: NDArray[np.int64], dev: NDArray[np.int64] | None) -> bool:
    classes = np.unique(y)
    return len(classes) > 1 and (dev is None or bool(np.isin(dev, classes).any()))


def _sequential_nats(
    fits: Sequence[Probe | None], X: NDArray[np.float32], labels: Labels, ends: Sequence[int]
) -> NDArray[np.float64]:
    parts = [np.full(ends[0], math.log(len(labels.classes)))]
    for fit, start, end in zip(fits, ends, ends[1:], strict=False):
        parts.append(_nats(fit, X, labels, slice(start, end), seen=labels.y[:start]))
    return np.concatenate(parts)


def _nats(
    fit: Probe | None, X: NDArray[np.float32], labels: Labels, rows: slice, *, seen: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return −ln((1 − w) p + w/K) of the rows' labels. Without a fit, p is the frequency in `seen`, where each label is
    counted once more than it occurred.
    """
    n_classes = len(labels.classes)
    y = labels.y[rows]
    if fit is None:
        p = ((np.bincount(seen, minlength=n_classes) + 1.0) / (len(seen) + n_classes))[y]
    else:
        p = np.exp(np.concatenate(list(_log_probabilities(fit, X, labels, rows))))
    return np.asarray(-np.log((1.0 - UNIFORM_WEIGHT) * p + UNIFORM_WEIGHT / n_classes))


def _log_probabilities(fit: Probe, X: NDArray[np.float32], labels: Labels, rows: slice) -> list[NDArray[np.float64]]:
    """Return ln p of each row's own label, in blocks of rows."""
    found = []
    for low in range(rows.start, rows.stop, _BLOCK):
        part = np.arange(low, min(low + _BLOCK, rows.stop))
        logs = predict(fit, X[part], labels.take(part)).log_probabilities
        assert logs is not None  # the analysis accepts no probe without probabilities
        found.append(logs[np.arange(len(part)), labels.y[part]])
    return found
