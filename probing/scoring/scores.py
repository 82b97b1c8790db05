"""Defines `TextScores`, which holds the scores that a probe gives to texts, their words and their tokens, and writes
them as JSON lines, Parquet or HTML. Records and options call tokens "pieces".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from probing.errors import BadParameter, CorpusError
from probing.files.whole_files import write_atomically
from probing.labels import Pieces
from probing.models.language_model import LanguageModel
from probing.scoring.recipe import Recipe
from probing.states.extraction.shard_reading import ReadingOptions, read_shard
from probing.states.store import RowTable, ShardContent
from probing.states.store.format import widen
from probing.states.store.views import count_unknown
from probing.text.chat import ChatTemplate
from probing.text.corpus import Corpus, Example
from probing.training.pooling import PooledStore, with_rows

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".jsonl", ".parquet", ".html")
_POOLED = ("sentence:first", "sentence:last", "sentence:mean", "sentence:max")


@dataclass(frozen=True)
class RowScore:
    """Holds the score of one row: a text, a word or a token.

    Attributes:
        start, end: half-open span of the row in code points of the text.
        word: index of the word in the text, -1 if the row is not a word.
        score: natural log odds of the scored label, or the predicted number.
        label: the most probable label; "" for a number.
        probabilities: probability of each label as the probe predicts it; empty for a number.
        is_flagged: whether the score is above the threshold of the probe; None if the probe has no threshold.
    """

    start: int
    end: int
    word: int
    score: float
    label: str
    probabilities: Mapping[str, float]
    is_flagged: bool | None = None


@dataclass(frozen=True)
class TextScore:
    """Holds the scores of one text.

    Attributes:
        id: id of the example.
        text: text of the example.
        role: role of the chat message that contains the text, such as `user`; "" outside a chat.
        rows: a score for the text, or for each of its words if the probe reads words.
        pieces: a score for each token of the text, if tokens are scored.
        is_cut: whether tokens of the text were cut off at the length limit.
        n_pieces: number of its tokens, without special ones.
        n_unknown: number of these that the tokenizer does not know.
    """

    id: str
    text: str
    rows: tuple[RowScore, ...]
    pieces: tuple[RowScore, ...] = ()
    role: str = ""
    is_cut: bool = False
    n_pieces: int = 0
    n_unknown: int = 0

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one dict for each row, and then one for each token."""
        for kind, found in (("row", self.rows), ("piece", self.pieces)):
            for one in found:
                yield {
                    "id": self.id,
                    "kind": kind,
                    "text": self.text[one.start : one.end] if kind == "piece" or one.word >= 0 else self.text,
                    "start": one.start,
                    "end": one.end,
                    "word": one.word,
                    "score": one.score,
                    "label": one.label,
                    "flagged": one.is_flagged,
                    "role": self.role,
                    "cut": self.is_cut,
                    "unknown_pieces": self.n_unknown / self.n_pieces if self.n_pieces else 0.0,
                    "probabilities": dict(one.probabilities),
                }


