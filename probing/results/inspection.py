"""Defines `Inspection`, which holds measurements of a model's states and attention on some texts, and what they cannot
show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, unknown_name
from probing.files.whole_files import write_atomically, write_parquet
from probing.system.machine import with_typed_errors
from probing.system.screen import card

if TYPE_CHECKING:
    from pandas import DataFrame

STATE_LIMITS = (
    "All numbers describe these texts in this model; none says what a state is used for.",
    "The state of the first token is often many times as large as all others and would dominate every mean, so it is "
    "left out of the norms and geometry of a site, and has a column of its own.",
    "A coordinate that stands out is a fact about these axes; other bases of the same space have others.",
)
ATTENTION_LIMITS = (
    "A pattern says where a head may read from, not what it moves from there, nor whether later layers use it.",
    "A weight on token 0 is often where a head rests: it is no sign that token 0 matters.",
    "Value-weighted shares tell how much each token adds to what a head writes, not what the addition does.",
)
UNCHECKED = "No head was checked: nothing here says that a pattern matters. Run again with --check (check=True)."
CHECK_LIMITS = (
    "A pattern whose replacement changes nothing explains nothing here.",
    "A head whose replacement changes nothing may still matter on other texts, or be made up for by other heads.",
    "A replaced pattern gives states that the model may never meet, so part of an effect can be damage: a head that "
    "rests on token 0 and writes nothing must write once its pattern is uniform, though its output has no effect.",
)
# Ways to replace a head that a check knows, in words; SHORT: in the head of a column.
WAYS = {
    "uniform": "pattern made uniform",
    "position_mean": "pattern replaced by its mean by position",
    "permuted": "pattern permuted",
    "mean_output": "output replaced by its mean",
}
REPLACEMENTS = tuple(WAYS)
SHORT = {"uniform": "uniform", "position_mean": "position", "permuted": "permuted", "mean_output": "mean"}
EQUAL = 1e-6  # scores of heads that differ by less are equal
ONE_TEXT = "One text was read, so there is no interval: how far these numbers hold for other texts is not known."
ONE_GROUP = "The {} texts are equal or of one group, so there is no interval, as for one text."
SINK = (
    "Heads of this model can rest on a sink that is no token, so weights on tokens sum to less than 1: sink_mass is "
    "the rest, entropies count the sink as one more key, and distances are over the tokens alone."
)
NOTHING_TO_REPLACE = (
    "Replacement {0}: in {1} of {2} texts there is nothing to replace (too few tokens, or none as long), so its effect "
    "is not defined there."
)
_TABLES = ("tokens", "sites", "heads", "patterns", "checks", "against", "against-heads")
_FILES = ("inspection.html", *(f"inspection-{name}.parquet" for name in _TABLES))  # that some inspection has written


@dataclass(frozen=True)
class InspectedText:
    """Holds a text that was read, and its tokens."""

    id: str
    text: str
    tokens: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Holds the comparison of the first text with another.

    Attributes:
        text: the other text.
        states: distances and cosines by site and span.
        heads: how much each head's attention pattern differs; None if attention was not read, or the texts differ in
            length.
    """

    text: InspectedText
    states: DataFrame
    heads: DataFrame | None


