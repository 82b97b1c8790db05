"""Defines `ProbeResult` and its parts (such as `Score` and `Comparison`), the results of training, and reads and writes
them as JSON lines and as one long table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError

from probing.errors import InputError, UnknownName
from probing.files.fact_shapes import check_shapes
from probing.statistics.bootstrap import ALPHA
from probing.statistics.clusters import NEW

T = TypeVar("T")
CORRECTIONS = ("holm", "bh")
Correction = Literal["holm", "bh"]


@dataclass(frozen=True)
class Score:
    """Holds a number (`value`) with its 95 % interval from `low` to `high`, the number `n` of rows it was computed
    from, and its `unit`, such as `bits`.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str


@dataclass(frozen=True)
class Comparison:
    """Holds the score of the same probe on a control task, and how much better its score on the task is.

    Attributes:
        control: name of the control, such as `word_type`.
        score: score on the control, mean over draws and seeds.
        ceiling: accuracy to be expected on the control from a probe that has memorised the label of every key in train
            (such as every word form) and guesses the commonest label for other keys; lucky guesses can exceed it. None
            for other measures.
        selectivity: task score minus control score (for measures in which lower is better: control minus task).
        is_selectivity: whether this difference is called selectivity. It is not for a control that only checks for
            chance (such as shuffled labels) or that replaces states.
        draws: score on each random draw of the control, mean over seeds.
        above: for a control that replaces states, a name of these states, such as `random states`, `the untrained twin`
            (a copy of the model with random weights) or `resid.0`; empty for controls that change labels.
        seen: score on the control for rows whose key (such as the word form) occurs in train; None if there are none.
        unseen: the same for the rows whose key does not occur in train.
        detectable: the smallest true difference whose interval would have excluded 0 with 80 % probability; None
            if none could have.
    """

    control: str
    score: Score
    ceiling: float | None
    selectivity: Score
    is_selectivity: bool
    draws: tuple[float, ...] = ()
    seen: float | None = None
    unseen: float | None = None
    detectable: float | None = None
    above: str = ""


@dataclass(frozen=True)
class Gain:
    """Holds the gain of a probe over a baseline, the difference of their scores on the same rows, with a one-sided test
    of whether it exceeds a margin.

    Attributes:
        baseline: name of the baseline probe.
        gain: score of the probe minus that of the baseline (the reverse if lower scores are better).
        margin: gain that has to be exceeded.
        p: one-sided p value of the hypothesis that the gain is at most the margin.
        p_adjusted: p adjusted over the sites, probes, baselines and tasks of one store, for this measure and split.
            Tasks of which a fit failed are adjusted separately.
        correction: method of adjustment, `holm` or `bh` (Benjamini-Hochberg).
        family: number of tests over which p was adjusted; None if not recorded.
        error: standard error of the gain.
        df: degrees of freedom of that error.
        detectable: the smallest true gain that would have been shown to exceed the margin with 80 % probability, at
            the level that adjustment leaves to one test; None if no gain could have been shown.
        largest: gain of a perfect score; None if there is none, or if not recorded.
    """

    baseline: str
    gain: Score
    margin: float
    p: float
    p_adjusted: float
    correction: Correction = "holm"
    family: int | None = None
    error: float | None = None
    df: float | None = None
    detectable: float | None = None
    largest: float | None = None

    @property
    def is_shown(self) -> bool:
        """Whether the gain is shown to exceed its margin: the lower bound of the gain, at the adjusted level, is above
        the margin.
        """
        return self.gain.value > self.margin and self.p_adjusted <= ALPHA


@dataclass(frozen=True)
class MeasureResult:
    """Holds the score of one measure on one split, its comparison with every control, and its gain over every baseline.

    Attributes:
        measure: name of the measure.
        split: name of the split.
        score: the score, mean over seeds.
        higher_is_better: whether a higher score is a better one.
        seen: score on the rows whose key (such as the word form) occurs in train; None if not known.
        unseen: score on the other rows; None if not known.
        comparisons: one comparison per control.
        gains: one gain per baseline.
    """

    measure: str
    split: str
    score: Score
    higher_is_better: bool
    seen: float | None = None
    unseen: float | None = None
    comparisons: tuple[Comparison, ...] = ()
    gains: tuple[Gain, ...] = ()

    @property
    def least_gain(self) -> Gain | None:
        """Gain over the best baseline, which is the smallest gain; None without a baseline."""
        return min(self.gains, key=lambda gain: gain.gain.value, default=None)

    @property
    def is_beyond(self) -> bool | None:
        """Whether the gain over the best baseline is shown to exceed its margin; None without a baseline."""
        least = self.least_gain
        return None if least is None else least.is_shown