class TextScores(Sequence[TextScore]):
    """Holds the scores that one probe gives to texts, in the order of the texts.

    Attributes:
        recipe: a description of how the scores were made: how states were read and pooled, the probe, the scored label
            and the threshold.
        model: name of the model.
    """

    def __init__(self, recipe: Recipe, model: str, texts: Iterable[TextScore]) -> None:
        self.recipe, self.model = recipe, model
        self._texts = tuple(texts)

    @overload
    def __getitem__(self, index: int) -> TextScore: ...
    @overload
    def __getitem__(self, index: slice) -> TextScores: ...
    def __getitem__(self, index: int | slice) -> TextScore | TextScores:
        if isinstance(index, slice):
            return TextScores(self.recipe, self.model, self._texts[index])
        return self._texts[index]

    def __len__(self) -> int:
        return len(self._texts)

    def __repr__(self) -> str:
        flagged = [row.is_flagged for text in self for row in text.rows if row.is_flagged is not None]
        said = f", {sum(flagged)} of {len(flagged)} rows flagged" if flagged else ""
        return f"TextScores({len(self)} texts, {self.recipe.name}, log odds of {self.recipe.label or 'the best'}{said})"

    @property
    def unknown_pieces(self) -> NDArray[np.int64]:
        """Number of tokens that the tokenizer does not know, and number of all tokens, of each text: `(N, 2)`."""
        return np.array([(text.n_unknown, text.n_pieces) for text in self], np.int64).reshape(-1, 2)

    @property
    def scores(self) -> NDArray[np.float64]:
        """Scores of all N rows (texts, or words), `(N,)`."""
        return np.array([row.score for text in self for row in text.rows], np.float64)

    def records(self) -> list[dict[str, Any]]:
        """Return one record (a dict) for each row, and for each token if tokens were scored; it contains the label
        whose score it is (`scored`) and any remarks.
        """
        remarks = {"remarks": "; ".join(self.recipe.remarks)} if self.recipe.remarks else {}
        scored: dict[str, Any] = {"scored": self.recipe.label}
        if self.recipe.threshold is not None:
            scored |= {"threshold": self.recipe.threshold.value, "flagged_for": self.recipe.threshold.label}
        return [record | scored | remarks for text in self for record in text.records()]

    def json_lines(self) -> str:
        """Return the records as text, one line of JSON per record."""
        return "".join(json.dumps(record, sort_keys=True, ensure_ascii=False) + "\n" for record in self.records())

    def table(self) -> pd.DataFrame:
        """Return the records as a DataFrame; the probability of each label is in a column `p(LABEL)`."""
        frame = import_module("pandas").DataFrame
        flat: pd.DataFrame = frame(
            [
                {name: value for name, value in record.items() if name != "probabilities"}
                | {f"p({label})": p for label, p in record["probabilities"].items()}
                for record in self.records()
            ]
        )
        return flat.astype({"flagged": "boolean"}) if len(flat) else flat

    def write(self, file: str | Path) -> Path:
        """Write the scores as NAME.jsonl, NAME.parquet or NAME.html, and return the path.

        Raises:
            BadParameter: the file name has another ending.
        """
        path = Path(file)
        check_suffix(path)
        if path.suffix == ".parquet":
            import_module("probing.files.whole_files").write_parquet(self.table(), path)
        else:
            write_atomically(path, (self.json_lines() if path.suffix == ".jsonl" else self.page()).encode())
        return path

    def page(self) -> str:
        """Return one self-contained HTML page in which tokens (or texts, if tokens were not scored) are coloured by
        score.
        """
        made: str = import_module("probing.scoring.page").page(self)
        return made

    def _repr_html_(self) -> str:
        shown: str = import_module("probing.scoring.page").fragment(self)
        return shown


def check_suffix(path: Path) -> None:
    """Check that the name of a file of scores has a known ending.

    Raises:
        BadParameter: the name does not end in .jsonl, .parquet or .html.
    """
    if path.suffix not in SUFFIXES:
        raise BadParameter(
            "scores are not written into such a file",
            needed="a name that ends in .jsonl, .parquet or .html",
            found=str(path),
        )


