"""Matches saved requests of a server with the examples of a corpus, and their pieces (tokens) with rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.errors import AlignmentError, BadParameter, CorpusError
from probing.text.alignment import piece_rows
from probing.text.corpus import Corpus

Ints = NDArray[np.int64]
POOLED = ("sentence:last", "sentence:mean")


@dataclass(frozen=True)
class Pooled:
    """Presents states `(P, D)` of pieces as R rows of means, computed on access.

    Attributes:
        states: states of all pieces.
        first, end: `(R,)` bounds: row r is the mean of the pieces `first[r]` … `end[r] - 1`.
    """

    states: Any
    first: Ints
    end: Ints

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the rows, `(R, D)`."""
        return len(self.first), int(self.states.shape[1])

    def __len__(self) -> int:
        return len(self.first)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Return the rows of a slice, float32."""
        first, end = self.first[rows], self.end[rows]
        if (end - first == 1).all():
            return np.asarray(self.states[first], np.float32)
        parts = [self.states[a:b].mean(axis=0, dtype=np.float64) for a, b in zip(first, end, strict=True)]
        return np.array(parts, np.float32).reshape(len(first), self.shape[1])


@dataclass(frozen=True)
class RequestRows:
    """Describes the rows that are made of saved requests.

    Attributes:
        scope: `piece` or `sentence`.
        index: index columns of the rows, as `match_rows` takes them.
        first, end: `(R,)` bounds of the pieces, counted over all requests, that each row is pooled from.
    """

    scope: str
    index: Mapping[str, Ints]
    first: Ints
    end: Ints


def request_rows(
    sizes: Sequence[int], ids: Ints | None, corpus: Corpus, rows: str | None, tokenizer: str | None, where: str
) -> RequestRows:
    """Return the rows of requests. With a tokenizer they are pieces: each request belongs to the example whose piece
    ids it has, or begins with, in any order of requests. Without one they are sentences, and requests follow the
    corpus.

    Args:
        sizes: number of pieces of each request, in the order of their files' names.
        ids: ids of all pieces; None: the files have none.
        corpus: the corpus.
        rows: `piece`, `sentence:last` or `sentence:mean`; None: pieces.
        tokenizer: folder or cached hub name of the tokenizer that made the ids.
        where: the source, for messages.

    Raises:
        BadParameter: these rows cannot be made: pieces need a tokenizer and ids, sentences need no tokenizer.
        AlignmentError: an example has no request with its pieces; the message names it.
        CorpusError: there are more or fewer requests than examples.
    """
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    if ids is not None and len(ids) != starts[-1]:
        raise BadParameter(
            "not as many piece ids as pieces", needed=f"{starts[-1]:,}", found=f"{len(ids):,}", where=where
        )
    if tokenizer is None:
        if rows not in POOLED:
            raise BadParameter(
                "pieces need the tokenizer that made them, to know which characters each is",
                needed=f"--tokenizer DIR (Python: tokenizer=), or --rows {' or '.join(POOLED)}",
                found=f"rows {rows}" if rows else "neither",
                where=where,
                next_step="name the model's folder as the tokenizer; probes can then read words, sentences or pieces",
            )
        if len(sizes) != len(corpus):
            raise CorpusError(
                "there are not as many requests as sentences",
                needed=f"{len(corpus):,} requests, in the corpus's order",
                found=f"{len(sizes):,}",
                where=where,
                next_step="give --tokenizer, by which requests are matched with texts, or the same corpus",
            )
        end = starts[1:]
        first = end - 1 if rows == "sentence:last" else starts[:-1]
        return RequestRows("sentence", {"example": np.arange(len(corpus))}, first, end)
    if rows not in (None, "piece") or ids is None:
        raise BadParameter(
            "with a tokenizer, rows are pieces whose ids are known",
            needed="--rows piece, and files with token_ids",
            found=f"rows {rows}" if ids is not None else "files without token_ids",
            where=where,
            next_step="leave --rows out: pieces are pooled when they are trained on (train --rows word:mean)",
        )
    inputs = import_module("probing.models.batching").encoded(_tokenizer(tokenizer), [e.text for e in corpus])
    request = _matched([one.ids for one in inputs], ids, starts, corpus, where)
    found = piece_rows([e.text for e in corpus], [e.words for e in corpus], inputs)
    first = starts[request[found.example]] + found.piece[:, 0]
    names = ("piece_start", "piece_end", "char_start", "char_end")
    spans = (found.piece[:, 0], found.piece[:, 1], found.char[:, 0], found.char[:, 1])
    index = {"example": found.example, "word": found.word, **dict(zip(names, spans, strict=True))}
    return RequestRows("piece", index, first, first + 1)


def _tokenizer(name: str) -> Any:
    """Load a tokenizer from this machine."""
    loading = import_module("probing.models.loading.pretrained")
    try:
        found = import_module("transformers").AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise BadParameter(
            "no such tokenizer on this machine",
            needed="a folder with tokenizer.json",
            found=str(error)[:200],
            where=name,
        ) from None
    loading.check_tokenizer(found, name)
    return found


def _matched(pieces: Sequence[Ints], ids: Ints, starts: Ints, corpus: Corpus, where: str) -> Ints:
    """Return the request of each example: that with the same pieces, or with these before further ones."""
    free: dict[bytes, list[int]] = {}
    for request in range(len(starts) - 1, -1, -1)[1:]:
        free.setdefault(ids[starts[request] : starts[request + 1]].tobytes(), []).append(request)
    found = []
    for example, one in enumerate(pieces):
        same = free.get(one.tobytes())
        if not same:  # a request that went on to generate has further pieces
            longer = (key for key, left in free.items() if left and key.startswith(one.tobytes()))
            same = free.get(next(longer, b"")) if len(one) else None
        if not same:
            raise AlignmentError(
                "no request has the pieces of a sentence",
                needed=f"piece ids {one[:8].tolist()} …, {len(one)} of them",
                found=f"{len(starts) - 1:,} requests, none of them like it",
                where=f"{where}, sentence {corpus[example].id}",
                next_step="give the tokenizer, and the texts (a chat template included), that the requests had",
            )
        found.append(same.pop())
    return np.array(found, dtype=np.int64)