@dataclass(frozen=True, repr=False)
class ProbeResult:
    """Holds the result of one probe at one site on one task. It is about decodability only, never about use.

    Attributes:
        task, site: names of the task and of the site.
        kind: kind of the labels: `classes`, `real` numbers, or `labels` (several for each row).
        probe: name of the probe with its options, such as `mlp:hidden=64`.
        measures: scores on the splits `dev` and `test`. If some inputs of these splits also occur in train, there are
            scores without them too, as the splits `dev_new` and `test_new`; verdicts use these.
        seed_count: number of seeds.
        draw_count: number of random versions (draws) of each control.
        fit_count: number of fits made; a deterministic probe is fitted once for all seeds.
        classes: class names; empty for regression.
        confusion: confusion matrix on test with the first seed: counts by true class (rows) and predicted class
            (columns); empty for regression.
        converged: whether every fit met its tolerance.
        facts: facts about the data by name, such as the numbers of rows per split, the share of the majority class and
            the entropy of the labels in bits.
        provenance: what the result was computed from: ids of the store and its content, hash of the corpus, settings,
            environment.
        complete: whether all fits of its task were done when it was written.
    """

    task: str
    kind: str
    site: str
    probe: str
    measures: tuple[MeasureResult, ...]
    seed_count: int
    draw_count: int
    fit_count: int
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    converged: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    complete: bool = True

    def __repr__(self) -> str:
        scores = [f"{m.measure} {m.score.value:.3f}" for m in self.measures if m.split == self.judged_split()]
        return f"ProbeResult({self.task}: {self.probe} at {self.site}; {', '.join(scores) or 'not scored on test'})"

    @property
    def is_of_arrays(self) -> bool:
        """Whether the states were arrays in memory (`pb.probe`), so that there is no corpus and no store to change."""
        imported = self.provenance.get("imported")
        return isinstance(imported, Mapping) and imported.get("format") == "array"

    def measure(self, name: str, split: str = "test") -> MeasureResult:
        """Return the result of the measure `name` on one split.

        Raises:
            UnknownName: the measure was not scored on that split.
        """
        for result in self.measures:
            if (result.measure, result.split) == (name, split):
                return result
        known = ", ".join(sorted({f"{r.measure} on {r.split}" for r in self.measures}))
        raise UnknownName(f"{name} on {split} was not scored", needed=f"one of: {known}", found=f"{name} on {split}")

    def judged_split(self, split: str = "test") -> str:
        """Return the name of the split whose rows verdicts are based on: for `test` it is `test_new`, the test rows
        whose input is not in train, if these were scored separately, else `test`; likewise for `dev`.
        """
        return split + NEW if any(found.split == split + NEW for found in self.measures) else split

    def judged(self, name: str, split: str = "test") -> MeasureResult:
        """Return the result of the measure `name` on the rows that verdicts are based on: those of the split whose
        input is not in train, if these were scored separately, else all (see `judged_split`).

        Raises:
            UnknownName: the measure was not scored on that split.
        """
        return self.measure(name, self.judged_split(split))

    def rows(self) -> list[dict[str, Any]]:
        """Return the result as rows of a long table: one dict per measure, split and control. A measure without
        controls has one per split, in which the values about controls are empty.
        """
        return [row for result in self.measures for row in self._measure_rows(result)]

    def _measure_rows(self, result: MeasureResult) -> list[dict[str, Any]]:
        score = result.score
        head = {
            "site": self.site,
            "task": self.task,
            "probe": self.probe,
            "measure": result.measure,
            "split": result.split,
            "value": score.value,
            "low": score.low,
            "high": score.high,
            "unit": score.unit,
        }
        tail = {"n": score.n, "seed_count": self.seed_count, "draw_count": self.draw_count}
        more = {
            "fit_count": self.fit_count,
            "converged": self.converged,
            "kind": self.kind,
            "value_seen": result.seen,
            "value_unseen": result.unseen,
            "higher_is_better": result.higher_is_better,
            **{name: self.provenance.get(name) for name in ("store_id", "model", "run")},
            "saved": str(self.provenance.get("saved") or ""),
            "provenance": json.dumps(self.provenance, sort_keys=True),
        }
        more |= _gain_columns(result) | {"complete": self.complete}
        return [head | columns | tail | more for columns in (map(_control_columns, result.comparisons or (None,)))]


