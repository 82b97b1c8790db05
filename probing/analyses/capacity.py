"""Measures score, control score and selectivity as one parameter of the probe grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from sklearn.base import clone

from probing.analyses._fits import beside, fits_of, main_measure, point, score_of
from probing.contracts.analysis import Analysis, SiteData
from probing.contracts.probe import Probe
from probing.errors import BadParameter
from probing.labels import Kind
from probing.results.analysis import Point

DEFAULTS = {
    "hidden": "1|2|4|8|16|32|64|128|256",
    "k": "1|2|5|10|20|50|100",
    "rank": "1|2|5|10|20|50|100",
    "l2": "0.01|0.1|1|10|100|1000|10000|100000",
    "dropout": "0|0.2|0.4|0.6|0.8",
    "weight_decay": "0|0.01|0.1|1|10",
}
_CHOSEN = ("hidden", "k", "rank", "l2")  # by a probe's first of these


@dataclass(frozen=True, kw_only=True)
class Capacity(Analysis):
    """Fits and scores the probe at every value of one of its parameters, on the task and on its control tasks.

    At each value it reports `accuracy` (or `r2`) on test, for the task and, averaged over draws, for every control;
    `selectivity`, the difference of the two (called `above_chance` if the control only checks for chance, such as
    shuffled labels); and `dev_accuracy` (`dev_r2`), by which a value should be chosen. Intervals cover the sampling of
    test sentences or documents, of seeds, and of random labels of controls.

    It misleads if the value with the best selectivity on test is chosen, since that selectivity is biased upwards:
    choose on dev. A larger l2 means *less* capacity. The probe is trained anew at each value, so the curve of a
    stochastic probe varies as much as its seeds do.

    Args:
        parameter: the probe's parameter: rank, hidden, k, l2, dropout, weight_decay or any other number; empty means
            the first of hidden, k, rank, l2 that the probe has. Probes without this parameter are skipped.
        values: its values, joined by `|`, such as 1|2|5|10; empty means a built-in list for the parameter.

    References:
        Hewitt and Liang 2019, Designing and Interpreting Probes with Control Tasks, §4.2.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("classes", "real")

    parameter: str = ""
    values: str = ""

    def __post_init__(self) -> None:
        if self.values:
            _numbers(self.values)
        elif self.parameter and self.parameter not in DEFAULTS:
            raise BadParameter(
                f"no default values of {self.parameter}",
                needed=f"values=A|B|…, or one of {', '.join(DEFAULTS)}",
                found=self.parameter,
                next_step=f"give values: capacity:parameter={self.parameter},values=1|10",
            )

    def accepts(self, probe: Probe) -> bool:
        """Return whether the probe has the parameter."""
        return self._parameter(probe) in probe.get_params()

    def settings(self, data: SiteData) -> Mapping[str, Any]:
        """Return the split that is scored and the sources of variation that the intervals cover, as values that JSON
        can hold. `data` are the states and labels that the analysis is run on.
        """
        return {"split": "test", "interval": "clusters of test, seeds, draws"}

    def run(self, probe: Probe, data: SiteData) -> Sequence[Point]:
        """Fit the probe with every value of the parameter and return the scores as numbers on a curve (`Point`), in the
        order of the values.
        """
        name = self._parameter(probe)
        whole = isinstance(probe.get_params()[name], int | None)
        points: list[Point] = []
        for x in _numbers(self.values or DEFAULTS[name]):
            sized: Probe = clone(probe).set_params(**{name: int(x) if whole and x.is_integer() else x})
            points += _at(x, name, sized, data)
        return points

    def _parameter(self, probe: Probe) -> str:
        own = probe.get_params()
        return self.parameter or next((name for name in _CHOSEN if name in own), "")


def _numbers(values: str) -> list[float]:
    """Return the values of the parameter as numbers.

    Raises:
        BadParameter: something that is no number, or a number twice.
    """
    try:
        found = [float(value) for value in values.split("|")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or not np.isfinite(found).all():
        raise BadParameter(
            "values must be different numbers, joined by |",
            needed="something like values=1|2|5|10",
            found=values,
            next_step="in a shell, quote it: --analysis 'capacity:values=1|2|5|10'",
        )
    return found


def _at(x: float, name: str, probe: Probe, data: SiteData) -> list[Point]:
    """Return the points of one value of the parameter."""
    quantity, measure = main_measure(data)
    fits = fits_of(probe, data, data.states)
    task, *draws = (
        score_of(of_set, labels, data.states["test"], measure, data.resamplers["test"])
        for of_set, (_, _, labels) in zip(fits, data.label_sets, strict=True)
    )
    on_dev = score_of(fits[0], data.labels, data.states["dev"], measure, data.resamplers["dev"])
    place: dict[str, Any] = {"x": x, "x_name": name}
    unit, test = measure.unit, data.resamplers["test"]
    points = [
        point(quantity, task.value, task.samples[None], unit, test, **place),
        point(f"dev_{quantity}", on_dev.value, on_dev.samples[None], unit, data.resamplers["dev"], **place),
    ]
    place_of = iter(draws)
    for control, labels in data.controls.items():
        points += beside(task, [next(place_of) for _ in labels], control, quantity, unit, data, place)
    return points


MEMBER = Capacity