@dataclass(frozen=True, eq=False, repr=False)
class Inspection:
    """Holds what `probing.inspect` measured.

    Attributes:
        model: name of the model.
        texts: the texts that were read.
        count: number of texts that were given.
        tokens: a row for each token and site: norm, cosines, what sublayers add, outlying coordinates.
        sites: a row for each site: median and range of the norms, and the geometry of the states.
        heads: a row for each head and score, beside the score of uniform attention; None: attention was not read.
        checks: a row for each head and replacement, with the KL divergence of the output in bits; None: not checked.
        comparison: comparison with another text; None if no other text was given.
        patterns: attention patterns and value-weighted patterns, `(2, L, H, T, T)`, of the texts that the page shows,
            by number of the text.
        layers: numbers of the L layers that have attention.
        disagreement: by replacement and score, two numbers of heads: `striking`, of those whose score is in its top
            decile (for `any`: in the top decile of at least one score), and `below_median`, of those among them whose
            effect on the output is below the median of all heads; empty if heads were not checked.
        settings: options and counts that are needed to interpret the numbers.
        notes: sentences on what could not be computed from these texts, such as intervals.
    """

    model: str
    texts: Sequence[InspectedText]
    count: int
    tokens: DataFrame
    sites: DataFrame
    heads: DataFrame | None = None
    checks: DataFrame | None = None
    comparison: Comparison | None = None
    patterns: Mapping[int, NDArray[np.float32]] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    disagreement: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def limits(self) -> tuple[str, ...]:
        """Sentences on what these numbers cannot show."""
        about_attention = () if self.heads is None else ATTENTION_LIMITS
        about_check = CHECK_LIMITS if self.checks is not None else (UNCHECKED,) if self.heads is not None else ()
        return (*STATE_LIMITS, *about_attention, *about_check)

    @property
    def replacements(self) -> tuple[str, ...]:
        """Names of the replacements of heads that were checked."""
        return () if self.checks is None else tuple(dict.fromkeys(self.checks["replacement"]))

    def grid(self, score: str, column: str = "value") -> NDArray[np.float64]:
        """Return a number for every head as an array `(L, H)`: `column` of the table `heads` for the score `score`; or,
        if `column` is `kl` or `kl_last`, that column of the table `checks` for the replacement named `score`.

        Raises:
            UnknownName: there is no such score, replacement or column.
            BadParameter: attention was not read, or not checked.
        """
        is_checked = column.startswith("kl")
        table, key = (self.checks, "replacement") if is_checked else (self.heads, "score")
        if table is None:
            what, needed = ("check", "check=True") if is_checked else ("attention", "attention=True")
            raise BadParameter(f"this inspection has no {what}", needed=needed, found=f"grid({score!r}, {column!r})")
        if score not in set(table[key]):
            raise unknown_name(key, score, set(table[key]))
        numbers = [name for name in table.columns if name not in ("layer", "head", key)]
        if column not in numbers:
            raise unknown_name("column", column, numbers)
        chosen = table[table[key] == score]
        heads = int(chosen["head"].max()) + 1
        return chosen[column].to_numpy(dtype=np.float64).reshape(len(self.layers), heads)

    def pattern_table(self) -> DataFrame:
        """Return the attention patterns of the texts that the page shows, as a DataFrame with one row for each text,
        layer, head, query and key with a weight above 0.
        """
        import pandas as pd

        parts = []
        for number, both in sorted(self.patterns.items()):
            layer, head, query, key = np.nonzero(both[0] > 0)
            columns = {"text": number, "layer": np.array(self.layers)[layer], "head": head, "query": query, "key": key}
            weights = {
                "attention": both[0][layer, head, query, key],
                "value_weighted": both[1][layer, head, query, key],
            }
            parts.append(pd.DataFrame(columns | weights))
        return pd.concat(parts, ignore_index=True)

    def tables(self) -> dict[str, DataFrame]:
        """Return the tables as a dict; each key is the name of the table's Parquet file without its ending."""
        found = {"inspection-tokens": self.tokens, "inspection-sites": self.sites}
        if self.heads is not None:
            found |= {"inspection-heads": self.heads, "inspection-patterns": self.pattern_table()}
        if self.checks is not None:
            found["inspection-checks"] = self.checks
        if self.comparison is not None:
            found["inspection-against"] = self.comparison.states
            if self.comparison.heads is not None:
                found["inspection-against-heads"] = self.comparison.heads
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as a dict that JSON can hold, without the rows of single tokens; undefined numbers are
        None.
        """
        found: dict[str, Any] = {
            "model": self.model,
            "texts": [{"id": one.id, "text": one.text, "tokens": list(one.tokens)} for one in self.texts],
            "texts_given": self.count,
            "settings": dict(self.settings),
            "hidden_state_norms": _records(self.sites),
            "attention_summary": [] if self.heads is None else self._heads(),
            "disagreement": {way: {name: dict(of) for name, of in by.items()} for way, by in self.disagreement.items()},
            "against": self._against(),
            "notes": list(self.notes),
            "cannot_show": list(self.limits),
        }
        return found

    def _heads(self) -> list[dict[str, Any]]:
        assert self.heads is not None  # for the reader of types
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for row in _records(self.heads):
            key = (row.pop("layer"), row.pop("head"))
            head = found.setdefault(key, {"layer": key[0], "head": key[1], "scores": {}})
            head["scores"][row.pop("score")] = row
        for row in [] if self.checks is None else _records(self.checks):
            head = found[row.pop("layer"), row.pop("head")]
            head.setdefault("check", {})[row.pop("replacement")] = row
        for (layer, head_number), head in found.items():
            head["last_token"] = self._sources(self.layers.index(layer), head_number)
        return list(found.values())

    def _sources(self, layer: int, head: int) -> list[dict[str, Any]]:
        """Return, for each text that is shown, the source with the largest weight for the last token, and the largest
        beside token 0.
        """
        found = []
        for number, both in sorted(self.patterns.items()):
            row, tokens = both[0, layer, head, -1], self.texts[number].tokens
            beside = int(row[1:].argmax()) + 1 if len(row) > 1 else None
            named = {"text": number, "top": _source(row, tokens, int(row.argmax()))}
            found.append(named | {"top_beside_token_0": None if beside is None else _source(row, tokens, beside)})
        return found

    def _against(self) -> dict[str, Any] | None:
        if self.comparison is None:
            return None
        other, heads = self.comparison.text, self.comparison.heads
        return {
            "text": other.text,
            "tokens": list(other.tokens),
            "states": _records(self.comparison.states),
            "heads": None if heads is None else _records(heads),
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    def paths(self, folder: str | Path) -> list[Path]:
        """Return the paths of the files that `write` writes into a folder."""
        return [Path(folder) / "inspection.json", *(Path(folder) / f"{name}.parquet" for name in self.tables())]

    @with_typed_errors
    def write(self, folder: str | Path) -> list[Path]:
        """Write `inspection.json` and the tables as Parquet into a folder, each completely or not at all, and return
        their paths. Tables and the page of an earlier inspection are deleted from it.

        Raises:
            CannotReachFile: the folder cannot be used.
            DiskFull: there is no room.
        """
        paths = self.paths(folder)
        for path in {*(Path(folder) / name for name in _FILES)} - {*paths[1:]}:
            path.unlink(missing_ok=True)
        write_atomically(paths[0], (self.to_json() + "\n").encode())
        for path, table in zip(paths[1:], self.tables().values(), strict=True):
            write_parquet(table, path)
        return paths

    def __repr__(self) -> str:
        attention = "no attention" if self.heads is None else f"{_count(self.layers, 'layer')} of attention"
        check = "not checked" if self.checks is None else "checked"
        texts, sites = _count(self.texts, "text"), _count(self.sites, "site")
        return f"Inspection of {texts} in {self.model}: {sites}, {attention}, {check}"

    def _repr_html_(self) -> str:
        rows = [("texts", len(self.texts)), ("sites", len(self.sites)), *(("note", note) for note in self.notes)]
        return card(f"Inspection of {self.model}", [*rows, *(("cannot show", limit) for limit in self.limits)])


def _count(some: Sized, noun: str) -> str:
    return f"{len(some):,} {noun}" + ("" if len(some) == 1 else "s")


def _source(row: NDArray[np.float32], tokens: Sequence[str], key: int) -> dict[str, Any]:
    return {"key": key, "token": tokens[key], "share": float(row[key])}


def _records(table: DataFrame) -> list[dict[str, Any]]:
    return [{name: _plain(value) for name, value in row.items()} for row in table.to_dict("records")]  # type: ignore[misc]


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it: None for what is not defined."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