def _gain_columns(result: MeasureResult) -> dict[str, Any]:
    """Return the gain over the best baseline."""
    least = result.least_gain
    if least is None:
        return dict.fromkeys(_GAIN_COLUMNS)
    values = (
        least.baseline,
        least.gain.value,
        least.gain.low,
        least.gain.high,
        least.margin,
        least.p,
        least.p_adjusted,
        least.correction,
        least.family,
        least.detectable,
    )
    return dict(zip(_GAIN_COLUMNS, values, strict=True))


def _control_columns(comparison: Comparison | None) -> dict[str, Any]:
    if comparison is None:
        return dict.fromkeys(_CONTROL_COLUMNS)
    gain = comparison.selectivity
    kinds = (comparison.is_selectivity, not comparison.is_selectivity and not comparison.above, bool(comparison.above))
    differences = [(gain.value, gain.low, gain.high) if kind else (None, None, None) for kind in kinds]
    values = (
        comparison.control,
        comparison.score.value,
        comparison.score.low,
        comparison.score.high,
        comparison.ceiling,
        *(number for three in differences for number in three),
        comparison.seen,
        comparison.unseen,
        comparison.detectable,
    )
    return dict(zip(_CONTROL_COLUMNS, values, strict=True))


_CONTROL_COLUMNS = (
    "control",
    "control_value",
    "control_low",
    "control_high",
    "ceiling",
    "selectivity",
    "selectivity_low",
    "selectivity_high",
    "above_chance",
    "above_chance_low",
    "above_chance_high",
    "above_states",
    "above_states_low",
    "above_states_high",
    "control_seen",
    "control_unseen",
    "control_detectable",
)
_GAIN_COLUMNS = (
    "baseline",
    "gain",
    "gain_low",
    "gain_high",
    "gain_margin",
    "gain_p",
    "gain_p_adjusted",
    "correction",
    "gain_family",
    "gain_detectable",
)


def to_json(result: ProbeResult) -> str:
    """Return a result as one JSON line with sorted keys."""
    return json.dumps(asdict(result), sort_keys=True, allow_nan=False)


def from_json(line: str) -> ProbeResult:
    """Return the result that `to_json` wrote.

    Raises:
        ValueError: the text is not such a result; the message names every field that is missing or of the wrong type.
    """
    result = _reader().validate_json(line)
    check_shapes(result.facts, result.provenance)
    return result


@cache
def _reader() -> TypeAdapter[ProbeResult]:
    return TypeAdapter(ProbeResult)


def read_results(path: Path) -> list[ProbeResult]:
    """Return all results in a JSON-lines file.

    Raises:
        InputError: a line is not a result; the message gives its number.
    """
    return read_lines(path, from_json, "results")


def read_lines(path: Path, read: Callable[[str], T], what: str) -> list[T]:
    """Parse every line of a file that is not empty with `read`, and return the results; `what` is the word for them in
    messages.

    Raises:
        InputError: a line cannot be parsed; the message gives its number.
    """
    found: list[T] = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        try:
            found += [read(line.decode())] if line.strip() else []
        except ValueError as error:
            raise InputError(
                f"the {what} cannot be read",
                needed="one result per line, as `probing train` writes them",
                found=_why(error),
                where=f"{path}:{number}",
                next_step="delete the file, and run the command that made it again, to the same directory: what is "
                "done is kept in its folders",
            ) from None
    return found


def _why(error: ValueError) -> str:
    """Return what is wrong with a line, in one sentence: pydantic's message on the first of the wrong fields."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")[:300]
    return str(error)[:300]


def json_lines(results: Iterable[ProbeResult]) -> str:
    """Return results as the text of a JSON-lines file."""
    return "".join(to_json(result) + "\n" for result in results)
