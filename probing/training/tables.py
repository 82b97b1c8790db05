"""Tables of training results: what `ProbeResults` shows and its Parquet files hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from probing.results.analysis import AnalysisResult
from probing.results.probe import MeasureResult, ProbeResult
from probing.verdicts.decodability import judged

NO_SITE = "(none)"
_TEXT = (
    "site",
    "task",
    "probe",
    "measure",
    "split",
    "unit",
    "control",
    "kind",
    "store_id",
    "model",
    "run",
    "saved",
    "provenance",
    "baseline",
    "correction",
    "status",
)
_COUNTS = ("n", "seed_count", "draw_count", "fit_count")
_FLAGS = ("converged", "higher_is_better", "complete")


def table_row(result: ProbeResult, split: str) -> dict[str, Any]:
    """Return the primary measure beside its first control, and the other measures; `run` is equal for what was run
    alike.
    """
    scored = [found for found in result.measures if found.split == result.judged_split(split)]
    row: dict[str, Any] = {
        "model": result.provenance.get("model"),
        "rows": result.provenance.get("rows"),
        "site": result.site,
        "task": result.task,
        "probe": result.probe,
    }
    for position, found in enumerate(scored):
        row["bits" if found.measure == "log_loss" else found.measure] = found.score.value
        if position == 0:
            row |= _control_columns(found)
    return row | {
        name: str(result.provenance.get(key) or "")[:12] for name, key in (("store", "store_id"), ("run", "run"))
    }


def _control_columns(found: MeasureResult) -> dict[str, Any]:
    proper = [c for c in found.comparisons if c.is_selectivity]
    first = next(iter(proper or found.comparisons), None)
    gain = proper[0].selectivity if proper else None
    return {
        "control": first.score.value if first else None,
        "selectivity": gain.value if gain else None,
        "low": gain.low if gain else None,
        "high": gain.high if gain else None,
    }


def long_table(results: Iterable[ProbeResult]) -> pd.DataFrame:
    """Return one row per site × task × probe × measure × split × control."""
    frame = pd.DataFrame([row | {"status": _status(result, row)} for result in results for row in result.rows()])
    types = {
        name: "string"
        if name in _TEXT
        else "int64"
        if name in _COUNTS
        else "bool"
        if name in _FLAGS
        else "Int64"
        if name == "gain_family"
        else "float64"
        for name in frame.columns
    }
    return frame.astype(types)


def _status(result: ProbeResult, row: Mapping[str, Any]) -> str | None:
    """Return the criterion's judgement of a probe by one measure, on the rows of test that are judged."""
    if result.site == NO_SITE or row["split"] != result.judged_split():
        return None
    return judged(result, result.judged(row["measure"])).status


def analysis_table(results: Iterable[AnalysisResult]) -> pd.DataFrame:
    """Return one row per number of every analysis."""
    frame = pd.DataFrame([row for result in results for row in result.rows()])
    numbers = {name: "float64" for name in ("value", "low", "high", "x") if name in frame}
    return frame.astype(numbers | {name: "string" for name in frame if name not in numbers and name != "draw"})
