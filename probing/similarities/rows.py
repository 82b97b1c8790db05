"""The stores that are compared and the rows that they have in common: refuses wrong options and stores whose rows
differ, and draws clusters, halves and permutations of the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, CannotReachFile, DegenerateDesign, ProvenanceMismatch
from probing.seeds import child_seed, generator
from probing.states.store import Store
from probing.statistics.bootstrap import RESAMPLES, Clusters, cluster_weights, replicates
from probing.text.corpus import Corpus

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LEAST_CLUSTERS, LEAST_ROWS = 4, 20
LEAST_PERMUTATIONS = 19  # of fewer the largest is no bound of 95 %
_WEIGHTS_AT_ONCE = 100  # resamples whose weights are drawn together
_MOST_WEIGHT_BYTES = 256 << 20  # of weights that are kept; more are drawn anew for each interval


@dataclass(frozen=True, eq=False)
class SharedRows:
    """Holds the N rows on which stores are compared, in S clusters that are resampled and permuted whole.

    Attributes:
        index: `(N,)` row numbers, the same in every store.
        example, word: `(N,)` origin of each row.
        groups: `(N,)` cluster of each row, 0 … S-1.
        half: `(N,)` 0 or 1: the random half of the clusters that the row is in.
        unit: kind of a cluster: `sentence` or `document`.
        first_tokens: number of rows left out because they contain token 0 of their input.
        seed: root of every random draw.
        knows_tokens: whether it is known which rows contain token 0, or they are not to be left out.
    """

    index: Ints
    example: Ints
    word: Ints
    groups: Ints
    half: Ints
    unit: str
    first_tokens: int
    seed: int
    knows_tokens: bool = True

    def __len__(self) -> int:
        return len(self.index)

    @property
    def clusters(self) -> int:
        """Number of clusters S."""
        return int(self.groups.max()) + 1

    def parts(self, size: int) -> Iterator[slice]:
        """Yield slices of at most `size` rows that cover all rows in order."""
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))

    def sums(self, values: Floats) -> Floats:
        """Return the sums `(S, …)` of values `(N, …)` over the rows of each cluster."""
        return sums_by_cluster(values, self.groups, self.clusters)

    def permutations(self, count: int, rows: Ints | None = None) -> Iterator[Ints]:
        """Yield permutations of all rows, or of the chosen `rows`: the clusters are put in a random order, each with
        its rows in order, and matched row by row with the clusters in their own order. So neighbouring rows of a
        cluster stay neighbours.
        """
        return cluster_permutations(self.groups if rows is None else self.groups[rows], count, self.seed)

    def interval(self, sums: Mapping[str, Floats], value_of: Any) -> tuple[float, float]:
        """Return the 95 % interval of a statistic by resampling clusters.

        Args:
            sums: named sums by cluster, `(S,)` each.
            value_of: a function from the named sums of each resample, `(R,)`, to the statistic `(R,)`.
        """
        names = list(sums)
        table = np.stack([sums[name] for name in names], axis=1)
        drawn = self._drawn_sums(table)
        samples = value_of(dict(zip(names, drawn.T, strict=True)))
        sizes = np.bincount(self.groups, minlength=self.clusters)[(table != 0).any(1)]
        return replicates(samples[None, None], clusters=Clusters.of_sizes(sizes), seed=self.seed).interval

    def _drawn_sums(self, table: Floats) -> Floats:
        """Return the sums `(R, K)` of a table `(S, K)` over the clusters of each bootstrap resample, which are the same
        for every table.
        """
        if RESAMPLES * len(table) * 8 > _MOST_WEIGHT_BYTES:
            return np.concatenate(list(resampled_sums(table, self.seed)))
        return np.asarray(self._weights @ table)

    @cached_property
    def _weights(self) -> Floats:
        return np.concatenate(list(_weights_in_parts(self.clusters, self.seed)))


def cluster_permutations(groups: Ints, count: int, seed: int) -> Iterator[Ints]:
    """Yield `count` permutations of rows by whole clusters, see `SharedRows.permutations`; the order of
    the clusters is the same for any choice of their rows.
    """
    order = np.argsort(groups, kind="stable")
    random = generator(seed, "permutations")
    for _ in range(count):
        rank = random.permutation(int(groups.max()) + 1)
        permutation = np.empty(len(groups), np.int64)
        permutation[order] = np.argsort(rank[groups], kind="stable")
        yield permutation


def resampled_sums(table: Floats, seed: int) -> Iterator[Floats]:
    """Yield, part by part, the sums `(R, K)` of a table `(S, K)` over its clusters in each of R bootstrap resamples."""
    for weights in _weights_in_parts(len(table), seed):
        yield weights @ table


def _weights_in_parts(count: int, seed: int) -> Iterator[Floats]:
    for part in range(RESAMPLES // _WEIGHTS_AT_ONCE):
        yield cluster_weights(count, resamples=_WEIGHTS_AT_ONCE, seed=child_seed(seed, "bootstrap", part))


def sums_by_cluster(values: Floats, groups: Ints, count: int) -> Floats:
    """Return the sums `(count, …)` of values `(N, …)` over the rows of each group."""
    flat = values.reshape(len(values), -1)
    columns = [np.bincount(groups, weights=column, minlength=count) for column in flat.T]
    return np.stack(columns, axis=1).astype(np.float64).reshape(count, *values.shape[1:])


def shared_rows(
    stores: Mapping[str, Any],
    *,
    corpus: Corpus | None = None,
    resample_by: str = "sentence",
    first_token: str = "leave-out",
    seed: int = 0,
) -> SharedRows:
    """Check that all stores have the same rows, and return those on which they are compared.

    Args:
        stores: the stores by name.
        corpus: their corpus, which says what the documents are.
        resample_by: `sentence` or `document`.
        first_token: `leave-out` or `keep` rows of words, tokens and positions that contain token 0 of their input, at
            which many models have states of another kind (attention sinks).
        seed: root of every random draw.

    Raises:
        ProvenanceMismatch: two stores have different rows; the message names both and what differs.
        DegenerateDesign: there are too few rows or clusters.
    """
    (name, first), *others = stores.items()
    for other_name, other in others:
        _refuse_other_rows(name, first, other_name, other)
    rows = first.rows
    kept, knows_tokens = np.ones(len(rows.example), bool), True
    if first_token == "leave-out" and _scope(first) in ("word", "piece", "position", "sequence"):
        starts = [np.asarray(s.rows.piece_start) for s in stores.values() if hasattr(s.rows, "piece_start")]
        recorded = [start for start in starts if start.any()]  # imported rows without tokens have zeros
        knows_tokens = bool(recorded)
        kept = ~np.any([start == 0 for start in recorded], axis=0) if recorded else kept
        kept = kept if kept.any() else ~kept
    index = np.flatnonzero(kept)
    example = np.asarray(rows.example)[index]
    unit_of = corpus.units[example] if corpus is not None and resample_by == "document" else example
    groups = np.unique(unit_of, return_inverse=True)[1].reshape(-1).astype(np.int64)
    count = int(groups.max()) + 1 if len(groups) else 0
    if count < LEAST_CLUSTERS or len(index) < LEAST_ROWS:
        raise DegenerateDesign(
            "too few rows to compare stores on",
            needed=f"at least {LEAST_ROWS} rows in at least {LEAST_CLUSTERS} {resample_by}s",
            found=f"{len(index)} rows in {count} {resample_by}s",
            where=f"stores {', '.join(stores)}",
            next_step="use more text" if resample_by == "sentence" else "use more documents, or resample_by=sentence",
        )
    half = (generator(seed, "halves").permutation(count) % 2).astype(np.int64)[groups]
    word = np.asarray(rows.word)[index]
    return SharedRows(index, example, word, groups, half, resample_by, int((~kept).sum()), seed, knows_tokens)


def _scope(store: Any) -> str:
    return str(store.identity["extraction"]["rows"]).partition(":")[0]


def _refuse_other_rows(name: str, first: Any, other_name: str, other: Any) -> None:
    """Refuse two stores that are of different corpora or kinds of rows, or that differ in a row."""
    subsets = [_corpus_of(store, "subset") for store in (first, other)]
    if None in subsets and len(first.rows.example) == len(other.rows.example):
        subsets = [None, None]  # imported, or of the whole corpus: the rows themselves are compared below
    facts: tuple[tuple[str, Any, Any], ...] = (
        ("corpus", _corpus_of(first, "fingerprint"), _corpus_of(other, "fingerprint")),
        ("subset of the corpus", *subsets),
        ("kind of rows", _scope(first), _scope(other)),
        ("positions", getattr(first, "position_names", ()), getattr(other, "position_names", ())),
        ("number of rows", len(first.rows.example), len(other.rows.example)),
    )
    for what, ours, theirs in facts:
        if ours != theirs:
            detail = _only_in_one(first, other) if what == "number of rows" else ""
            raise _other_rows(name, other_name, what, _brief(ours), _brief(theirs) + detail)
    for column in _columns(_scope(first)):
        ours, theirs = (np.asarray(getattr(store.rows, column)) for store in (first, other))
        differs = np.flatnonzero(ours != theirs)
        if len(differs):
            row = int(differs[0])
            place = f"row {row} (example {int(first.rows.example[row])})"
            step = "tokens are the same rows only if both models have one tokenizer: extract words instead"
            raise _other_rows(
                name,
                other_name,
                f"{column.replace('_', ' ')} of {len(differs):,} rows",
                f"{int(ours[row])} at {place}",
                f"{int(theirs[row])} there",
                step if column.startswith("char") else "",
            )


def _other_rows(name: str, other_name: str, what: str, ours: str, theirs: str, step: str = "") -> ProvenanceMismatch:
    return ProvenanceMismatch(
        f"the stores {name} and {other_name} have not the same rows: another {what}",
        needed=f"{ours}, as in {name}",
        found=theirs,
        where=f"store {other_name}",
        next_step=step or "extract both from one corpus with one kind of rows, such as word:mean, and one length limit",
    )


def _corpus_of(store: Any, key: str) -> Any:
    block = store.identity.get("corpus")
    return block.get(key) if isinstance(block, Mapping) else None


def _brief(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_brief(one)}" for key, one in list(value.items())[:3])
    text = ", ".join(map(str, value[:5])) if isinstance(value, tuple | list) else str(value)
    return text[:12] + "…" if len(text) == 64 else text[:80] or "none"


def _columns(scope: str) -> Sequence[str]:
    if scope in ("piece", "sequence"):
        return ("example", "char_start", "char_end")
    return ("example", "word", "position") if scope == "position" else ("example", "word")


def _only_in_one(first: Any, other: Any) -> str:
    """Return, in words, a row that only one of two stores has."""
    ours, theirs = (set(zip(s.rows.example.tolist(), s.rows.word.tolist(), strict=True)) for s in (first, other))
    odd = min(ours ^ theirs, default=None)
    return "" if odd is None else f"; example {odd[0]}, word {odd[1]} is in one of them only"


def refuse_without_corpus(
    corpus: Corpus | None, task: str | None, probe: str | None, models: Any, resample_by: str
) -> None:
    """Refuse options that need the corpus without it, and a probe without a task."""
    if probe is not None and task is None:
        raise BadParameter("probe needs a task", needed="the task of the probe", found="none", where="task")
    needing = {"task": task, "models": models, "resample_by=document": resample_by == "document" or None}
    for name in (name for name, value in needing.items() if value is not None and corpus is None):
        raise BadParameter(f"{name} needs the corpus", needed="the corpus of the stores", found="none", where=name)


_LEAST = {"permutations": 0, "kl_texts": 2, "neighbours": 1, "neighbour_rows": 2, "root_seed": 0}
_ALLOWED = {
    "pairs": ("auto", "all", "same"),
    "resample_by": ("sentence", "document"),
    "first_token": ("leave-out", "keep"),
    "outliers": ("apart", "leave-out"),
}
CHECKED = (*_LEAST, *_ALLOWED)


def check_options(sites: Any, **options: Any) -> None:
    """Check the options in `CHECKED` of `similarity`.

    Raises:
        BadParameter: a number is no whole one or below its least value, a name is none of those allowed, or patterns of
            sites are no texts, or none.
    """
    for name, least in _LEAST.items():
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadParameter(f"{name} is no whole number", needed=f"{least} or more", found=repr(value), where=name)
        if value < least:
            raise BadParameter(f"{name} is too small", needed=f"{least} or more", found=str(value), where=name)
        if name == "permutations" and 0 < value < LEAST_PERMUTATIONS:
            needed = f"{LEAST_PERMUTATIONS} or more, of which 95 % can be told from the rest; or 0 for no null"
            raise BadParameter(f"{name} is too small", needed=needed, found=str(value), where=name)
    for name, allowed in _ALLOWED.items():
        if options[name] not in allowed:
            raise BadParameter(f"{name} is wrong", needed=" or ".join(allowed), found=str(options[name]), where=name)
    _refuse_no_sites(sites)


def _refuse_no_sites(sites: Any) -> None:
    """Refuse patterns of sites that are no texts, or none."""
    patterns = [sites] if isinstance(sites, str) else list(sites) if isinstance(sites, Sequence) else [None]
    if not patterns or not all(isinstance(one, str) and one.strip() for one in patterns):
        needed = "one or more patterns of sites, such as resid.*"
        raise BadParameter("sites names no site", needed=needed, found=repr(sites), where="sites")


def refuse_store(folder: Path | None) -> None:
    """Refuse a folder of results that is itself a store."""
    if folder is not None and (folder / "store.json").is_file():
        raise CannotReachFile(
            "results cannot be written into a store", needed="a folder of results", found="a store", where=str(folder)
        )


def opened(store: Store | str | Path) -> Any:
    """Return a store, opened if it is a directory.

    Raises:
        BadParameter: it is neither a store nor a path.
    """
    if isinstance(store, str | Path):
        return Store.open(store)
    if not hasattr(store, "identity"):
        raise BadParameter("no store", needed="a store, or its directory", found=repr(store), where="stores")
    return store


def named(stores: Sequence[Store | str | Path]) -> dict[str, Any]:
    """Return the stores by the names of their folders, with the parent's name, or a number, where names are equal."""
    every = [opened(store) for store in stores]
    paths = [Path(store.path) for store in every]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        names = ["/".join(path.parts[-2:]) for path in paths]
    found: dict[str, Any] = {}
    for name, store in zip(names, every, strict=True):
        found[name if name not in found else f"{name} ({len(found) + 1})"] = store
    return found


def refuse_trained(twins: Mapping[str, Any]) -> bool:
    """Refuse a twin that is recorded as trained, and return whether it is recorded as untrained (or there is none)."""
    models = [store.identity.get("model") for store in twins.values()]
    recorded = [model for model in models if isinstance(model, Mapping)]
    for model in recorded:
        if not isinstance(model.get("untrained"), Mapping) and isinstance(model.get("weights"), Mapping):
            raise ProvenanceMismatch(
                "the store of the untrained twin was made by a trained model",
                needed="a store that was extracted with --untrained SEED",
                found=f"{model.get('source')} with its trained weights",
                where="twin",
                next_step="name trained models among the stores that are compared",
            )
    return all(isinstance(model, Mapping) and isinstance(model.get("untrained"), Mapping) for model in models)
