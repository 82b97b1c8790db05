"""Matches rows of imported arrays with a corpus: finds the example and the word of each row, or reports the mismatch. A
*piece* is a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from probing.errors import AlignmentError, BadParameter, CorpusError
from probing.text.corpus import Corpus, Example

Ints = NDArray[np.int64]
INDEX_COLUMNS = ("offset", "example", "word", "char_start", "char_end", "piece_start", "piece_end")
NOT_IN_SOURCE = "not_in_source"
_OCCURRENCE = re.compile(r" \(Occurrence [0-9]+\)")


@dataclass(frozen=True)
class Sentence:
    """Holds the entries of a file about one sentence.

    Attributes:
        example: ordinal of the sentence.
        n_rows: number of its rows.
        words: its words, if the file lists them.
        text: its text, if the file has it: the source text, or the words joined by spaces.
    """

    example: int
    n_rows: int
    words: tuple[str, ...] | None = None
    text: str | None = None


@dataclass(frozen=True)
class MatchedRows:
    """Holds R imported rows, matched with the E examples of a corpus.

    Attributes:
        scope: kind of rows: `word`, `sentence` or `piece`.
        offset: `(E+1,)` rows of example e are `offset[e]:offset[e+1]`.
        columns: row columns of the store by name, each `(R,)`.
        missing: (example, word, reason) of words without a row.
        skipped: (example, reason) of examples without rows.
    """

    scope: str
    offset: Ints
    columns: Mapping[str, Ints]
    missing: tuple[tuple[int, int, str], ...]
    skipped: tuple[tuple[int, str], ...]


def match_rows(
    corpus: Corpus, n_rows: int, columns: Mapping[str, Ints], sentences: Sequence[Sentence], scope: str | None
) -> MatchedRows:
    """Match every row with an example and a word, and return the matched rows.

    Matching uses the index that the file has: sentences with their words; columns `example` and `word`; a column
    `offset` (rows of example e are offset[e] to offset[e+1]), optionally with `word`. Otherwise rows must follow the
    corpus word by word, or sentence by sentence.

    Args:
        corpus: the corpus that the states belong to.
        n_rows: number of rows R.
        columns: the index columns of the file, some of `INDEX_COLUMNS`.
        sentences: the entries of the file about each sentence; empty if it has none.
        scope: `word`, `sentence` or `piece`; None: inferred.

    Raises:
        CorpusError: the number of sentences or rows differs from that of the corpus.
        AlignmentError: a sentence has other words; the message names it.
        BadParameter: index columns contradict each other, or the scope cannot be inferred.
    """
    for name, values in columns.items():
        if name != "offset" and len(values) != n_rows:
            _refuse_columns(f"{n_rows} values of {name}, one for each row", str(len(values)))
    if sentences:
        counts = _counts_of(sentences, corpus, scope)
    elif "example" in columns:
        counts = _counts_by_example(columns["example"], corpus)
    elif "offset" in columns:
        counts = _counts_by_offset(columns["offset"], corpus, n_rows)
    else:
        counts = _counts_by_order(corpus, n_rows, scope)
    if int(counts.sum()) != n_rows:
        _refuse_columns(f"{int(counts.sum())} rows, as the sentences say", f"{n_rows} rows")
    example = np.repeat(np.arange(len(corpus)), counts)
    scope = scope or _scope(corpus, counts, columns.get("word"))
    word = _words(corpus, counts, example, columns.get("word"), scope)
    missing, skipped = _left_out(corpus, counts, example, word, scope)
    offset = np.concatenate([[0], np.cumsum(counts)])
    return MatchedRows(scope, offset, _row_columns(corpus, example, word, columns), missing, skipped)


def _counts_of(sentences: Sequence[Sentence], corpus: Corpus, scope: str | None) -> Ints:
    found = [sentence.example for sentence in sentences]
    if found != list(range(len(corpus))):
        first = next((e for e, f in enumerate(found) if e != f or e >= len(corpus)), len(found))
        named = f"sentence {corpus.examples[first].id}" if first < len(corpus) else f"sentence number {first}"
        raise CorpusError(
            "the file has other sentences than the corpus",
            needed=f"{len(corpus)} sentences, in the corpus's order",
            found=f"{len(found)}; they part at {named}",
            where=named,
            next_step=_SAME_CORPUS,
        )
    for sentence, example in zip(sentences, corpus.examples, strict=True):
        _check_sentence(sentence, example, scope)
    return np.array([sentence.n_rows for sentence in sentences], dtype=np.int64)


def _check_sentence(sentence: Sentence, example: Example, scope: str | None) -> None:
    forms = example.forms
    if sentence.words is not None and scope in (None, "word"):
        for number, (theirs, ours) in enumerate(zip(sentence.words, forms, strict=False), start=1):
            if theirs != ours:
                _refuse_words(example, f"word {number}: {ours!r}", repr(theirs))
    if sentence.text is not None:
        own = (" ".join(forms), example.text)
        if sentence.text not in own and _OCCURRENCE.sub("", sentence.text) not in own:
            _refuse_words(example, repr(own[0])[:200], repr(sentence.text)[:200])
    if scope in (None, "word") and sentence.n_rows != len(forms) and (scope == "word" or sentence.n_rows != 1):
        _refuse_words(example, f"{len(forms)} words", f"{sentence.n_rows} rows")


def _counts_by_example(example: Ints, corpus: Corpus) -> Ints:
    if len(example) and (int(example.min()) < 0 or int(example.max()) >= len(corpus)):
        raise CorpusError(
            "the file has rows of sentences that the corpus has not",
            needed=f"0 to {len(corpus) - 1}",
            found=f"{example.min()} to {example.max()}",
            where=corpus.source,
            next_step=_SAME_CORPUS,
        )
    if (np.diff(example) < 0).any():
        _refuse_columns("rows in the order of the corpus", "a column `example` that falls")
    return np.bincount(example, minlength=len(corpus))


def _counts_by_offset(offset: Ints, corpus: Corpus, n_rows: int) -> Ints:
    if len(offset) != len(corpus) + 1:
        raise CorpusError(
            "the file has another number of sentences than the corpus",
            needed=f"{len(corpus)} sentences",
            found=f"{len(offset) - 1}",
            where=corpus.source,
            next_step=_SAME_CORPUS,
        )
    counts: Ints = np.diff(offset)
    if offset[0] != 0 or offset[-1] != n_rows or (counts < 0).any():
        _refuse_columns(f"an offset from 0 to {n_rows} that never falls", f"{offset[0]} to {offset[-1]}")
    return counts


def _counts_by_order(corpus: Corpus, n_rows: int, scope: str | None) -> Ints:
    words = np.array([len(example.words) for example in corpus.examples], dtype=np.int64)
    ones = np.ones(len(corpus), dtype=np.int64)
    fitting = {name: c for name, c in (("word", words), ("sentence", ones)) if c.sum() == n_rows}
    if scope is not None:
        fitting = {name: counts for name, counts in fitting.items() if name == scope}
    if not fitting:
        raise CorpusError(
            "the rows do not fit the corpus",
            needed=f"{words.sum()} rows, one for each word, or {len(corpus)}, one for each sentence",
            found=f"{n_rows} rows",
            where=corpus.source,
            next_step="give the corpus the states were made from, or add a column `offset` or columns `example` and "
            "`word` that say which row is what",
        )
    return next(iter(fitting.values()))


def _scope(corpus: Corpus, counts: Ints, word: Ints | None) -> str:
    sizes = np.array([len(example.words) for example in corpus.examples], dtype=np.int64)
    if word is not None:
        return "sentence" if (word == -1).all() and (counts <= 1).all() else "word"
    if np.array_equal(counts, sizes):
        return "word"
    if (counts == 1).all():
        return "sentence"
    return _refuse_counts(corpus, counts)


def _refuse_counts(corpus: Corpus, counts: Ints) -> NoReturn:
    at = next(e for e, example in enumerate(corpus.examples) if counts[e] != len(example.words))
    _refuse_words(corpus.examples[at], f"{len(corpus.examples[at].words)} words", f"{counts[at]} rows")


def _words(corpus: Corpus, counts: Ints, example: Ints, word: Ints | None, scope: str) -> Ints:
    sizes = np.array([len(e.words) for e in corpus.examples], dtype=np.int64)
    if scope == "sentence":
        if (counts > 1).any():
            at = corpus.examples[int(np.argmax(counts > 1))]
            _refuse_words(at, "one row for a sentence", f"{counts.max()} rows")
        return np.full(len(example), -1, dtype=np.int64)
    if word is None:
        if scope == "piece" or not np.array_equal(counts, sizes):
            _refuse_columns("a column `word`", "none") if scope == "piece" else _refuse_counts(corpus, counts)
        return np.arange(len(example)) - np.repeat(np.cumsum(counts) - counts, counts)
    lowest = -1 if scope == "piece" else 0
    for row in np.flatnonzero((word < lowest) | (word >= sizes[example]))[:1]:
        at = corpus.examples[int(example[row])]
        _refuse_words(at, f"words {lowest} to {len(at.words) - 1}", f"word {word[row]}")
    again = (np.diff(example) == 0) & (np.diff(word) <= 0)
    for row in np.flatnonzero(again)[:1] if scope == "word" else ():
        _refuse_words(
            corpus.examples[int(example[row])],
            "one row for a word, in order; else --rows piece",
            f"word {word[row + 1]} after word {word[row]}",
        )
    return np.asarray(word, dtype=np.int64)


def _left_out(
    corpus: Corpus, counts: Ints, example: Ints, word: Ints, scope: str
) -> tuple[tuple[tuple[int, int, str], ...], tuple[tuple[int, str], ...]]:
    skipped = tuple((int(e), NOT_IN_SOURCE) for e in np.flatnonzero(counts == 0))
    if scope == "sentence":
        return (), skipped
    present = set(zip(example.tolist(), word.tolist(), strict=True))
    missing = []
    for e in np.flatnonzero(counts).tolist():
        spans = corpus.examples[e].words
        for w, span in enumerate(spans):
            owner = spans.index(span) if scope == "piece" else w  # words of one span share its pieces
            if (e, owner) not in present:
                missing.append((e, w, NOT_IN_SOURCE))
    return tuple(missing), skipped


def _row_columns(corpus: Corpus, example: Ints, word: Ints, columns: Mapping[str, Ints]) -> dict[str, Ints]:
    """Return all row columns of a store; characters from the corpus, and pieces 0 to 0 where the file does not give
    them.
    """
    spans = np.array([span for e in corpus.examples for span in e.words], dtype=np.int64).reshape(-1, 2)
    sizes = np.array([len(e.words) for e in corpus.examples], dtype=np.int64)
    whole = np.array([(0, len(e.text)) for e in corpus.examples], dtype=np.int64).reshape(-1, 2)[example]
    at = (np.cumsum(sizes) - sizes)[example] + word
    own = np.where(word[:, None] >= 0, spans[np.where(word >= 0, at, 0)] if len(spans) else 0, whole)
    zero = np.zeros(len(example), dtype=np.int64)
    default = {"char_start": own[:, 0], "char_end": own[:, 1], "piece_start": zero, "piece_end": zero}
    given = {name: np.asarray(columns.get(name, values)) for name, values in default.items()}
    for name, values in given.items():
        if len(values) and (int(values.min()) < 0 or int(values.max()) >= 1 << 32):
            _refuse_columns(f"{name} from 0 up", f"{values.min()} to {values.max()}")
    return {"example": example, "word": word, **given}


_SAME_CORPUS = "give the corpus the states were made from, in the same order"


def _refuse_words(example: Example, needed: str, found: str) -> NoReturn:
    raise AlignmentError(
        "a sentence of the file is not that of the corpus",
        needed=needed,
        found=found,
        where=f"sentence {example.id}",
        next_step=_SAME_CORPUS,
    )


def _refuse_columns(needed: str, found: str) -> NoReturn:
    raise BadParameter("the file's columns contradict each other", needed=needed, found=found)


def scope_of(rows: str | None) -> str | None:
    """Return the scope in a `rows` option such as `word:mean`; None if none was given.

    Raises:
        BadParameter: the scope is unknown.
    """
    scope: Any = None if rows is None else rows.partition(":")[0]
    if scope not in (None, "word", "sentence", "piece"):
        raise BadParameter("unknown rows", needed="word, sentence or piece, perhaps with a pooling", found=repr(rows))
    return str(scope) if scope else None
