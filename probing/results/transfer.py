"""Defines CrossResult and CrossResults, the scores of probes that were trained on some corpora or groups and tested on
others; reads and writes them as JSON lines and as one long table.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from pydantic import TypeAdapter

from probing.errors import DamagedUnit
from probing.files.whole_files import folder_locked, read_sealed, sealed, write_atomically, write_parquet
from probing.provenance import digest
from probing.results.probe import Score, read_lines

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CrossResult:
    """Holds the score of one probe at one site, trained on one source (corpus or groups) and tested on another.

    Attributes:
        task, probe, measure: names of these; the probe's with its options.
        site: name of the site; "(none)" for baselines, which read no states.
        trained_on: name of the source that the probe was trained on.
        tested_on: name of the source that it was tested on.
        score: score on the test rows, mean over seeds.
        difference: this score minus that of the probe trained on the tested source itself, on the same rows; negative
            means worse, also for measures in which lower scores are better. None if this is that probe, or there is no
            such probe.
        known: score on the rows whose label occurs in training; None if there are fewer than two such rows, or the
            score is undefined there.
        unseen_labels: labels of test rows that do not occur in training.
        unseen_rows: number of test rows with such a label.
        train_rows: number of rows trained on.
        provenance: see `ProbeResult`, for the rows tested on. Its `model_facts` and `sentences` (number of different
            texts of test) did not affect any score.
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
        """Return the result as one row of the long table, a dict."""
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
    """Holds the results of `transfer` or `leave_one_out`, in the order in which they were asked for.

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
        sources = list(dict.fromkeys(result.trained_on for result in self._results))
        named = ", ".join(sources[:3]) + (f" and {len(sources) - 3} more" if len(sources) > 3 else "")
        return f"CrossResults({self.name}: {len(self):,} scores, trained on {named or 'nothing'})"

    def table(self) -> pd.DataFrame:
        """Return a DataFrame with one row per site, probe, measure and pair of sources (trained on, tested on); it is
        the content of the Parquet file.
        """
        import pandas as pd

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
        """Return an Altair chart, a heat map of scores: one row per source trained on, one column per source tested on.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.
        """
        return import_module("probing.reporting.plots").plot_transfer(self)


def _key(result: CrossResult) -> tuple[str, ...]:
    """Return everything that entered a result."""
    made = digest({key: value for key, value in result.provenance.items() if key not in ("model_facts", "sentences")})
    return made, result.task, result.site, result.probe, result.measure, result.trained_on, result.tested_on


def _line(result: CrossResult) -> str:
    return json.dumps(asdict(result), sort_keys=True, allow_nan=False)


@cache
def _reader() -> TypeAdapter[CrossResult]:
    return TypeAdapter(CrossResult)


def read_cross(folder: str | Path) -> list[CrossResult]:
    """Return the results in transfer.jsonl and leave_one_out.jsonl of a folder; a missing file has none.

    Raises:
        InputError: a line is not a result.
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
