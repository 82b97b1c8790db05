"""Defines `ProbeResults`, which holds the results of a training run, and makes their tables and files."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar, overload

import pandas as pd

from probing.errors import BadParameter, UnknownName, unknown_name
from probing.files.whole_files import write_atomically, write_parquet
from probing.provenance import environment
from probing.results import analysis
from probing.results.analysis import AnalysisResult
from probing.results.features import FeatureScores, features_of, features_table
from probing.results.probe import MeasureResult, ProbeResult, Score, json_lines, read_results
from probing.statistics.multiplicity import adjusted, correction_of
from probing.verdicts.decodability import NOT_JUDGED, judged

NO_SITE = "(none)"
_SHOWN = 3  # tasks in a line
_NAMES = ("site", "task", "probe", "measure", "split", "unit", "control", "kind", "store_id", "model", "run", "saved")
_TEXT = (*_NAMES, "provenance", "baseline", "correction", "status")
_COUNTS = ("n", "seed_count", "draw_count", "fit_count")
_FLAGS = ("converged", "higher_is_better", "complete")


def _control_for(result: ProbeResult) -> tuple[str, str]:
    """Return a control that defines selectivity for rows like these, and how to train with it."""
    of_words = result.facts.get("level") != "sentence"
    if result.is_of_arrays:
        step = "give pb.probe keys=, values that several rows share, for each of which a control draws one label"
        return "word_type" if of_words else "keyed:key=key", step
    if of_words:
        return "word_type", "train with controls=['word_type']"
    more = ", with a column whose values several sentences share"
    return "keyed:key=COLUMN", f"train with controls=['keyed:key=COLUMN']{more}"


def table_row(result: ProbeResult, split: str) -> dict[str, Any]:
    """Return a row of the table: the primary measure with its first control, and the other measures; `run` is equal for
    results of the same settings.
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
        name = "bits" if found.measure == "log_loss" else found.measure
        row[name] = found.score.value
        if position == 0:
            row |= {f"{name}_low": found.score.low, f"{name}_high": found.score.high} | _control_columns(found)
            row["status"] = (
                _status(result, {"measure": found.measure, "split": found.split}) if split == "test" else None
            )
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
        "selectivity_low": gain.low if gain else None,
        "selectivity_high": gain.high if gain else None,
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


R = TypeVar("R", ProbeResult, AnalysisResult)


