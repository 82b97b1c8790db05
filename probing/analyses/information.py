"""Measures how many bits about the label a kind of probe extracts from the states of a site, or how many it gains if it
reads these in addition to the states of a second site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.analyses._fits import Sampled, States, fits_of, measure_of, point, score_of, score_predictions
from probing.contracts.analysis import Analysis, SiteData
from probing.contracts.measure import Measure, Prediction
from probing.contracts.probe import Probe
from probing.labels import Labels
from probing.measures._rows import gives_probabilities, tempers_of
from probing.results.analysis import Point
from probing.statistics.clusters import Resampler

BITS = "bits per label"


@dataclass(frozen=True, kw_only=True)
class Information(Analysis):
    """Measures usable information in bits: I_V(X→Y) = H_V(Y) − H_V(Y|X), where X is the state at the site, Y the label
    and V the probes of the given kind. If a second site is given, with states B, it measures what X adds to B:
    I_V(X→Y|B) = H_V(Y|[B; 0]) − H_V(Y|[B; X]).

    H_V are cross-entropies in bits per label on the test rows (a probability is taken as at least 2⁻⁵⁰, as in the
    measure `log_loss`). H_V(Y) is that of the train label frequencies. The others are those of the probe, fitted on
    train: on X, on B beside zeros of X's width, and on B beside X. The probe standardises its input, and its log odds
    are scaled by a factor fitted on dev (`measures/_rows.py`). The analysis reports, for the task and every draw of
    every control, `label_entropy` (or `baseline_entropy`), `conditional_entropy`, and their difference,
    `usable_information` (or `conditional_information`); for controls also the mean of the difference over draws. The
    interval of a difference covers the sampling of test sentences or documents and of seeds; that of a mean over draws
    also covers the sampling of draws.

    It misleads if read as all the information that a state holds: it is a lower bound, the part that this kind of probe
    reads after training on finite data. It can be slightly negative where dev is small, since the factor fitted on dev
    may not suit test. Conditional information is what this kind of probe reads from X and not from B; a more powerful
    probe may read it from B too.

    Args:
        given: the second site, such as `resid.0`; empty means none.

    References:
        Xu et al. 2020, A Theory of Usable Information Under Computational Constraints, def. 2. Hewitt, Ethayarajh,
        Liang and Manning 2021, Conditional Probing, eq. 4.
    """

    given: str = ""

    def accepts(self, probe: Probe) -> bool:
        """Return whether the probe has class probabilities."""
        return gives_probabilities(probe)

    def settings(self, data: SiteData) -> Mapping[str, Any]:
        """Return the split, the sources of variation that the intervals cover, and the second site, as values that JSON
        can hold. `data` are the states and labels that the analysis is run on.
        """
        return {"split": "test", "interval": "clusters of test, seeds, draws of a mean", "given": self.given or None}

    def run(self, probe: Probe, data: SiteData) -> Sequence[Point]:
        """Fit the probes and return, for the task's labels and every draw of every control, both entropies and their
        difference, one `Point` each.
        """
        loss, resampler = measure_of("log_loss"), data.resamplers["test"]
        if data.given is None:
            without = [_entropy(labels, loss, resampler) for _, _, labels in data.label_sets]
            beyond = _losses(probe, data, data.states, loss)
        else:
            blank = {split: np.zeros_like(X) for split, X in data.states.items()}
            without = _losses(probe, data, _beside(data.given, blank), loss)
            beyond = _losses(probe, data, _beside(data.given, data.states), loss)
        names = ("label_entropy", "usable_information")
        return _told(data, without, beyond, ("baseline_entropy", "conditional_information") if self.given else names)


def _losses(probe: Probe, data: SiteData, states: States, loss: Measure) -> list[Sampled]:
    """Return the test cross-entropy of every label set."""
    resampler = data.resamplers["test"]
    found = []
    for fits, (_, _, labels) in zip(fits_of(probe, data, states), data.label_sets, strict=True):
        tempers = tempers_of(fits, labels, states["dev"], [measure_of("usable_information")])
        found.append(score_of(fits, labels, states["test"], loss, resampler, tempers=tempers))
    return found


def _entropy(labels: Labels, loss: Measure, resampler: Resampler) -> Sampled:
    """Return the test cross-entropy of the train label frequencies."""
    counts = np.bincount(labels.y[labels.rows("train")], minlength=len(labels.classes))
    with np.errstate(divide="ignore"):
        logs = np.tile(np.log(counts / counts.sum()), (len(resampler.rows), 1))
    return score_predictions([Prediction(logs.argmax(1), logs)], labels.take(resampler.rows), loss, resampler)


def _beside(B: States, X: States) -> dict[str, NDArray[Any]]:
    return {split: np.concatenate([B[split], X[split]], axis=1) for split in X}


def _told(data: SiteData, without: list[Sampled], beyond: list[Sampled], names: tuple[str, str]) -> list[Point]:
    resampler = data.resamplers["test"]
    points: list[Point] = []
    by_control: dict[str, list[tuple[float, NDArray[np.float64]]]] = {}
    for (control, draw, _), less, more in zip(data.label_sets, without, beyond, strict=True):
        gain, samples = less.value - more.value, less.samples - more.samples
        by_control.setdefault(control, []).append((gain, samples))
        for quantity, value, of in (
            (names[0], less.value, less.samples),
            ("conditional_entropy", more.value, more.samples),
            (names[1], gain, samples),
        ):
            points.append(point(quantity, value, of[None], BITS, resampler, control=control, draw=draw))
    for control, found in by_control.items():
        if control:
            mean, samples = float(np.mean([gain for gain, _ in found])), np.stack([samples for _, samples in found])
            points.append(point(names[1], mean, samples, BITS, resampler, control=control))
    return points


MEMBER = Information
