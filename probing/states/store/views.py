"""Views of a store (arrays by site name, a DataFrame, a data set of PyTorch), and warnings of tokens unknown to the
tokenizer, of inputs that were cut, and of spans that are read as means of tokens. A *piece* is a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, DoubtfulData, ProvenanceMismatch, warn_user
from probing.models.site import select_sites
from probing.text.alignment import Encoded
from probing.text.corpus import Corpus, Example

if TYPE_CHECKING:
    import pandas as pd

    from probing.states.store.reader import Store

Ints = NDArray[np.int64]
MOST_UNKNOWN = 0.01


@dataclass(frozen=True, eq=False)
class RowTable:
    """Says for each of R rows of a store which token, word or sentence it is the state of, in int64 arrays `(R,)`.

    Attributes:
        example: index of the example in the corpus.
        word: index of the word in that example; -1 if the row belongs to no word.
        piece_start, piece_end: half-open span of the row's tokens in the model's input.
        char_start, char_end: half-open span of the row in code points of the text.
        position: index into the store's position names; None if rows are not positions.
        input_id: for a replay store, the vocabulary id of the token; None for other stores.
        position_id: for a replay store, the position number that the model was given; -1 if it was given none.
        mask: for a replay store, the attention mask of the token (0 at padding).
    """

    example: NDArray[np.int64]
    word: NDArray[np.int64]
    piece_start: NDArray[np.int64]
    piece_end: NDArray[np.int64]
    char_start: NDArray[np.int64]
    char_end: NDArray[np.int64]
    position: NDArray[np.int64] | None = None
    input_id: NDArray[np.int64] | None = None
    position_id: NDArray[np.int64] | None = None
    mask: NDArray[np.int64] | None = None


class Sites(tuple[str, ...]):
    """Lists the names of a store's sites in site order; `sites["resid.3"]` reads the states there, `(R, D)` float32."""

    _read: Callable[[str], NDArray[np.float32]]

    def __new__(cls, names: Iterable[str], read: Callable[[str], NDArray[np.float32]]) -> Sites:
        """Keep the names, and the function that reads the states of one."""
        made = super().__new__(cls, names)
        made._read = read
        return made

    @overload  # type: ignore[override]
    def __getitem__(self, key: str) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[str, ...]: ...
    def __getitem__(self, key: str | int | slice) -> Any:
        """Return the states of a site by its name, or a name by its place.

        Raises:
            UnknownSite: the store has no such site; the message names the nearest.
        """
        return self._read(key) if isinstance(key, str) else super().__getitem__(key)

    def __reduce__(self) -> tuple[type[tuple[str, ...]], tuple[tuple[str, ...]]]:
        """Go to another process as the names alone."""
        return tuple, (tuple(self),)


def to_dataframe(store: Store, sites: str | Sequence[str], corpus: Corpus | None, rows: Ints | None) -> pd.DataFrame:
    """Return a store's rows as a DataFrame; see `Store.to_dataframe`."""
    import pandas as pd

    chosen = select_sites(sites, store.sites)
    columns: dict[str, Any] = {name: getattr(store.rows, name) for name in store.row_columns}
    if rows is not None:
        columns = {name: values[rows] for name, values in columns.items()}
    if store.position_names:
        columns["position"] = np.array(store.position_names, dtype=object)[columns["position"]]
    if corpus is not None:
        refuse_other_corpus(store, corpus)
        columns |= _of_corpus(corpus, columns["example"].tolist(), columns["word"].tolist(), tuple(columns))
    frames = [pd.DataFrame(columns)]
    for site in chosen:
        states = store.read(site, rows)
        frames.append(pd.DataFrame(states, columns=[f"{site}[{i}]" for i in range(states.shape[1])]))
    return pd.concat(frames, axis=1)


def _of_corpus(corpus: Corpus, example: list[int], word: list[int], taken: Sequence[str]) -> dict[str, list[Any]]:
    """Return what a corpus says of each row, by column: a label's name has `column:` before it where it is taken."""
    found: dict[str, list[Any]] = {
        "id": [corpus[e].id for e in example],
        "text": [corpus[e].text for e in example],
        "group": [corpus.unit_names[e] for e in example],
        "split": [corpus[e].split for e in example],
    }
    if any(w >= 0 for w in word):
        found["form"] = [_form(corpus[e], w) for e, w in zip(example, word, strict=True)]
    for name, level in corpus.column_names().items():
        shown = f"column:{name}" if name in (*taken, *found) else name
        if level == "sentence":
            found[shown] = [corpus[e].columns.get(name) for e in example]
        else:
            found[shown] = [_label(corpus[e], name, w) for e, w in zip(example, word, strict=True)]
    return found


def _form(example: Example, word: int) -> str | None:
    return example.text[slice(*example.words[word])] if word >= 0 else None


def _label(example: Example, column: str, word: int) -> Any:
    labels = example.word_columns.get(column)
    return labels[word] if labels is not None and word >= 0 else None


