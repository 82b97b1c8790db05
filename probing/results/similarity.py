"""Defines `SimilarityResult` (how similar the states of two stores are), as JSON lines and as one long table."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from pydantic import TypeAdapter

from probing.errors import CannotReachFile, DamagedUnit, UnknownName, UnknownSite
from probing.files.whole_files import folder_locked, read_sealed, sealed, write_atomically, write_parquet
from probing.results.probe import Score, read_lines

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from probing.text.corpus import Corpus

NAME = "similarity"
Role = Literal["pair", "ceiling", "floor"]
CKA, NEIGHBOURS, PROCRUSTES, TRANSFER, OUTPUT_KL = (
    "cka",
    "mutual_neighbours",
    "procrustes_r2",
    "probe_transfer",
    "output_kl",
)


@dataclass(frozen=True)
class SimilarityResult:
    """Holds one measure of how alike two stores are, each at one site, on the same rows.

    Attributes:
        measure: `cka` (debiased linear CKA), `mutual_neighbours`, `procrustes_r2` (held out), `probe_transfer` or
            `output_kl` (bits per token; lower is more alike).
        role: `pair`: the two stores that were given; `ceiling`: random halves of the first store's coordinates;
            `floor`: the first store and its untrained twin.
        first, second: names of the stores.
        site_a, site_b: sites of the first and of the second; "" for outputs.
        score: the measure with its 95 % interval, number of rows and unit.
        null_mean, null_bound: mean of the measure under permutation of the second store's rows, and the value that 95 %
            of permutations do not reach; None: there is no null, or (the mean of R²) it is not known.
        clusters: number of clusters that were resampled and permuted whole.
        width_a, width_b: numbers of coordinates.
        step: training step of the second store's model; None: it is not a checkpoint.
        biased, biased_if_unrelated: for `cka`, the usual biased CKA, and what it would be on average for independent
            isotropic Gaussian states of these sizes.
        without_outliers: for `cka`, its value without the outlier coordinates; None: there are none.
        outliers_a, outliers_b: numbers of outlier coordinates.
        outlier_share_a, outlier_share_b: their shares of the total variance.
        ties: for `mutual_neighbours`, the share of rows whose k-th neighbour in either store is as near as the next.
        task, probe, probe_measure: for `probe_transfer`, what was probed, and the measure of the probe.
        own_a, own_b: for `probe_transfer`, scores on the same rows of probes trained and scored on one store.
        baseline: for `probe_transfer`, the score of the best baseline, which reads no states.
        higher_is_better: whether a higher score is more alike.
        provenance: everything that entered the result, and what the models are.
    """

    measure: str
    role: Role
    first: str
    second: str
    site_a: str
    site_b: str
    score: Score
    null_mean: float | None
    null_bound: float | None
    clusters: int
    width_a: int
    width_b: int
    step: int | None = None
    biased: float | None = None
    biased_if_unrelated: float | None = None
    without_outliers: float | None = None
    outliers_a: int = 0
    outliers_b: int = 0
    outlier_share_a: float = 0.0
    outlier_share_b: float = 0.0
    ties: float | None = None
    task: str = ""
    probe: str = ""
    probe_measure: str = ""
    own_a: float | None = None
    own_b: float | None = None
    baseline: float | None = None
    higher_is_better: bool = True
    provenance: dict[str, Any] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Return one row of the long table."""
        values = {name: value for name, value in vars(self).items() if name not in ("score", "provenance")}
        own = {"value": self.score.value, "low": self.score.low, "high": self.score.high}
        about = {"unit": self.score.unit, "n": self.score.n}
        models = {name: str(self.provenance.get(name) or "") for name in ("model_a", "model_b")}
        return values | own | about | models


_NUMBERS = (
    "null_mean",
    "null_bound",
    "biased",
    "biased_if_unrelated",
    "without_outliers",
    "ties",
    "own_a",
    "own_b",
    "baseline",
)


