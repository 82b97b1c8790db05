"""Formats numbers and names for tables, sentences and figures, and words the reasons why a task was not judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from probing.results.probe import Gain
from probing.verdicts.decodability import MIN_SENTENCES

_TITLES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "log_loss": "log loss",
    "r2": "R²",
    "spearman": "Spearman",
    "auroc": "AUROC",
    "rmse": "RMSE",
    "brier": "Brier score",
    "calibration": "calibration error",
    "uas": "UAS",
    "uuas": "UUAS",
    "distance_spearman": "Spearman of distances",
}
_QUANTITIES = {
    "code_length": "online code length",
    "compression": "compression",
    "learning_curve": "learning curve",
    "information": "usable information",
    "conditional_information": "conditional information",
}
_NOTHING = "–"
CEILING = "ceiling: what a probe that memorised every key of train would reach on the control task, on average"


def measure_title(measure: str) -> str:
    """Return the title of a measure: `R²` for `r2`, `log loss` for `log_loss`."""
    return _TITLES.get(measure, measure.replace("_", " "))


def quantity_title(quantity: str) -> str:
    """Return the title of an analysis's quantity: `online code length` for `code_length`; measures get the title of
    `measure_title`.
    """
    return _QUANTITIES.get(quantity) or measure_title(quantity)


class Estimate(Protocol):
    """Has a value and the ends of its interval, which are None if there is no interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


class Interval(NamedTuple):
    """Holds a value and the ends of its interval."""

    value: float
    low: float | None = None
    high: float | None = None


def decimal(value: float | None, places: int = 3) -> str:
    """Return a number as `0.953`, `−0.012` or `∞`; a dash for None. A rounded zero has no sign."""
    if value is None:
        return _NOTHING
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def short(value: float | None, places: int = 3) -> str:
    """Return a number as `decimal` does, without the zero before the point, for narrow tables and sentences: `.953`,
    `−.012`, `10.250`.
    """
    text = decimal(value, places)
    sign, digits = ("−", text[1:]) if text.startswith("−") else ("", text)
    return sign + (digits[1:] if digits.startswith("0.") else digits)


Write = Callable[[float | None, int], str]


def interval(found: Estimate, places: int = 3, write: Write = decimal) -> str:
    """Return an interval as `[0.950, 0.956]`; "" if there is none."""
    if found.low is None or found.high is None:
        return ""
    return f"[{write(found.low, places)}, {write(found.high, places)}]"


def with_interval(found: Estimate | None, places: int = 3, write: Write = decimal) -> str:
    """Return a value and its interval as `0.953 [0.950, 0.956]`; a dash for None."""
    return _NOTHING if found is None else f"{write(found.value, places)} {interval(found, places, write)}".rstrip()


def folded(found: Estimate | None, places: int = 3) -> str:
    """Return a value and half the width of its interval as `.953 ±.003`; a dash for None."""
    return _NOTHING if found is None else f"{short(found.value, places)} ±{short(half_width(found), places)}"


def half_width(found: Estimate) -> float:
    """Return half the width of an interval, 0 if there is none."""
    return 0.0 if found.low is None or found.high is None else (found.high - found.low) / 2


def probability(p: float) -> str:
    """Return a p value with its sign, as `= 0.031` or `< 0.001`, for sentences."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def p_value(p: float) -> str:
    """Return a p value as `0.031` or `< 0.001`, for tables."""
    return probability(p).removeprefix("= ")


def p_in_family(gain: Gain) -> str:
    """Return a p value and its adjusted value with the number of tests: `p = 0.010 alone, Holm-adjusted p = 0.082 over
    8 tests`.
    """
    adjusted = f"{correction_title(gain.correction)}-adjusted p {probability(gain.p_adjusted)}"
    if gain.family is None:
        return adjusted
    return f"p {probability(gain.p)} alone, {adjusted} over {plural(gain.family, 'test')}"


def p_title(gains: Sequence[Gain]) -> str:
    """Return the heading of a column of p values: `Holm-adjusted p over 8 tests`."""
    over = "" if gains[0].family is None else f" over {plural(gains[0].family, 'test')}"
    return f"{correction_title(gains[0].correction)}-adjusted p{over}"


def correction_title(correction: str) -> str:
    """Return the title of a correction, `Holm` or `Benjamini-Hochberg`."""
    return {"holm": "Holm", "bh": "Benjamini-Hochberg"}.get(correction, correction)


def count(number: Any) -> str:
    """Return a whole number as `19,984`, and any other value as text unchanged."""
    return f"{number:,}" if isinstance(number, int) and not isinstance(number, bool) else plain(number)


def plain(value: Any) -> str:
    """Return a value of a record as one line of text."""
    if value is None or value == "":
        return _NOTHING
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {count(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    return str(value)


def sentence_case(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]


def plural(number: int, noun: str, several: str = "") -> str:
    """Return a number with its noun, `1 seed` or `3 seeds`; `several` is the plural if it is not formed with s."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {several or noun + 's'}"


def resampled_by(facts: Mapping[str, Any]) -> str:
    """Return a phrase on the unit of resampling, such as `resampled: 40 documents of test, since …`; empty for results
    of earlier versions.
    """
    unit, reason = facts.get("unit"), facts.get("unit_reason")
    if not unit:
        return ""
    number = (facts.get("clusters") or {}).get("test")
    shown = f"resampled: {plural(number, unit)} of test" if isinstance(number, int) else f"resampled: {unit}s"
    return shown + (f", {'as ' if reason == 'asked for' else 'since '}{reason}" if reason else "")


SHOWS_NOTHING = (
    "These scores show nothing about the states, either way: neither that the label can be recovered from them nor "
    "that it cannot."
)


def needs(
    *,
    sentences: int | None,
    only_label: str | None,
    has_baseline: bool,
    all_shared: bool = False,
    lone_label: str | None = None,
) -> tuple[str, ...]:
    """Return a phrase for each requirement of a judgement that is not met.

    Args:
        sentences: number of different test sentences, if there are too few; None: there are enough.
        only_label: label of all test rows, if there is only one; else None.
        has_baseline: whether a baseline was scored.
        all_shared: whether train contains the input of every test row.
        lone_label: one of two test labels, if it is on a single row, sentence or group; else None.
    """
    lacking = ["test texts that train has not"] if all_shared else []
    if only_label is not None:
        lacking.append(f"test rows with another label than {only_label!r}")
    if lone_label is not None:
        lacking.append(f"more test rows of {lone_label!r}, of several sentences or groups")
    if sentences is not None:
        lacking.append(f"{MIN_SENTENCES} different test sentences or more; here are {plural(sentences, 'sentence')}")
    if not has_baseline:
        lacking.append("a baseline scored on the same rows")
    return tuple(lacking)
