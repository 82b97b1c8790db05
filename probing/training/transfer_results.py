"""CrossResult: a probe trained on some rows and scored on others, as JSON lines and one long table."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, overload

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import TypeAdapter

from probing.contracts.measure import Measure
from probing.contracts.probe import Probe
from probing.errors import DamagedUnit
from probing.files.whole_files import folder_locked, read_sealed, sealed, write_atomically, write_parquet
from probing.labels import Labels
from probing.measures._temperatures import Tempers, tempers_of
from probing.provenance import digest
from probing.results.probe import Score, read_lines
from probing.statistics.clusters import Resampler
from probing.training.fitting import fits_of
from probing.training.plan import Plan
from probing.training.scoring import Sampled, Scores, score_label_set
from probing.training.states import States


@dataclass(frozen=True)
class CrossResult:
    """Holds a measure of one probe at one site, trained on one set of rows and scored on the test rows of another.

    Attributes:
        task, site, probe, measure: names of what was scored; site "(none)" for baselines, which read no states.
        trained_on, tested_on: names of the two sets.
        score: score on the test rows, mean over seeds.
        difference: this score minus that of the probe trained on the tested source itself, on the same rows, with the
            sign turned if lower scores are better, so that negative is worse; None: it is that probe, or there is none.
        known: score on the rows whose label occurs in training; None: there are fewer than two, or it is undefined.
        unseen_labels, unseen_rows: labels of the test rows that do not occur in training, and number of rows with one.
        train_rows: number of rows trained on.
        provenance: see `ProbeResult`; of the rows tested on.
    """

    task: str
    site: str
    probe: str
    measure: str
    trained_on: str
    tested_on: str
    score: Score
    difference: Score | None
    known: float | None
    unseen_labels: tuple[str, ...]
    unseen_rows: int
    train_rows: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return one row of the long table."""
        gap = self.difference
        return {
            "task": self.task,
            "site": self.site,
            "probe": self.probe,
            "measure": self.measure,
            "trained_on": self.trained_on,
            "tested_on": self.tested_on,
            "value": self.score.value,
            "low": self.score.low,
            "high": self.score.high,
            "unit": self.score.unit,
            "n": self.score.n,
            "difference": gap.value if gap else None,
            "difference_low": gap.low if gap else None,
            "difference_high": gap.high if gap else None,
            "known": self.known,
            "unseen_rows": self.unseen_rows,
            "unseen_labels": ",".join(self.unseen_labels),
            "train_rows": self.train_rows,
            "store_id": self.provenance.get("store_id"),
            "model": self.provenance.get("model"),
        }


class CrossResults(Sequence[CrossResult]):
    """Holds results in the order in which they were asked for.

    Attributes:
        name: name of the files, `transfer` or `leave_one_out`.
        remarks: sentences that say what was left out or pooled.
    """

    def __init__(self, name: str, results: Iterable[CrossResult], remarks: Iterable[str] = ()) -> None:
        self.name = name
        self._results = tuple(results)
        self.remarks = tuple(remarks)

    @overload
    def __getitem__(self, index: int) -> CrossResult: ...
    @overload
    def __getitem__(self, index: slice) -> CrossResults: ...
    def __getitem__(self, index: int | slice) -> CrossResult | CrossResults:
        return CrossResults(self.name, self._results[index]) if isinstance(index, slice) else self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[CrossResult]:
        return iter(self._results)

    def __repr__(self) -> str:
        return f"CrossResults({self.name}, {len(self)} results)\n{self.table()}"

    def table(self) -> pd.DataFrame:
        """Return one row per site × probe × measure × pair: the content of the Parquet file."""
        frame = pd.DataFrame([result.row() for result in self._results])
        numbers = ("value", "low", "high", "difference", "difference_low", "difference_high", "known")
        return frame.astype({name: "float64" for name in numbers if name in frame})

    def json_lines(self) -> str:
        """Return one JSON line per result, with sorted keys."""
        return "".join(_line(result) + "\n" for result in self._results)

    def write(self, folder: str | Path) -> Path:
        """Merge the results into NAME.jsonl and NAME.parquet of `folder`; all other results in these files stay.

        Raises:
            InputError: a line of NAME.jsonl is not a result.
        """
        place = Path(folder)
        with folder_locked(place):
            path = place / f"{self.name}.jsonl"
            older = read_lines(path, _reader().validate_json, self.name) if path.is_file() else []
            merged = CrossResults(self.name, {_key(one): one for one in (*older, *self._results)}.values())
            write_atomically(path, merged.json_lines().encode())
            write_parquet(merged.table(), place / f"{self.name}.parquet")
        return place

    def plot(self) -> Any:
        """Return an Altair chart: a heat map of scores by source trained on and source tested on.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.
        """
        return import_module("probing.reporting.plots").plot_transfer(self)


def _key(result: CrossResult) -> tuple[str, ...]:
    """Return everything that entered a result."""
    made = digest(result.provenance)
    return made, result.task, result.site, result.probe, result.measure, result.trained_on, result.tested_on


def _line(result: CrossResult) -> str:
    return json.dumps(asdict(result), sort_keys=True, allow_nan=False)