class SimilarityResults(Sequence[SimilarityResult]):
    """Holds results of comparisons of stores, and how far each row moved.

    Attributes:
        remarks: sentences on rows that were left out and on what was not computed.
        drift: table of one row per site and row of the stores, `None` if no site occurs in both stores.
    """

    def __init__(
        self,
        results: Iterable[SimilarityResult],
        drift: pd.DataFrame | None = None,
        remarks: Iterable[str] = (),
    ) -> None:
        self._results = tuple(results)
        self.drift = drift
        self.remarks = tuple(remarks)

    @classmethod
    def read(cls, folder: str | Path) -> SimilarityResults:
        """Read the results and the drift in a folder, each once; a folder without similarity.jsonl has none.

        Raises:
            CannotReachFile: there is no such folder.
            InputError: a line is not a result.
        """
        import pandas as pd

        if not Path(folder).is_dir():
            raise CannotReachFile("there is no such folder", needed="a folder of results", where=str(folder))
        results, table = still_valid(read_similarity(folder), ()), Path(folder) / "drift.parquet"
        return cls(results, pd.read_parquet(table) if results and table.is_file() else None)

    @overload
    def __getitem__(self, index: int) -> SimilarityResult: ...
    @overload
    def __getitem__(self, index: slice) -> SimilarityResults: ...
    def __getitem__(self, index: int | slice) -> SimilarityResult | SimilarityResults:
        if isinstance(index, slice):
            return SimilarityResults(self._results[index], self.drift, self.remarks)
        return self._results[index]

    def __len__(self) -> int:
        return len(self._results)

    def __iter__(self) -> Iterator[SimilarityResult]:
        return iter(self._results)

    def __repr__(self) -> str:
        pairs = list(dict.fromkeys(f"{one.first} × {one.second}" for one in self._results if one.role == "pair"))
        return f"SimilarityResults({len(self):,} numbers: {', '.join(pairs[:3]) or 'nothing'})"

    def of(self, measure: str, *, role: Role = "pair") -> SimilarityResults:
        """Return the results of one measure and role."""
        chosen = [one for one in self._results if (one.measure, one.role) == (measure, role)]
        return SimilarityResults(chosen, self.drift, self.remarks)

    def table(self) -> pd.DataFrame:
        """Return one row per measure, pair of stores and pair of sites: the content of similarity.parquet."""
        import pandas as pd

        frame = pd.DataFrame([result.row() for result in self._results])
        types = {name: "float64" for name in _NUMBERS if name in frame}
        return frame.astype(types | ({"step": "Int64"} if "step" in frame else {}))

    def moved(
        self, count: int = 20, *, second: str | None = None, site: str | None = None, least: int = 5
    ) -> pd.DataFrame:
        """Return the word forms whose states moved most, averaged over their rows; without word forms, the rows.

        Args:
            count: number of word forms (or rows) to return.
            second: name of the second store; None: the last.
            site: the site; None: the last that both stores have.
            least: fewest rows of a form.

        Returns:
            Columns `first`, `second`, `site`, `form` (or `example` and `word`), `drift` and `rows`.

        Raises:
            UnknownName, UnknownSite: there is no drift of such a store or site.
        """
        import pandas as pd

        if self.drift is None or self.drift.empty:
            return pd.DataFrame(columns=["first", "second", "site", "form", "drift", "rows"])
        chosen = _those_of(self.drift, "second", second, UnknownName)
        chosen = _those_of(chosen, "site", site, UnknownSite)
        named = bool((chosen["form"] != "").any())
        keys = ["first", "second", "site", *(["form"] if named else ["example", "word"])]
        grouped = chosen.groupby(keys, sort=False)["drift"]
        found = pd.DataFrame({"drift": grouped.mean(), "rows": grouped.size()}).reset_index()
        found = found[found["rows"] >= least] if named and (found["rows"] >= least).any() else found
        return found.sort_values("drift", ascending=False, kind="stable").head(count).reset_index(drop=True)

    def json_lines(self) -> str:
        """Return one JSON line per result, with sorted keys."""
        return "".join(line_of(result) + "\n" for result in self._results)

    def write(self, folder: str | Path) -> Path:
        """Merge the results into similarity.jsonl and similarity.parquet of `folder`, and write drift.parquet.

        Results in these files stay if they are of the same first store and were made with the same options, and if
        their measure, stores and sites are not among the new ones; all others are replaced, so that a folder never
        mixes options and has each number once.

        Raises:
            InputError: a line of similarity.jsonl is not a result.
        """
        place = Path(folder)
        with folder_locked(place):
            kept = still_valid(read_similarity(place), self._results)
            all_results = SimilarityResults([*kept, *self._results])
            write_atomically(place / f"{NAME}.jsonl", all_results.json_lines().encode())
            write_parquet(all_results.table(), place / f"{NAME}.parquet")
            drift = _merged_drift(place / "drift.parquet", self.drift, kept)
            if drift is not None:
                write_parquet(drift, place / "drift.parquet")
        return place

    def plot(self) -> Any:
        """Return an Altair chart: heat maps of sites by sites, and curves over training steps.

        A notebook shows it; `.save("figure.pdf")`, `.svg` or `.png` writes it.
        """
        return import_module("probing.reporting.similarity_sections").plot_similarity(self)


