"""How numbers and names are written in tables, sentences and figures."""

from __future__ import annotations

from typing import Any

from probing.records import Score

_TITLES = {
    "accuracy": "accuracy", "macro_f1": "macro-F1", "log_loss": "log loss", "r2": "R²", "spearman": "Spearman",
    "auroc": "AUROC", "rmse": "RMSE", "brier": "Brier score", "calibration": "calibration error",
    "uas": "UAS", "uuas": "UUAS", "distance_spearman": "Spearman of distances",
}  # fmt: skip
_QUANTITIES = {
    "code_length": "online code length", "compression": "compression", "learning_curve": "learning curve",
    "information": "usable information", "conditional_information": "conditional information",
}  # fmt: skip
_NOTHING = "–"


def measure_title(measure: str) -> str:
    """`R²` for `r2`, `log loss` for `log_loss`."""
    return _TITLES.get(measure, measure.replace("_", " "))


def quantity_title(quantity: str) -> str:
    """`online code length` for `code_length`; measures as `measure_title` has them."""
    return _QUANTITIES.get(quantity) or measure_title(quantity)


def decimal(value: float | None, places: int = 3) -> str:
    """`0.953`, `−0.012`; a dash for None. A rounded zero has no sign."""
    if value is None:
        return _NOTHING
    text = f"{value:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def short(value: float | None) -> str:
    """`decimal` without the zero before the point, for narrow tables: `.953`."""
    text = decimal(value)
    sign, digits = ("−", text[1:]) if text.startswith("−") else ("", text)
    return sign + (digits[1:] if digits.startswith("0.") else digits)


def interval(score: Score) -> str:
    """`[0.950, 0.956]`."""
    return f"[{decimal(score.low)}, {decimal(score.high)}]"


def with_interval(score: Score) -> str:
    """`0.953 [0.950, 0.956]`."""
    return f"{decimal(score.value)} {interval(score)}"


def half_width(score: Score) -> float:
    """Half the width of the interval, in the unit of the score."""
    return (score.high - score.low) / 2


def folded(score: Score) -> str:
    """`.953 ±.003`: the interval as half its width."""
    return f"{short(score.value)} ±{short(half_width(score))}"


def probability(p: float) -> str:
    """`= 0.031` or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def p_value(p: float) -> str:
    """`0.031` or `< 0.001`, for tables."""
    return probability(p).removeprefix("= ")


def correction_title(correction: str) -> str:
    """`Holm` or `Benjamini-Hochberg`."""
    return {"holm": "Holm", "bh": "Benjamini-Hochberg"}.get(correction, correction)


def count(number: Any) -> str:
    """`19,984`; anything that is not a whole number as it is."""
    return f"{number:,}" if isinstance(number, int) and not isinstance(number, bool) else plain(number)


def plain(value: Any) -> str:
    """One line of text for a value of a record."""
    if value is None or value == "":
        return _NOTHING
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {count(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or "none"
    return str(value)


def plural(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def beyond(baseline: str | None) -> str:
    """` beyond what bag_of_words gives`; nothing for a baseline that knows the frequencies of labels alone."""
    return "" if baseline in (None, "prior") else f" beyond what {baseline} gives"