def refuse_other_corpus(store: Store, corpus: Corpus) -> None:
    """Refuse a corpus that a store's states were not made from.

    Raises:
        ProvenanceMismatch: the fingerprints differ.
    """
    recorded = store.identity["corpus"]["fingerprint"]
    if recorded != corpus.fingerprint:
        raise ProvenanceMismatch(
            "the states of this store were made from another corpus",
            needed=f"corpus {recorded[:12]}…",
            found=f"corpus {corpus.fingerprint[:12]}… from {corpus.source}",
            where=str(getattr(store, "path", "")),
            next_step="give the files the store was extracted from, in the same order, or extract again",
        )


def _numbers(y: Any) -> Any:
    """Return labels as an array of numbers that may be written to, as PyTorch wants it."""
    values = np.array(y)
    if values.dtype.kind not in "biufc":
        raise BadParameter(
            "labels that are no numbers",
            needed="a number for each row",
            found=f"values of type {values.dtype}",
            next_step="count the classes: np.unique(labels, return_inverse=True)[1]",
        )
    return values


def torch_dataset(store: Store, site: str, y: Any, rows: Ints | None) -> Any:
    """Return the states at a site as a data set of PyTorch; see `Store.torch_dataset`."""
    import torch
    from torch.utils.data import Dataset

    store.width(site)  # refuses an unknown site before the first row is read
    chosen = np.arange(store.n_rows) if rows is None else np.asarray(rows, dtype=np.int64)
    labels = None if y is None else torch.as_tensor(_numbers(y))
    if labels is not None and len(labels) != len(chosen):
        raise BadParameter("labels do not fit the rows", needed=f"{len(chosen):,}", found=f"{len(labels):,}")

    class StoreRows(Dataset[Any]):
        """States of a site, read from the store when they are asked for, a batch at once."""

        def __len__(self) -> int:
            return len(chosen)

        def __getitem__(self, index: int) -> Any:
            return self.__getitems__([range(len(chosen))[index]])[0]

        def __getitems__(self, indices: list[int]) -> list[Any]:
            states = torch.from_numpy(store.read(site, chosen[indices]))
            return list(states) if labels is None else list(zip(states, labels[indices], strict=True))

    return StoreRows()


def unknown_pieces_warning(share: float | None) -> str:
    """Return a warning that a share of the pieces is unknown to the tokenizer; an empty string if the share is at most
    `MOST_UNKNOWN` or None.
    """
    if share is None or share <= MOST_UNKNOWN:
        return ""
    return (
        f"{100 * share:.0f} % of the pieces of these texts are unknown to the model's tokenizer: words behind the "
        "same unknown piece look the same to the model. Use a model whose vocabulary has these words "
        "(and check upper and lower case)."
    )


def cut_inputs_warning(count: int, limit: int | None) -> str:
    """Return a warning that inputs are longer than the model reads at once and were cut; an empty string if none was.

    Args:
        count: number of inputs that were cut.
        limit: largest number of tokens of an input.
    """
    if not count:
        return ""
    inputs = "1 input was" if count == 1 else f"{count:,} inputs were"
    return (
        f"{inputs} cut{cut_at(limit)}: the model did not read what follows. The last token of these rows (of `last`, "
        "`end`) is not that of the text, means lack its end, and baselines read the whole text. To read all of it: "
        "--long-inputs window, or shorter texts; skip leaves such inputs out."
    )


def cut_at(limit: int | None) -> str:
    """Return where inputs were cut, such as ` at 128 tokens`; an empty string if the limit is not known."""
    return "" if limit is None else f" at {limit:,} token{'s' * (limit != 1)}"


def count_unknown(encoded: Iterable[Encoded], unknown_id: int | None) -> Ints:
    """Return, for each of N texts, the number of its tokens that are the tokenizer's unknown token, and of all (special
    ones not counted), `(N, 2)`. `unknown_id` is the id of that token; None: the tokenizer has none.
    """
    plain = [one.ids[~one.special] for one in encoded]
    return np.array(
        [(0 if unknown_id is None else int((ids == unknown_id).sum()), len(ids)) for ids in plain], np.int64
    )


def warn_of_unknown(counts: Ints) -> bool:
    """Warn the user if more than `MOST_UNKNOWN` of the tokens of texts are unknown, and return whether they are.
    `counts` is what `count_unknown` returned.
    """
    unknown, all_tokens = counts.reshape(-1, 2).sum(0).tolist()
    sentence = unknown_pieces_warning(unknown / all_tokens if all_tokens else None)
    if sentence:
        warn_user(sentence, DoubtfulData)
    return bool(sentence)


def whole_spans_warning(names: Sequence[str], position: Ints, sizes: Ints) -> str:
    """Return a warning that names the positions of a store whose states are means of several pieces; empty if there is
    none.

    Args:
        names: names of the positions.
        position: `(R,)` index of each row's position in `names`.
        sizes: `(R,)` number of pieces of each row.
    """
    several = [name for k, name in enumerate(names) if (sizes[position == k] > 1).any()]
    if not several:
        return ""
    last = ", ".join(f"{name}.last" for name in several)
    return f"{', '.join(several)}: whole spans, the mean of their pieces; one piece of each is {last}."
