"""ProbeResults: the results of a training run as tables, and the files they are kept in."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import pandas as pd

from probing import analysis
from probing.analysis import AnalysisResult
from probing.criterion import judged
from probing.errors import UnknownName, unknown_name
from probing.multiplicity import Correction, adjust, level_after
from probing.provenance import environment
from probing.records import Gain, MeasureResult, ProbeResult, Score, json_lines, read_results
from probing.statistics import ALPHA, detectable
from probing.whole_files import write_atomically, write_parquet

NO_SITE = "(none)"
_TEXT = (
    "site", "task", "probe", "measure", "split", "unit", "control", "kind", "store_id", "model", "provenance",
    "baseline", "correction", "status",
)  # fmt: skip
_COUNTS = ("n", "seed_count", "draw_count", "fit_count")
_FLAGS = ("converged", "higher_is_better", "complete")


class ProbeResults(Sequence[ProbeResult]):
    """Results of one or more tasks, in the order they were asked for; baselines come first, with site "(none)".

    Attributes:
        analyses: what the analyses of the same run say; a slice keeps none.
        missing: units of the run that other processes have not done yet.
    """

    missing: int = 0

    def __init__(self, results: Iterable[ProbeResult], analyses: Iterable[AnalysisResult] = ()) -> None:
        self._results = tuple(results)
        self.analyses = tuple(analyses)

    @classmethod
    def read(cls, folder: str | Path) -> ProbeResults:
        """What `write` left in a folder.

        Raises:
            InputError: a line that is no result.
        """
        place = Path(folder)
        return cls(read_results(place / "results.jsonl"), analysis.read_analyses(place / "analyses.jsonl"))

    @classmethod
    def joined(cls, parts: Sequence[ProbeResults]) -> ProbeResults:
        """All of several runs."""
        whole = cls((r for part in parts for r in part), (told for part in parts for told in part.analyses))
        whole.missing = sum(part.missing for part in parts)
        return whole

    @overload
    def __getitem__(self, index: int) -> ProbeResult: ...
    @overload
    def __getitem__(self, index: slice) -> ProbeResults: ...
    def __getitem__(self, index: int | slice) -> ProbeResult | ProbeResults:
        return ProbeResults(self._results[index]) if isinstance(index, slice) else self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[ProbeResult]:
        return iter(self._results)

    def __add__(self, other: Iterable[ProbeResult]) -> ProbeResults:
        return ProbeResults((*self._results, *other))

    def __repr__(self) -> str:
        return f"ProbeResults({len(self)} results)\n{self.table()}"

    def of_tasks(self, tasks: Collection[str]) -> ProbeResults:
        """Results and analyses of these tasks."""
        return ProbeResults(
            (result for result in self._results if result.task in tasks),
            (told for told in self.analyses if told.task in tasks),
        )

    def table(self, split: str = "test") -> pd.DataFrame:
        """One row per site × task × probe: the primary measure beside its first control, and the other measures.

        The columns `low` and `high` bound selectivity; log loss is called `bits`. Against a chance check
        `selectivity`, `low` and `high` are empty.
        """
        return pd.DataFrame([_table_row(result, split) for result in self._results])

    def long(self) -> pd.DataFrame:
        """One row per site × task × probe × measure × split × control: the content of results.parquet."""
        return _long_table(self._results)

    def analysis_table(self) -> pd.DataFrame:
        """One row per number of every analysis: the content of analyses.parquet."""
        return _analysis_table(self.analyses)

    def best(self, measure: str | None = None, probe: str | None = None) -> ProbeResult:
        """The result with the best score on dev, among those that read states; the earliest of equals.

        Raises:
            UnknownName: nothing was scored by that measure, or no such probe.
        """
        candidates = [r for r in self._results if r.site != NO_SITE and probe in (None, r.probe)]
        if not candidates:
            raise unknown_name("probe", str(probe), {r.probe for r in self._results if r.site != NO_SITE})
        name = measure or candidates[0].measures[0].measure
        sign = 1.0 if candidates[0].measure(name, "dev").higher_is_better else -1.0
        return max(candidates, key=lambda result: sign * result.judged(name, "dev").score.value)

    def selectivity(
        self, measure: str | None = None, site: str | None = None, probe: str | None = None, control: str | None = None
    ) -> Score:
        """Selectivity on test, at one site or at the site that is best on dev.

        Raises:
            UnknownName: no such site, probe, measure or control; a chance check has no selectivity.
        """
        here = [r for r in self._results if site in (None, r.site)]
        if not here:
            raise unknown_name("site", str(site), {r.site for r in self._results})
        chosen = ProbeResults(here)
        result = next(iter(here)) if site == NO_SITE else chosen.best(measure, probe)
        found = {c.control: c for c in result.judged(measure or result.measures[0].measure).comparisons}
        proper = [c for c in found.values() if c.is_selectivity and control in (None, c.control)]
        if not proper:
            of_words = result.facts.get("level") != "sentence"
            advised = "word_type" if of_words else "keyed:key=COLUMN"
            more = "" if of_words else ", with a column whose values several sentences share"
            raise UnknownName(
                "no control that selectivity is defined against", needed=control or advised,
                found=", ".join(found) or "no control", next_step=f"train with controls=['{advised}']{more}",
            )  # fmt: skip
        return proper[0].selectivity

    def write(self, folder: str | Path) -> Path:
        """Merge into `folder`/results.jsonl and results.parquet by (task, site, probe); adjust p over all of a store.

        The environment is written beside them, so that equal inputs give equal result files.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        merged = self.merged_into(place)
        write_atomically(place / "results.jsonl", json_lines(merged).encode())
        write_atomically(place / "environment.json", (json.dumps(environment(), indent=1) + "\n").encode())
        write_parquet(_long_table(merged), place / "results.parquet")
        if merged.analyses:
            write_atomically(place / "analyses.jsonl", analysis.json_lines(merged.analyses).encode())
            write_parquet(_analysis_table(merged.analyses), place / "analyses.parquet")
        return place

    def merged_into(self, folder: Path) -> ProbeResults:
        """What results.jsonl of `folder` would hold: its other results, then these in place of their older selves."""
        path = folder / "results.jsonl"
        kept = {_key(result): result for result in (read_results(path) if path.is_file() else [])}
        kept.update((_key(result), result) for result in self._results)
        told = {_analysis_key(result): result for result in analysis.read_analyses(folder / "analyses.jsonl")}
        told.update((_analysis_key(result), result) for result in self.analyses)
        return adjusted(kept.values(), told.values(), correction=correction_of(self._results))

    def adjusted_in(self, folder: Path) -> ProbeResults:
        """These results with p adjusted over all that `folder` holds."""
        wanted = {_key(result) for result in self._results}
        merged = (result for result in self.merged_into(folder) if _key(result) in wanted)
        found = ProbeResults(merged, self.analyses)
        found.missing = self.missing
        return found