class ProbeResults(Sequence[ProbeResult]):
    """Holds the results of one or more tasks, in the order in which the tasks were given; the baselines of a task come
    first, with the site "(none)".

    Attributes:
        analyses: results of the analyses of the same run; a slice has none.
        missing: number of fits of the run that other processes have not done yet.
    """

    missing: int = 0

    def __init__(self, results: Iterable[ProbeResult], analyses: Iterable[AnalysisResult] = ()) -> None:
        self._results = tuple(results)
        self.analyses = tuple(analyses)

    @classmethod
    def read(cls, folder: str | Path) -> ProbeResults:
        """Read the results that `write` wrote into a folder, and return them.

        Raises:
            InputError: a line of the files is not a result.
        """
        place = Path(folder)
        return cls(read_results(place / "results.jsonl"), analysis.read_analyses(place / "analyses.jsonl"))

    @classmethod
    def joined(cls, parts: Sequence[ProbeResults]) -> ProbeResults:
        """Return one `ProbeResults` with the results of several runs, `parts`."""
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
        tasks = list(dict.fromkeys(result.task for result in self._results))
        sites = dict.fromkeys(result.site for result in self._results if result.site != NO_SITE)
        named = ", ".join(tasks[:_SHOWN]) + (f" and {len(tasks) - _SHOWN} more" if len(tasks) > _SHOWN else "")
        lines = [f"ProbeResults of {len(self):,} fits: {named or 'nothing'}, {len(sites)} sites"]
        with_states = {result.task for result in self._results if result.site != NO_SITE}
        best = [_best_line(self.of_tasks([task])) for task in tasks[:_SHOWN] if task in with_states]
        return "\n".join([*lines, *best])

    def of_tasks(self, tasks: Collection[str]) -> ProbeResults:
        """Return the results and analyses of these tasks."""
        return ProbeResults(
            (result for result in self._results if result.task in tasks),
            (told for told in self.analyses if told.task in tasks),
        )

    def of_model(self, model: str) -> ProbeResults:
        """Return the results and analyses of one model, given by its full name or a part of it; `best` is then the best
        of that model.

        Raises:
            UnknownName: no model's name contains it.
        """
        found = ProbeResults(
            (result for result in self._results if model in str(result.provenance.get("model"))),
            (told for told in self.analyses if model in str(told.provenance.get("model"))),
        )
        if not len(found):
            raise unknown_name("model", model, {str(result.provenance.get("model")) for result in self._results})
        return found

    def _of_one(self, task: str | None) -> list[ProbeResult]:
        """Return the results of one task on one model's states."""
        found = [result for result in self._results if task in (None, result.task)]
        if not found:
            raise unknown_name("task", str(task), {result.task for result in self._results})
        tasks, models = {result.task for result in found}, {str(result.provenance.get("model")) for result in found}
        for kind, names, way_out in (("tasks", tasks, "give task="), ("models", models, "choose with of_model()")):
            if len(names) > 1:
                listed = ", ".join(sorted(names))
                raise BadParameter(f"these are results of several {kind}", found=listed, next_step=way_out)
        return found

    def table(self, split: str = "test") -> pd.DataFrame:
        """Return a DataFrame with one row per model, site, task and probe: the score by the primary measure (the first
        one of the run) and on its first control, then the scores by the other measures. Scores are those on `split`.

        Intervals are named after what they bound: `accuracy_low` and `accuracy_high` (or those of another primary
        measure), `selectivity_low` and `selectivity_high`. Log loss is called `bits`. If the control only checks for
        chance (such as shuffled labels), the columns of selectivity are empty. `status` is the judgement by the primary
        measure on test (such as `selectively decodable`, `not beyond word_type` or `not judged`); baselines have none.
        """
        return pd.DataFrame([table_row(result, split) for result in self._results])

    def long(self) -> pd.DataFrame:
        """Return a DataFrame with one row per site, task, probe, measure, split and control, the content of
        results.parquet.
        """
        return long_table(self._results)

    def analysis_table(self) -> pd.DataFrame:
        """Return the results of all analyses as a DataFrame with one row per number; it is the content of
        analyses.parquet.
        """
        return analysis.analysis_table(self.analyses)

    @property
    def features(self) -> list[FeatureScores]:
        """Comparisons of probes on a dictionary's latents with probes on the states themselves, one for each dictionary
        and task, as `train(features=…)` made them.
        """
        return features_of(self.analyses)

    def best(self, measure: str | None = None, probe: str | None = None) -> ProbeResult:
        """Return the result with the best score on dev by a measure (default: the primary one) among those of a probe
        (default: of all probes); if scores are equal, the first. Baselines are left out.

        Raises:
            UnknownName: no result was scored by that measure, or there is no such probe.
        """
        candidates = [r for r in self._results if r.site != NO_SITE and probe in (None, r.probe)]
        if not candidates:
            raise unknown_name("probe", str(probe), {r.probe for r in self._results if r.site != NO_SITE})
        name = measure or candidates[0].measures[0].measure
        sign = 1.0 if candidates[0].measure(name, "dev").higher_is_better else -1.0
        return max(candidates, key=lambda result: sign * result.judged(name, "dev").score.value)

    def selectivity(
        self,
        measure: str | None = None,
        site: str | None = None,
        probe: str | None = None,
        control: str | None = None,
        *,
        task: str | None = None,
    ) -> Score:
        """Return the selectivity of a probe on test, with its interval: its score on the task minus that on a control.

        Args:
            measure: name of the measure; default: the primary one, which is the first of the run.
            site: name of the site; default: the one with the best score on dev.
            probe: name of the probe; default: the one with the best score on dev.
            control: name of the control; default: the first one that selectivity is defined against.
            task: name of the task; needed if there are results of several.

        Raises:
            BadParameter: there are results of several tasks or models, and `task` does not select one.
            UnknownName: there is no such site, probe, measure or control; or the control only checks for chance (such
                as shuffled labels) or replaces states, so that no selectivity is defined against it.
        """
        of_task = self._of_one(task)
        here = [r for r in of_task if site in (None, r.site)]
        if not here:
            raise unknown_name("site", str(site), {r.site for r in of_task})
        chosen = ProbeResults(here)
        result = next(iter(here)) if site == NO_SITE else chosen.best(measure, probe)
        found = {c.control: c for c in result.judged(measure or result.measures[0].measure).comparisons}
        proper = [c for c in found.values() if c.is_selectivity and control in (None, c.control)]
        if not proper:
            advised, step = _control_for(result)
            raise UnknownName(
                "no control that selectivity is defined against",
                needed=control or advised,
                found=", ".join(found) or "no control",
                next_step=step,
            )
        return proper[0].selectivity

    def write(self, folder: str | Path, *, replace: bool = False) -> Path:
        """Merge the results into `folder`/results.jsonl and results.parquet, with p values adjusted over all results of
        a store, and return the folder.

        Results already in the folder stay, except earlier copies of these same results. With `replace`, results of the
        same store, rows, task, site and probe with other settings are dropped. The environment is written into a
        separate file, so that equal inputs give equal result files.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        merged = self.merged_into(place, replace=replace)
        write_atomically(place / "results.jsonl", json_lines(merged).encode())
        write_atomically(place / "environment.json", (json.dumps(environment(), indent=1) + "\n").encode())
        write_parquet(long_table(merged), place / "results.parquet")
        if merged.analyses:
            write_atomically(place / "analyses.jsonl", analysis.json_lines(merged.analyses).encode())
            write_parquet(analysis.analysis_table(merged.analyses), place / "analyses.parquet")
            if compared := merged.features:
                write_parquet(features_table(compared), place / "features.parquet")
        return place

    def merged_into(self, folder: Path, *, replace: bool = False) -> ProbeResults:
        """Return the results that results.jsonl of `folder` would hold after these were merged into it, without
        duplicates, but write nothing; for `replace` see `write`.
        """
        path = folder / "results.jsonl"
        older = read_results(path) if path.is_file() else []
        told = analysis.read_analyses(folder / "analyses.jsonl")
        merged = _merged(older, self._results, replace=replace)
        return ProbeResults(
            adjusted(merged, correction=correction_of(self._results)), _merged(told, self.analyses, replace=replace)
        )

    def adjusted_in(self, folder: Path) -> ProbeResults:
        """Return these results with p values adjusted over all results in `folder`."""
        wanted = {_key(result) for result in self._results}
        merged = (result for result in self.merged_into(folder) if _key(result) in wanted)
        found = ProbeResults(merged, self.analyses)
        found.missing = self.missing
        return found

    def plot(self, what: str = "overview") -> Any:
        """Return an Altair chart of the results.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.

        Args:
            what: `overview` (which tasks are decodable at which sites), `scores` (of every probe over sites, beside
                controls and baselines), `models` (scores over training steps and sizes of models, at the best site and
                by site), `analyses` (curves and numbers of the analyses) or `confusion` (true by predicted labels, at
                the site that is best on dev).

        Raises:
            UnknownName: no such chart.
            BadParameter: there is nothing to draw.
        """
        return import_module("probing.reporting.plots").plot_results(self, self.analyses, what)

    def _repr_html_(self) -> str:
        shown: str = import_module("probing.reporting.plots").results_card(self)
        return shown


def _best_line(results: ProbeResults) -> str:
    """Return the result at the best site on dev with its judgement, as one line."""
    best = results.best()
    judgement = judged(best, best.judged(best.measures[0].measure))
    because = ""
    if judgement.status == NOT_JUDGED:
        because = f" ({import_module('probing.reporting.findings').unjudged_because(judgement)})"
    return f"  {best!r}: {judgement.status}{because}"


def _merged(older: Sequence[R], newer: Sequence[R], *, replace: bool) -> list[R]:
    """Return every result once, in the order of its first time; what an earlier version made with the same settings
    gives way, or one question would be tested twice in its family.
    """
    asked = {_question(result) for result in newer} if replace else set()
    known, same = {_key(result) for result in newer}, {_question(result): result for result in newer}
    kept = {
        _key(one): one
        for one in older
        if _key(one) in known or (_question(one) not in asked and not _is_earlier(one, same.get(_question(one))))
    }
    return list((kept | {_key(one): one for one in newer}).values())


_OF_A_VERSION = {"version", "unit", "run", "saved", "not_saved", "temperatures"}


def _is_earlier(old: ProbeResult | AnalysisResult, new: ProbeResult | AnalysisResult | None) -> bool:
    """Return whether an earlier version of this package made a result of the same question and settings."""
    if new is None or not int(old.provenance.get("version") or 0) < int(new.provenance.get("version") or 0):
        return False
    both = (old.provenance.keys() & new.provenance.keys()) - _OF_A_VERSION
    return all(old.provenance[name] == new.provenance[name] for name in both)


def _key(result: ProbeResult | AnalysisResult) -> tuple[str, ...]:
    """Return everything that entered a result, as the hash of its unit."""
    return (str(result.provenance["unit"]),) if "unit" in result.provenance else _question(result)


def _question(result: ProbeResult | AnalysisResult) -> tuple[str, ...]:
    """Return what a result is of, whatever the settings that gave it."""
    analysis_name = result.analysis if isinstance(result, AnalysisResult) else ""
    states = (str(result.provenance.get(name)) for name in ("store_id", "rows"))
    return *states, result.task, result.site, result.probe, analysis_name