class FreshStates:
    """Presents the states of texts that were just read as a store in memory, so that rows can be pooled as from a
    store.

    Attributes:
        identity, rows, path and all others: attributes that a `Store` has under the same names.
    """

    store_id = content_id = ""
    path = "the texts given"
    shards = (0,)
    environment: Mapping[str, Any] = {}
    inputs: Mapping[int, tuple[int, str]] = {}
    unknown_pieces: float | None = None
    cut_inputs: NDArray[np.int64] = np.empty(0, np.int64)  # none is asked about here
    max_length: int | None = None

    def __init__(self, content: ShardContent, reading: ReadingOptions) -> None:
        columns = {name: np.asarray(column, np.int64) for name, column in content.rows.items()}
        self.rows = RowTable(**columns)
        self.identity = {"extraction": reading.identity()}
        self.sites, self.missing_words = reading.sites, list(content.missing_words)
        self.position_names = tuple(position.name for position in reading.positions)
        self._content, self._dtype = content, reading.dtype

    def width(self, site: str) -> int:
        """Return the number of features at a site."""
        return int(self._content.sites[site].shape[1])

    def read(self, site: str, rows: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Return the states `(N, D)` at a site of the rows with these numbers (None: all), as float32, rounded as in a
        store of this dtype.
        """
        stored = self._content.sites[site]
        return widen(stored if rows is None else stored[rows], self._dtype)

    def dataset(self, shard: int, path: str) -> NDArray[Any]:
        """Return a column of the examples, such as `/examples/flags`; `shard` has no effect."""
        return self._content.examples[path.rpartition("/")[2]]


def check_texts(model: LanguageModel, corpus: Corpus, recipe: Recipe, *, pieces: bool) -> None:
    """Check that every text has tokens, and words if the probe scores words. `recipe` describes how the probe reads
    texts; `pieces` says whether tokens are scored, too.

    Raises:
        CorpusError: a text has no tokens; the message names it.
        BadParameter: the probe scores words, and texts are not divided into words.
    """
    if recipe.reading.chat:
        ChatTemplate(model.tokenizer, model.name)
    bare = [example.id for example in corpus.examples if not example.text.strip()]
    if not bare and not recipe.reading.chat:
        encoded = model.encode([example.text for example in corpus.examples])
        bare = [e.id for e, one in zip(corpus.examples, encoded, strict=True) if one.special.all()]
    if bare:
        raise CorpusError(
            "a text has no pieces",
            needed="a text with at least one piece",
            found="none",
            where=f"sentence {bare[0]}",
            next_step="leave it out",
        )
    of_words = recipe.rows.partition(":")[0] == "word"
    if of_words and not pieces and any(not example.words for example in corpus.examples):
        raise BadParameter(
            "this probe scores words, and these texts are not divided into words",
            needed="a corpus with words (CoNLL-U, or JSON lines with `words`)",
            found="plain texts",
            where=recipe.name,
            next_step="give a corpus with words, or score every piece (pieces, --pieces)",
        )


def score_corpus(model: LanguageModel, corpus: Corpus, recipe: Recipe, *, pieces: bool) -> list[TextScore]:
    """Read the texts of a corpus as in training, which `recipe` describes, and return their scores; with `pieces`,
    those of their tokens, too.
    """
    of_words = recipe.rows.partition(":")[0] == "word"
    with model.many_states(recipe.reading.sites) as lanes:

        def read(reading: ReadingOptions) -> FreshStates:
            return FreshStates(read_shard(model, corpus.examples, 0, reading, lanes), reading)

        by_piece = read(recipe.of_pieces) if pieces else None
        rows: Any = None
        if by_piece is not None and recipe.rows in _POOLED:
            own, rows = by_piece, PooledStore(by_piece, corpus, recipe.rows)  # type: ignore[arg-type]
        elif by_piece is not None and of_words and not all(example.words for example in corpus.examples):
            own = by_piece
        else:
            own = read(recipe.reading)
            rows = with_rows(own, corpus, recipe.pooled or None, recipe.rows.partition(":")[0])
    found: list[list[RowScore]] = [[] for _ in corpus.examples]
    single: list[list[RowScore]] = [[] for _ in corpus.examples]
    if rows is not None and len(rows.rows.example):
        _put(found, rows.rows, _states(rows, recipe), recipe, whole=not of_words)
    if by_piece is not None and len(by_piece.rows.example):
        states = by_piece.read(recipe.site)
        _put(single, by_piece.rows, Pieces.of_rows(states) if recipe.probe.input == "pieces" else states, recipe)
    flags, known = own.dataset(0, "/examples/flags").tolist(), _unknown(model, corpus, recipe).tolist()
    return [
        TextScore(example.id, example.text, tuple(a), tuple(b), _role(example, recipe), bool(flag & 2), n, unknown)
        for example, a, b, flag, (unknown, n) in zip(corpus.examples, found, single, flags, known, strict=True)
    ]


def _unknown(model: LanguageModel, corpus: Corpus, recipe: Recipe) -> NDArray[np.int64]:
    """Return the number of unknown tokens of each text, and of all its tokens, `(N, 2)`."""
    if recipe.reading.chat:
        encoded = ChatTemplate(model.tokenizer, model.name).encode(corpus.examples)
    else:
        encoded = model.encode([example.text for example in corpus.examples])
    return count_unknown(encoded, model.tokenizer.unk_token_id)


def _states(rows: Any, recipe: Recipe) -> Any:
    every = np.arange(len(rows.rows.example))
    return rows.pieces(recipe.site, every) if recipe.probe.input == "pieces" else rows.read(recipe.site, every)


def _put(to: list[list[RowScore]], table: Any, states: Any, recipe: Recipe, *, whole: bool = False) -> None:
    """Append the scores of rows to the lists of their examples."""
    scores, labels, logs = recipe.scored(states)
    flags = None if recipe.threshold is None else recipe.threshold.flags(scores)
    probabilities = np.exp(logs)
    names = ("example", "char_start", "char_end", "word")
    columns = zip(*(getattr(table, name).tolist() for name in names), strict=True)
    for n, (example, start, end, word) in enumerate(columns):
        to[example].append(
            RowScore(
                start,
                end,
                -1 if whole else word,
                float(scores[n]),
                labels[n],
                dict(zip(recipe.labels, probabilities[n].tolist(), strict=False)),
                None if flags is None else bool(flags[n]),
            )
        )


def _role(example: Example, recipe: Recipe) -> str:
    if not recipe.reading.chat:
        return ""
    return next((role for role, content in example.messages if example.text in content), "user")
