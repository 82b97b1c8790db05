"""Defines the criterion of decodability, the one rule that tables, report and Parquet files apply.

A task is *decodable* at a site if the probe's gain over the best baseline exceeds its margin (0.02 in accuracy) on
test, at an adjusted p of at most 0.025 (`Gain.is_shown`). It is *selectively decodable* if the interval of selectivity
against every control also lies above 0. Otherwise it is *not beyond* that baseline: *not beyond bag_of_words* does not
mean that the states lack the label, only that they are not shown to tell more of it than the words do. No judgement is
made on fewer than 20 different test sentences, if all test labels are the same, or if one of two is on a single row,
sentence or group. Test rows whose input also occurs in train are left out, unless the other rows are too few or have
only one label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probing.results.probe import Comparison, Gain, MeasureResult, ProbeResult

MIN_SENTENCES = 20
SELECTIVE, DECODABLE, NOT_SHOWN, NOT_JUDGED = (
    "selectively decodable",
    "decodable",
    "not shown to be decodable",
    "not judged",
)


@dataclass(frozen=True)
class Judgement:
    """Holds the judgement by the criterion of decodability, for one measure of one probe at one site.

    Attributes:
        result: result of the probe.
        measured: the scores that the judgement is based on.
        gain: gain over the best baseline; None if there is no baseline.
        weakest: comparison with the control against which selectivity is smallest; None if there is no control.
        status: the judgement: `decodable` (the gain is shown to exceed its margin), `selectively decodable` (and
            selectivity against every control to be above 0), `not beyond BASELINE` (not shown to exceed that baseline),
            `not shown to be decodable` (not shown to exceed the label frequencies) or `not judged`.
    """

    result: ProbeResult
    measured: MeasureResult
    gain: Gain | None
    weakest: Comparison | None
    status: str


def judged(result: ProbeResult, measured: MeasureResult) -> Judgement:
    """Apply the criterion to one measure of one result on test, and return the judgement."""
    gain = measured.least_gain
    controls = [c for c in measured.comparisons if c.is_selectivity]
    weakest = min(controls, key=lambda c: c.selectivity.low) if controls else None
    return Judgement(result, measured, gain, weakest, _status(result, gain, weakest))


def _status(result: ProbeResult, gain: Gain | None, weakest: Comparison | None) -> str:
    facts = result.facts
    if gain is None or too_few(facts) is not None or only_test_label(facts) is not None or all_shared(facts):
        return NOT_JUDGED
    if lone_test_label(facts) is not None:
        return NOT_JUDGED
    if not gain.is_shown:
        return not_beyond(gain.baseline)
    return SELECTIVE if weakest is not None and weakest.selectivity.low > 0 else DECODABLE


def not_beyond(baseline: str) -> str:
    """Return the status `not beyond BASELINE`, such as `not beyond bag_of_words`; for the baseline that knows label
    frequencies only, `not shown to be decodable`.
    """
    return NOT_SHOWN if baseline == "prior" else f"not beyond {baseline}"


def fails(status: str) -> bool:
    """Return whether the criterion was applied and not met."""
    return status == NOT_SHOWN or status.startswith("not beyond ")


def baseline_value(measured: MeasureResult, gain: Gain) -> float:
    """Return the score of the baseline that the gain is computed over."""
    return measured.score.value - gain.gain.value * (1 if measured.higher_is_better else -1)


def clears_frequencies(measured: MeasureResult, gain: Gain) -> bool:
    """Return whether the baseline uses the label frequencies only, and the whole interval of the score is better than
    the baseline's score.
    """
    if gain.baseline != "prior":
        return False
    reached = baseline_value(measured, gain)
    return measured.score.low > reached if measured.higher_is_better else measured.score.high < reached


def too_few(facts: Mapping[str, Any]) -> int | None:
    """Return the number of different test sentences that are judged if it is below the minimum for a judgement, else
    None.
    """
    found = shared_inputs(facts).get("new_sentences", (facts.get("sentences") or {}).get("test"))
    return int(found) if found is not None and found < MIN_SENTENCES else None


def only_test_label(facts: Mapping[str, Any]) -> str | None:
    """Return the label of all test rows if they all have the same, else None."""
    label = (facts.get("one_label") or {}).get("test")
    return None if label is None else str(label)


def lone_test_label(facts: Mapping[str, Any]) -> str | None:
    """Return the one of two test labels whose rows are a single one, or of a single sentence or group; None if each is
    on several.
    """
    label = (facts.get("lone_label") or {}).get("test")
    return None if label is None else str(label)


def shared_inputs(facts: Mapping[str, Any]) -> Mapping[str, int]:
    """Return numbers of test inputs: `rows` and `texts` that also occur in train, `new_rows` and `new_sentences` that
    do not. The mapping is empty if none occurs in train.
    """
    found: Mapping[str, int] = (facts.get("shared_inputs") or {}).get("test") or {}
    return found if found.get("rows") else {}


def all_shared(facts: Mapping[str, Any]) -> bool:
    """Return whether the input of every test row also occurs in train."""
    return shared_inputs(facts).get("new_rows") == 0
