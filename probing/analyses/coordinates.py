"""Lists the coordinates that a sparse probe chose, in order, and the score after each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from probing.analyses._fits import fits_of, main_measure, point, score_of
from probing.contracts.analysis import Analysis, SiteData
from probing.contracts.probe import Probe
from probing.labels import Kind
from probing.results.analysis import Point

_UNITS = {"accuracy": "fraction", "log loss": "bits per label", "R²": "R²", "r2": "R²"}


@dataclass(frozen=True, kw_only=True)
class Coordinates(Analysis):
    """Reports the path of a sparse probe: which coordinates it chose, in what order, and the score after each.

    It reports a curve for the task and for every draw of every control. For each number x of coordinates from 1 to the
    chosen number s, it has the scores that the probe recorded on train and dev, such as `dev_accuracy` and
    `dev_log_loss`, without intervals; their `label` is the index of the coordinate that was added last. At x = s there
    is also `accuracy` (or `r2`) on test, with an interval. A probe has such a path if it names its columns in
    `PATH_COLUMNS` and has `path_` and `coordinates_` when fitted, as `sparse` does. For test scores at other numbers of
    coordinates, use `capacity:parameter=k`.

    It misleads where two coordinates carry the same information, since only one of them is named. Compare the path with
    that of the control: the probe selects coordinates for random labels as well.

    References:
        Dalvi et al. 2019, What Is One Grain of Sand in the Desert? Analyzing Individual Neurons in Deep NLP Models, §3.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ("classes", "real")

    def accepts(self, probe: Probe) -> bool:
        """Return whether the probe records which coordinates it chose (it then has `PATH_COLUMNS`)."""
        return bool(_columns(probe))

    def settings(self, data: SiteData) -> Mapping[str, Any]:
        """Return a dict with a note on which of the numbers have intervals, and of which kind. `data` are the states
        and labels that the analysis is run on.
        """
        return {"interval": "clusters of test; none on train and dev"}

    def run(self, probe: Probe, data: SiteData) -> Sequence[Point]:
        """Fit the probe on the task's labels and on every draw of every control, and return the numbers of all paths
        (`Point`); with several seeds, only the path of the first seed.
        """
        (name, measure), test = main_measure(data), data.resamplers["test"]
        points: list[Point] = []
        for fits, (control, draw, labels) in zip(fits_of(probe, data, data.states), data.label_sets, strict=True):
            fitted: Any = fits[0]
            chosen = [int(index) for index in fitted.coordinates_]
            points += _path(fitted.path_, chosen, _columns(probe), control, draw)
            scored = score_of(fits, labels, data.states["test"], measure, test)
            points.append(
                point(
                    name,
                    scored.value,
                    scored.samples[None],
                    measure.unit,
                    test,
                    control=control,
                    draw=draw,
                    x=float(len(chosen)),
                    x_name="coordinates",
                )
            )
        return points


def _columns(probe: Probe) -> tuple[str, ...]:
    """Return the names, such as `dev accuracy`, of the columns of the probe's path; none if it keeps no path."""
    return tuple(getattr(type(probe), "PATH_COLUMNS", ()))


def _path(path: Any, chosen: Sequence[int], columns: Sequence[str], control: str, draw: int) -> list[Point]:
    """Return a point for every number of coordinates and every column that was scored."""
    return [
        Point(
            name.replace(" ", "_"),
            float(path[row][column]),
            _UNITS[name.partition(" ")[2]],
            control=control,
            draw=draw,
            x=float(row + 1),
            x_name="coordinates",
            label=str(index),
        )
        for column, name in enumerate(columns)
        for row, index in enumerate(chosen)
        if math.isfinite(path[row][column])
    ]


MEMBER = Coordinates
