"""Probes of k columns of several kinds of input, beside the probe of the whole state: columns are ranked on train, k is
chosen on dev, and scores are those on test; the *quiver rule* asks whether a choice among more probes does better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.analyses._fits import Sampled, beside, measure_of, point, score_of
from probing.contracts.analysis import SiteData
from probing.contracts.measure import Measure
from probing.contracts.probe import Probe
from probing.labels import Labels
from probing.results.analysis import Point
from probing.statistics.clusters import Resampler
from probing.statistics.sparse_columns import mean_differences

States = Mapping[str, Any]
WHOLE = "dense"
OF_STATES = (WHOLE, "coordinates", "pca")  # the choice of probes before dictionaries are added
ADDED = ("dictionary", "random")


@dataclass(frozen=True)
class Columns:
    """Gives the first k columns of one kind of input, for one method of the comparison.

    Attributes:
        method: name of the method.
        states: `(n, m)` by split, sparse or not.
        is_ranked: whether columns are ranked by |mean difference| on train; else their order is kept.
    """

    method: str
    states: States
    is_ranked: bool = True

    @property
    def count(self) -> int:
        """Number m of columns."""
        return int(self.states["train"].shape[1])

    def first(self, labels: Labels, k: int) -> States:
        """Return the first k columns of all splits for the labels of a task or of a control, `(n, k)` float32."""
        return self.taken(self.order(labels)[:k])

    def order(self, labels: Labels) -> NDArray[np.int64]:
        """Return the columns in the order in which they are taken, for these labels."""
        if not self.is_ranked:
            return np.arange(self.count)
        y = labels.y[labels.rows("train")]
        return np.argsort(-mean_differences(self.states["train"], y, len(labels.classes)), kind="stable")

    def taken(self, columns: NDArray[np.int64]) -> States:
        """Return these columns of all splits, `(n, k)` float32."""
        parts = {split: X[:, columns] for split, X in self.states.items()}
        dense = {split: X if isinstance(X, np.ndarray) else X.toarray() for split, X in parts.items()}
        return {split: np.ascontiguousarray(X, np.float32) for split, X in dense.items()}


@dataclass(frozen=True)
class Tried:
    """Holds the scores of one method at one number of columns; k is None for the whole state."""

    method: str
    k: int | None
    dev: Sampled
    test: Sampled


def principal_components(states: States, most: int) -> States:
    """Return the coordinates of all rows along the principal components of train, by split: at most `most`, and no more
    than there are features or train rows, from the largest variance to the smallest.
    """
    train = np.asarray(states["train"], np.float64)
    mean = train.mean(0)
    values, vectors = np.linalg.eigh((train - mean).T @ (train - mean))
    axes = vectors[:, np.argsort(-values, kind="stable")[: min(most, len(train))]]
    return {split: np.asarray((X - mean) @ axes, np.float32) for split, X in states.items()}


def compared_columns(
    probe: Probe, data: SiteData, inputs: Sequence[Columns], ks: Sequence[int], measure_name: str
) -> tuple[list[Point], Probe]:
    """Fit the probe on the whole state and on k columns of every input, for each k, and return the numbers and the
    probe of the whole state (of the first seed).

    Every method gives, at each k, its score on dev (`dev_MEASURE`) and test; at the k with the best score on dev,
    `chosen_k`, its scores on every control, fitted on the columns that rank first for the control's labels, and the
    difference from the whole state (`above_dense`; of latents of the dictionary from every other method, too), both
    paired by resample.
    """
    measure = measure_of(measure_name)
    whole, fits = _tried(probe, data, data.states, WHOLE, None, measure)
    tried = [whole]
    for columns in inputs:
        order = columns.order(data.labels)
        for k in [k for k in ks if k <= columns.count]:
            tried.append(_tried(probe, data, columns.taken(order[:k]), columns.method, k, measure)[0])
    points = [p for one in tried for p in _scores(one, measure_name, measure, data)]
    chosen = {one.method: best([other for other in tried if other.method == one.method], measure) for one in tried}
    points += _chosen(chosen, measure, data.resamplers["test"])
    for method, one in chosen.items():
        of_method = next((given for given in inputs if given.method == method), None)
        points += _on_controls(probe, data, of_method, one, measure_name)
    for added in [name for name in ADDED if name in chosen]:
        arrows = [one for one in tried if one.method in (*OF_STATES, added)]
        points += quiver(arrows, added, measure, data.resamplers["test"])
    return points, fits[0]


def _tried(
    probe: Probe, data: SiteData, states: States, method: str, k: int | None, measure: Measure
) -> tuple[Tried, list[Probe]]:
    fits = _fits(probe, data, data.labels, states)
    dev, test = (
        score_of(fits, data.labels, states[split], measure, data.resamplers[split]) for split in ("dev", "test")
    )
    return Tried(method, k, dev, test), fits


def _fits(probe: Probe, data: SiteData, labels: Labels, states: States) -> list[Probe]:
    """Fit the probe on one set of labels under every seed, with dev held out."""
    train, dev = ([labels.y[labels.rows(split)]] for split in ("train", "dev"))
    seeds = data.seeds if probe.stochastic else data.seeds[:1]
    return probe.fit_many(states["train"], train, seeds, dev=(states["dev"], dev))[0]


def best(tried: Sequence[Tried], measure: Measure) -> Tried:
    """Return what has the best score on dev; of equal ones the first."""
    sign = 1.0 if measure.higher_is_better else -1.0
    return max(tried, key=lambda one: sign * one.dev.value)


def _place(one: Tried) -> dict[str, Any]:
    return {"x": None if one.k is None else float(one.k), "x_name": "" if one.k is None else "k", "label": one.method}


def _scores(one: Tried, name: str, measure: Measure, data: SiteData) -> list[Point]:
    return [
        point(quantity, found.value, found.samples[None], measure.unit, data.resamplers[split], **_place(one))
        for quantity, found, split in ((f"dev_{name}", one.dev, "dev"), (name, one.test, "test"))
    ]


def _chosen(chosen: Mapping[str, Tried], measure: Measure, test: Resampler) -> list[Point]:
    """Return the chosen number of columns of every method, and how much better than the whole state it is on test; for
    latents of the dictionary, how much better than every other method.
    """
    points = []
    for one in chosen.values():
        if one.k is None:
            continue
        points.append(Point("chosen_k", float(one.k), "columns", label=one.method))
        for other in chosen.values() if one.method == ADDED[0] else [chosen[WHOLE]]:
            if other is not one:
                points.append(_above(one, other, measure, test))
    return points


def _above(one: Tried, other: Tried, measure: Measure, test: Resampler) -> Point:
    sign = 1.0 if measure.higher_is_better else -1.0
    gain, samples = sign * (one.test.value - other.test.value), sign * (one.test.samples - other.test.samples)
    return point(f"above_{other.method}", gain, samples[None], measure.unit, test, least=-1.0, **_place(one))


def _on_controls(probe: Probe, data: SiteData, columns: Columns | None, one: Tried, name: str) -> list[Point]:
    """Return scores on every control and selectivity against it; None: the columns are those of the whole state."""
    measure, points = measure_of(name), []
    for control, sets in data.controls.items():
        draws = []
        for labels in sets:
            states = data.states if columns is None else columns.first(labels, one.k or 1)
            fits = _fits(probe, data, labels, states)
            draws.append(score_of(fits, labels, states["test"], measure, data.resamplers["test"]))
        points += beside(one.test, draws, control, name, measure.unit, data, _place(one))
    return points


def quiver(arrows: Sequence[Tried], added: str, measure: Measure, test: Resampler) -> list[Point]:
    """Return what is gained on test by adding one method's probes to the probes among which dev chooses: the score of
    the choice with them less that of the choice without them.

    The interval is from resamples of the clusters of dev and of test; in each, the choice is made anew on the resampled
    dev rows, so that the noise of choosing is part of it. `quiver_share` is the share of resamples that choose a probe
    of the added method.

    Args:
        arrows: all probes; those of the added method come last.
        added: name of the added method.
        measure: measure of choice and score.
        test: resampler of the test rows.

    References:
        Kantamneni, Engels, Rajamanoharan, Tegmark and Nanda 2025, Are Sparse Autoencoders Useful? A Case Study in
        Sparse Probing, §3.2.
    """
    sign = 1.0 if measure.higher_is_better else -1.0
    without = [one for one in arrows if one.method != added]
    on_dev = sign * np.stack([one.dev.samples.mean(0) for one in arrows])
    on_test = np.stack([one.test.samples.mean(0) for one in arrows])
    on_dev = np.where(np.isfinite(on_dev), on_dev, -np.inf)
    picks = [on_dev[: len(without)].argmax(0), on_dev.argmax(0)]
    before, after = (on_test[pick, np.arange(on_test.shape[1])] for pick in picks)
    first, second = best(without, measure), best(arrows, measure)
    gain, samples = sign * (second.test.value - first.test.value), sign * (after - before)
    share = float((picks[1] >= len(without)).mean())
    of_gain: dict[str, Any] = {"label": added}
    return [
        *(
            Point(name, one.test.value, measure.unit, x=one.k, x_name="k", label=one.method, control=f"with {added}")
            for name, one in (("quiver_without", first), ("quiver_with", second))
        ),
        # Where no resample chooses another probe the gain is 0 by construction, not by estimate.
        point("quiver_gain", gain, samples[None, None], measure.unit, test, least=-1.0, **of_gain)
        if samples.any() or gain
        else Point("quiver_gain", 0.0, measure.unit, 0.0, 0.0, **of_gain),
        Point("quiver_share", share, "fraction", label=added),
    ]
