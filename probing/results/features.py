"""Defines `FeatureScores`, which reads the numbers of a comparison of a sparse dictionary with the states that it
encodes: the score of a probe on each kind of columns (each method), the gain by the quiver rule (see `Quiver`), and the
latents that detect each class.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probing.results.analysis import AnalysisResult, Point
from probing.results.probe import Score

if TYPE_CHECKING:
    import pandas as pd

PREFIX = "features:"  # of the name of such an analysis
METHODS = {
    "dense": "the whole state",
    "coordinates": "coordinates of the state",
    "pca": "principal components",
    "dictionary": "latents of the dictionary",
    "random": "latents of a random dictionary",
    "twin": "latents of the untrained twin's dictionary",
}


@dataclass(frozen=True)
class MethodScore:
    """Holds the scores of one method at one number of columns.

    Attributes:
        method: name of the method, a key of `METHODS`.
        k: number of columns; None for the whole state.
        dev: score on dev.
        test: score on test.
        is_chosen: whether dev chose this k.
        controls: at the chosen k, for each control, a pair: the score on the control on test, and the selectivity (for
            a control that only checks for chance, the score minus that on the control).
        above: at the chosen k, by name of another method, how much better this method scores on test than that one. The
            other method is the whole state (`dense`); latents of the dictionary are compared with every other method.
    """

    method: str
    k: int | None
    dev: Score
    test: Score
    is_chosen: bool
    controls: Mapping[str, tuple[Score, Score]]
    above: Mapping[str, Score]


@dataclass(frozen=True)
class Quiver:
    """Holds the gain of the quiver rule: dev chooses the best probe, once among the probes on states alone, and once
    among these and the probes of one more method; the gain is the difference of the two choices' scores on test.

    Attributes:
        added: the method whose probes are added, `dictionary` or `random`.
        gain: score on test of the choice with the added probes minus that of the choice without them.
        without, chosen: method, k and score on test of the probe chosen without and with the added probes.
        share: share of the bootstrap resamples of dev in which an added probe is chosen.
    """

    added: str
    gain: Score
    without: tuple[str, int | None, float]
    chosen: tuple[str, int | None, float]
    share: float


@dataclass(frozen=True)
class LatentScore:
    """Holds the numbers of one latent that is taken as a detector of a class: it fires (is active above a cut) on rows
    of the class.

    Attributes:
        latent: number of the latent.
        label: the class.
        is_main: whether it is the best single latent of the class. Other latents were chosen because they fire on rows
            of the class on which those before them do not.
        scores: by name: `precision`, `recall` and `f1` on test; for the main latent also `auroc`; for other latents, on
            the test rows on which no earlier latent fires, also `recovers`, the share of the class's rows on which this
            one fires, and `false_alarms`, the same share of all other rows.
        numbers: further numbers by name: for the main latent `p` (of an AUROC above 0.5, corrected for the number of
            latents searched), `searched` (that number), `train_auroc` and `cut` (activation above which it fires); for
            others `missed`, the number of the class's test rows on which no earlier latent fires; the cosines
            `cosine_with_main` and `cosine_with_probe`.
    """

    latent: int
    label: str
    is_main: bool
    scores: Mapping[str, Score]
    numbers: Mapping[str, float]

    @property
    def is_shown(self) -> bool:
        """Whether the latent is shown to detect the class: its AUROC on test is above 0.5 at a level of 5 %, with p
        corrected for the number of latents searched.
        """
        return self.numbers.get("p", 1.0) <= 0.05


def is_features(result: AnalysisResult) -> bool:
    """Return whether an analysis compares a dictionary with states."""
    return result.analysis.startswith(PREFIX)


class FeatureScores:
    """Reads an `AnalysisResult` that compares a dictionary with the states that it encodes.

    Attributes:
        result: the analysis's result.
        measure: name of the measure of all methods.
        dictionary: facts about the dictionary, such as `name`, `latents` and `architecture`.
    """

    def __init__(self, result: AnalysisResult) -> None:
        self.result = result
        self.measure = str(result.settings["measure"])
        self.dictionary: Mapping[str, Any] = result.settings["dictionary"]
        self._test_rows = int(result.settings["test_rows"])

    def _score(self, one: Point) -> Score:
        low, high = (math.nan if end is None else end for end in (one.low, one.high))
        return Score(one.value, low, high, n=self._test_rows, unit=one.unit)

    def _first(self, quantity: str, **fields: Any) -> Point | None:
        for one in self.result.points:
            if one.quantity == quantity and all(getattr(one, name) == value for name, value in fields.items()):
                return one
        return None

    @property
    def methods(self) -> list[MethodScore]:
        """Scores of every method at every number of columns, the whole state first."""
        found = []
        for one in self.result.of(self.measure):
            if one.x_name == "latent":
                continue
            place = {"label": one.label, "x": one.x}
            dev = self._first(f"dev_{self.measure}", **place)
            above = {name: self._first(f"above_{name}", **place) for name in METHODS}
            best = self._first("chosen_k", label=one.label)
            found.append(
                MethodScore(
                    method=one.label,
                    k=None if one.x is None else int(one.x),
                    dev=self._score(dev or one),
                    test=self._score(one),
                    is_chosen=one.x is None or (best is not None and best.value == one.x),
                    controls=self._controls(one),
                    above={name: self._score(gain) for name, gain in above.items() if gain is not None},
                )
            )
        return found

    def _controls(self, one: Point) -> dict[str, tuple[Score, Score]]:
        place, found = {"label": one.label, "x": one.x}, {}
        for control in self.result.of(self.measure, control=None):
            if control.x_name == "latent" or not control.control or (control.label, control.x) != (one.label, one.x):
                continue
            own = place | {"control": control.control}
            gain = self._first("selectivity", **own) or self._first("above_chance", **own)
            if gain is not None:
                found[control.control] = (self._score(control), self._score(gain))
        return found

    @property
    def chosen(self) -> dict[str, MethodScore]:
        """Scores of each method at the number of columns that dev chose, by name of the method."""
        return {one.method: one for one in self.methods if one.is_chosen}

    @property
    def quivers(self) -> list[Quiver]:
        """Gains by the quiver rule (see `Quiver`): with probes of the dictionary added, and with probes of the random
        dictionary added.
        """
        found = []
        for gain in self.result.of("quiver_gain"):
            own = {"control": f"with {gain.label}"}
            sides = [self._first(name, **own) for name in ("quiver_without", "quiver_with")]
            share = self._first("quiver_share", label=gain.label)
            if share is None or None in sides:
                continue
            before, after = ((p.label, None if p.x is None else int(p.x), p.value) for p in sides if p is not None)
            found.append(Quiver(gain.label, self._score(gain), before, after, share.value))
        return found

    @property
    def latents(self) -> list[LatentScore]:
        """Latents of each class: the main one, followed by those that fire on rows of the class on which it
        does not.
        """
        groups: dict[tuple[str, float], list[Point]] = {}
        for one in self.result.points:
            if one.x_name == "latent" and not one.control and one.x is not None:
                groups.setdefault((one.label, one.x), []).append(one)
        order = {label: place for place, (label, _) in enumerate(groups)}
        return [
            LatentScore(
                latent=int(x),
                label=label,
                is_main=any(one.quantity == "searched" for one in points),
                scores={one.quantity: self._score(one) for one in points if one.low is not None},
                numbers={one.quantity: one.value for one in points if one.low is None},
            )
            for (label, x), points in sorted(groups.items(), key=lambda item: order[item[0][0]])
        ]

    def best_at_random(self, label: str) -> Score | None:
        """Return the AUROC on test of the random dictionary's best latent for a class; None if there is none."""
        one = self._first("auroc", label=label, x_name="latent", control="random")
        return None if one is None else self._score(one)

    def active(self, method: str) -> tuple[float, int] | None:
        """Return a pair for a method (`dictionary`, `random` or `twin`): L0, the mean number of active latents per row,
        and the number of latents that are active on at least one train row; None if this method was not compared.
        """
        found = [self._first(name, label=method) for name in ("l0", "alive")]
        return None if None in found else (found[0].value, int(found[1].value))  # type: ignore[union-attr]

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of features.parquet, one dict for each method and number of columns."""
        head = {"task": self.result.task, "site": self.result.site, "probe": self.result.probe}
        head |= {"dictionary": self.dictionary["name"], "measure": self.measure}
        tail = {name: self.result.provenance.get(name) for name in ("store_id", "model", "run")}
        return [head | _row(one) | tail for one in self.methods]


def _row(one: MethodScore) -> dict[str, Any]:
    control, against = next(iter(one.controls.items()), ("", None))
    score, gain = against or (None, None)
    above = one.above.get("dense")
    return {
        "method": one.method,
        "k": one.k,
        "chosen": one.is_chosen,
        "dev": one.dev.value,
        "value": one.test.value,
        "low": one.test.low,
        "high": one.test.high,
        "unit": one.test.unit,
        "n": one.test.n,
        "control": control,
        "control_value": score.value if score else None,
        "selectivity": gain.value if gain else None,
        "selectivity_low": gain.low if gain else None,
        "selectivity_high": gain.high if gain else None,
        "above_dense": above.value if above else None,
        "above_dense_low": above.low if above else None,
        "above_dense_high": above.high if above else None,
    }


def features_of(analyses: Iterable[AnalysisResult]) -> list[FeatureScores]:
    """Return the comparisons of dictionaries among the results of analyses."""
    return [FeatureScores(one) for one in analyses if is_features(one)]


def features_table(found: Iterable[FeatureScores]) -> pd.DataFrame:
    """Return a DataFrame with one row per comparison, method and number of columns, the content of features.parquet."""
    import pandas as pd

    frame = pd.DataFrame([row for one in found for row in one.rows()])
    texts = ("task", "site", "probe", "dictionary", "measure", "method", "unit", "control", "store_id", "model", "run")
    types = dict.fromkeys(texts, "string") | {"k": "Int64", "n": "int64", "chosen": "bool"}
    return frame.astype({str(name): types.get(str(name), "float64") for name in frame})