def correction_of(results: Iterable[ProbeResult]) -> Correction:
    """How the p of these results are adjusted: `holm` unless the first gain says otherwise."""
    gains = (gain for result in results for found in result.measures for gain in found.gains)
    return next((gain.correction for gain in gains), "holm")


def adjusted(
    results: Iterable[ProbeResult], analyses: Iterable[AnalysisResult] = (), *, correction: Correction = "holm"
) -> ProbeResults:
    """Results with p adjusted over the sites, probes, baselines and tasks of a store, by measure and split.

    A task of which something failed is no part of the family of the others.

    The smallest gain that could have been seen depends on that family too, and is told anew.
    """
    listed = list(results)
    families: dict[tuple[str, ...], list[Gain]] = {}
    for result in listed:
        for found in result.measures:
            families.setdefault(_family(result, found), []).extend(found.gains)
    queues = {key: iter(_told(gains, correction)) for key, gains in families.items()}
    return ProbeResults(
        (
            replace(
                result, measures=tuple(_with_gains(found, queues[_family(result, found)]) for found in result.measures)
            )
            for result in listed
        ),
        analyses,
    )


def _told(gains: Sequence[Gain], correction: Correction) -> list[Gain]:
    """Gains of one family with what depends on the family."""
    p = [gain.p for gain in gains]
    level = level_after(p, correction, alpha=ALPHA)
    return [
        replace(gain, p_adjusted=one, correction=correction, family=len(p), detectable=_detectable(gain, level))
        for gain, one in zip(gains, adjust(p, correction), strict=True)
    ]


def _detectable(gain: Gain, level: float) -> float | None:
    if gain.error is None or gain.df is None:
        return None
    return detectable(gain.error, gain.df, margin=gain.margin, alpha=level)


def _with_gains(found: MeasureResult, queue: Iterator[Gain]) -> MeasureResult:
    return replace(found, gains=tuple(next(queue) for _ in found.gains))


def _family(result: ProbeResult, found: MeasureResult) -> tuple[str, ...]:
    alone = "" if result.complete else result.task  # of a task that failed in part: no test of the others
    return str(result.provenance.get("store_id")), found.measure, found.split, alone


def _key(result: ProbeResult) -> tuple[str, str, str]:
    return result.task, result.site, result.probe


def _analysis_key(result: AnalysisResult) -> tuple[str, str, str, str]:
    return result.task, result.site, result.probe, result.analysis


def _table_row(result: ProbeResult, split: str) -> dict[str, Any]:
    scored = [found for found in result.measures if found.split == result.judged_split(split)]
    row: dict[str, Any] = {"site": result.site, "task": result.task, "probe": result.probe}
    for position, found in enumerate(scored):
        row["bits" if found.measure == "log_loss" else found.measure] = found.score.value
        if position == 0:
            row |= _control_columns(found)
    return row


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


def _long_table(results: Iterable[ProbeResult]) -> pd.DataFrame:
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
    """What the criterion says of a probe by one measure, of the rows of test that are judged."""
    if result.site == NO_SITE or row["split"] != result.judged_split():
        return None
    return judged(result, result.judged(row["measure"])).status


def _analysis_table(results: Iterable[AnalysisResult]) -> pd.DataFrame:
    frame = pd.DataFrame([row for result in results for row in result.rows()])
    numbers = {name: "float64" for name in ("value", "low", "high", "x") if name in frame}
    return frame.astype(numbers | {name: "string" for name in frame if name not in numbers and name != "draw"})