def _those_of(drift: pd.DataFrame, column: str, name: str | None, error: type[UnknownName]) -> pd.DataFrame:
    """Return the rows of one store or site; None: of the last."""
    known = list(dict.fromkeys(drift[column]))
    if name is not None and name not in known:
        what = "store" if column == "second" else column
        raise error(f"there is no drift of {what} {name}", needed=", ".join(known[:8]), found=name, where=column)
    return drift[drift[column] == (name or known[-1])]


def _merged_drift(path: Path, new: pd.DataFrame | None, kept: Iterable[SimilarityResult]) -> pd.DataFrame | None:
    """Return the rows of a file that are of results that are kept and of no new row's stores and site, followed by the
    new rows.
    """
    import pandas as pd

    if not path.is_file():
        return new
    old, keys = pd.read_parquet(path), ["first", "second", "site"]
    names = {(one.first, one.second, one.site_a) for one in kept if one.measure == PROCRUSTES}
    if new is not None:
        names -= set(new[keys].itertuples(index=False, name=None))
    others = [row in names for row in old[keys].itertuples(index=False, name=None)]
    frames = [old[others], *([] if new is None else [new])]
    return pd.concat(frames, ignore_index=True) if any(others) else (old[others] if new is None else new)


def drift_table(
    first: str,
    second: str,
    drift: Mapping[str, NDArray[np.float64]],
    example: NDArray[np.int64],
    word: NDArray[np.int64],
    corpus: Corpus | None,
) -> pd.DataFrame:
    """Return one row per site and row of the stores, with the form of the word, or the id of
    the text of a sentence, if the corpus is given."""
    import pandas as pd

    forms = [""] * len(example)
    if corpus is not None:
        pairs = zip(example.tolist(), word.tolist(), strict=True)
        forms = [corpus.examples[e].forms[w] if w >= 0 else str(corpus.examples[e].id) for e, w in pairs]
    names, rows = {"first": first, "second": second}, {"example": example, "word": word, "form": forms}
    tables = [pd.DataFrame({**names, "site": site, **rows, "drift": values}) for site, values in drift.items()]
    return pd.concat(tables, ignore_index=True)


def joined_drift(frames: Sequence[pd.DataFrame]) -> pd.DataFrame | None:
    """Return the tables as one; None if there are none."""
    import pandas as pd

    return pd.concat(frames, ignore_index=True) if frames else None


Compared = tuple[list[SimilarityResult], "pd.DataFrame | None"]