@cache
def _reader() -> TypeAdapter[CrossResult]:
    return TypeAdapter(CrossResult)


def read_cross(folder: str | Path) -> list[CrossResult]:
    """Return the results in transfer.jsonl and leave_one_out.jsonl of a folder; none where there is no such file.

    Raises:
        InputError: a line that is no result.
    """
    paths = [Path(folder) / f"{name}.jsonl" for name in ("transfer", "leave_one_out")]
    return [one for path in paths if path.is_file() for one in read_lines(path, _reader().validate_json, path.stem)]


def committed(folder: Path | None, unit: str, compute: Callable[[], list[CrossResult]]) -> list[CrossResult]:
    """Return the results of one unit: read from `folder` if they were committed there, else computed and committed."""
    file = None if folder is None else folder / "units" / f"{unit}.jsonl"
    known = None if file is None else read_sealed(file)
    if known is not None:
        try:
            return [_reader().validate_json(line) for line in known.splitlines()]
        except ValueError:  # of an earlier version: computed again
            known = None
    if file is not None and file.is_file():
        warnings.warn(f"a unit is not as it was written, so computed again: {file}", DamagedUnit, stacklevel=2)
    results = [replace(one, provenance=one.provenance | {"unit": unit}) for one in compute()]
    if file is not None:
        write_atomically(file, sealed("".join(_line(result) + "\n" for result in results)))
    return results


@dataclass(frozen=True)
class Trained:
    """Holds the fits of one probe (one per seed) and the labels they were trained on.

    Attributes:
        name: name of the source that they were trained on.
        fits: the fits on the task's labels.
        labels: all labels of that source; its train rows were used for training.
        tempers: scaling factor of each fit's log odds, fitted on that source's dev rows.
    """

    name: str
    fits: Sequence[Probe]
    labels: Labels
    tempers: Sequence[Tempers] | None

    @classmethod
    def of(cls, name: str, plan: Plan, probe: Probe, states: States) -> Trained:
        """Fit the probe on the task's labels in a plan, and return the fits."""
        fits = fits_of(plan, probe, states, (plan.labels,))[0]
        measures = plan.measures_for(probe).values()
        return cls(name, fits, plan.labels, tempers_of(fits, plan.labels, states["dev"], measures))


def crossed(
    plan: Plan, unit: tuple[str, str, Probe], states: States, tested_on: str, sources: Sequence[Trained]
) -> list[CrossResult]:
    """Score every trained probe on those test rows of `plan` whose input is not in the train rows of any source, and
    return the results.

    The others are compared with the probe that was trained on the plan's own rows.

    Args:
        plan: plan whose test rows are scored. All labels must have the same classes.
        unit: site, name and probe.
        states: states of the plan's rows at the site.
        tested_on: name of the plan's source.
        sources: the trained probes.
    """
    measures, resampler = plan.measures_for(unit[2]), plan.judged("test")
    known = [np.isin(plan.labels.y, source.labels.y[source.labels.rows("train")]) for source in sources]
    scores = [
        score_label_set(
            source.fits,
            plan.labels,
            states,
            measures,
            {"test": resampler},
            seen=mask if plan.labels.kind == "classes" else None,
            tempers=source.tempers,
        )
        for source, mask in zip(sources, known, strict=True)
    ]
    own = next((of for source, of in zip(sources, scores, strict=True) if source.name == tested_on), None)
    return [
        _result(plan, unit, name, tested_on, source, of_source, None if of_source is own else own, mask)
        for source, of_source, mask in zip(sources, scores, known, strict=True)
        for name in measures
    ]


def _result(
    plan: Plan,
    unit: tuple[str, str, Probe],
    measure: str,
    tested_on: str,
    source: Trained,
    scores: Scores,
    own: Scores | None,
    known: NDArray[np.bool_],
) -> CrossResult:
    resampler, labels = plan.judged("test"), plan.labels
    here, kind = scores[measure, "test"], plan.measures[measure]
    unseen = labels.y[resampler.rows][~known[resampler.rows]] if labels.kind == "classes" else np.empty(0, np.int64)
    return CrossResult(
        task=plan.task,
        site=unit[0],
        probe=unit[1],
        measure=measure,
        trained_on=source.name,
        tested_on=tested_on,
        score=_score(here.value, here.samples, kind, resampler),
        difference=None if own is None else _difference(here, own[measure, "test"], kind, resampler),
        known=here.seen if labels.kind == "classes" else None,
        unseen_labels=tuple(labels.classes[code] for code in np.unique(unseen).tolist()),
        unseen_rows=len(unseen),
        train_rows=len(source.labels.rows("train")),
        provenance=dict(plan.provenance),
    )


def _difference(ours: Sampled, own: Sampled, measure: Measure, resampler: Resampler) -> Score:
    sign = 1.0 if measure.higher_is_better else -1.0
    return _score(sign * (ours.value - own.value), sign * (ours.samples - own.samples), measure, resampler, least=-1.0)


def _score(
    value: float, samples: NDArray[np.float64], measure: Measure, resampler: Resampler, *, least: float = 0.0
) -> Score:
    low, high = resampler.bounds(value, samples[None], unit=measure.unit, least=least)
    return Score(value, low, high, n=len(resampler.rows), unit=measure.unit)