def committed(folder: Path | None, unit: str, compute: Callable[[], Compared]) -> Compared:
    """Return the results and the drift of one comparison: read from `folder` if they were committed there, else
    computed and committed.
    """
    import pandas as pd

    if folder is None:
        return compute()
    file, table = (folder / "units" / f"similarity-{unit}.{kind}" for kind in ("jsonl", "parquet"))
    known = read_sealed(file)
    if known is not None:
        try:
            results = [result_of(line) for line in known.splitlines()]
            return results, pd.read_parquet(table) if table.is_file() else None
        except (ValueError, OSError):  # of an earlier version, or damaged: computed again
            known = None
    if file.is_file():
        warnings.warn(f"a unit is not as it was written, so computed again: {file}", DamagedUnit, stacklevel=2)
    results, drift = compute()
    if drift is not None:
        write_parquet(drift, table)
    write_atomically(file, sealed("".join(line_of(result) + "\n" for result in results)))
    return results, drift


_SHARED_OPTIONS = ("root_seed", "permutations", "outliers", "first_token", "resample_by", "version")
_OWN_OPTIONS = {
    NEIGHBOURS: ("neighbours", "neighbour_rows"),
    TRANSFER: ("task", "probe"),
    OUTPUT_KL: ("kl_texts",),
}


def still_valid(older: Iterable[SimilarityResult], newer: Sequence[SimilarityResult]) -> list[SimilarityResult]:
    """Return the older results that can stand beside newer ones, each once: of the same first store, of stores of the
    same content where names are the same, made with the same options, and not made anew.
    """
    if not newer:
        return list({_key(one): one for one in older}.values())
    made = {_key(one) for one in newer}
    contents = {(one.role, one.second): one.provenance.get("content_id_b") for one in newer}
    of_measure = {one.measure: _options(one) for one in newer}
    shared = _options(newer[0])[: len(_SHARED_OPTIONS)]
    first = _first(newer[0])
    kept = {}
    for one in older:
        theirs = one.provenance.get("content_id_b")
        is_same = _first(one) == first and contents.get((one.role, one.second), theirs) == theirs
        options = _options(one)
        is_alike = of_measure.get(one.measure, options) == options and options[: len(shared)] == shared
        if is_same and is_alike and _key(one) not in made:
            kept[_key(one)] = one
    return list(kept.values())


def _first(result: SimilarityResult) -> tuple[str, Any]:
    """Return the name of the first store (without the half of its coordinates) and what is in it."""
    name = result.first.removesuffix(", half 1") if result.role == "ceiling" else result.first
    return name, result.provenance.get("content_id_a")


def _options(result: SimilarityResult) -> tuple[Any, ...]:
    """Return the options on which a result depends."""
    names = (*_SHARED_OPTIONS, *_OWN_OPTIONS.get(result.measure, ()))
    return tuple(result.provenance.get(name) for name in names)


def _key(result: SimilarityResult) -> tuple[str, ...]:
    """Return what a result is of: in a folder there is one result of each."""
    return result.measure, result.role, result.first, result.second, result.site_a, result.site_b


def line_of(result: SimilarityResult) -> str:
    """Return a result as one line of JSON with sorted keys."""
    return json.dumps(asdict(result), sort_keys=True, allow_nan=False)


def result_of(line: str) -> SimilarityResult:
    """Return the result in a line of JSON; raise ValueError if it is none."""
    return _reader().validate_json(line)


@cache
def _reader() -> TypeAdapter[SimilarityResult]:
    return TypeAdapter(SimilarityResult)


def read_similarity(folder: str | Path) -> list[SimilarityResult]:
    """Return the results in similarity.jsonl of a folder; a missing file has none.

    Raises:
        InputError: a line is not a result.
    """
    path = Path(folder) / f"{NAME}.jsonl"
    return read_lines(path, result_of, NAME) if path.is_file() else []
