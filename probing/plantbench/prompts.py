"""Lexicon, Language and Prompts: short prompts that ask about one subject word, and minimal pairs of them. Each word is
one piece (token).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from probing.errors import UnknownName, unknown_name

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Lexicon:
    """Lists W subject words, one for every combination of the levels of the factors.

    Attributes:
        factors: number of levels of each factor, in order.
        properties: factors of each labelled property; its class is the level of a single factor, or the parity of
            several with two levels each.
        identity: factors that distinguish words of equal properties.
        values: for a continuous property, the real value of each level.
    """

    factors: Mapping[str, int]
    properties: Mapping[str, tuple[str, ...]]
    identity: tuple[str, ...]
    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @cached_property
    def levels(self) -> Mapping[str, Ints]:
        """Level of every word, `(W,)`, by factor."""
        grid = np.indices(tuple(self.factors.values())).reshape(len(self.factors), -1).astype(np.int64)
        return dict(zip(self.factors, grid, strict=True))

    def __len__(self) -> int:
        return int(np.prod(list(self.factors.values())))

    def codes(self, name: str) -> Ints:
        """Return the class of every word for one property, `(W,)`, numbered from 0 to K-1.

        Raises:
            UnknownName: no such property.
        """
        if name not in self.properties:
            raise unknown_name("property", name, self.properties, error=UnknownName)
        found = [self.levels[factor] for factor in self.properties[name]]
        return found[0] if len(found) == 1 else np.sum(found, axis=0) % 2

    def signs(self, factor: str) -> NDArray[np.float64]:
        """Return +1 or -1 for every word, by its level of a factor with two levels, `(W,)`."""
        return np.asarray(2.0 * self.levels[factor] - 1, dtype=np.float64)

    def real(self, name: str) -> NDArray[np.float64]:
        """Return the real values of a continuous property for every word, `(W,)`; for another property, its class codes
        as floats.
        """
        codes = self.codes(name)
        return (
            np.asarray(self.values[name], dtype=np.float64)[codes] if name in self.values else codes.astype(np.float64)
        )

    @cached_property
    def identities(self) -> Ints:
        """Code of each word's identity, `(W,)`: the combination of its levels of the factors in `identity`."""
        sizes = tuple(self.factors[name] for name in self.identity)
        found = np.ravel_multi_index(tuple(self.levels[name] for name in self.identity), sizes)
        return np.asarray(found, dtype=np.int64)

    def partners(self, name: str) -> Ints:
        """Return, for each word, the m words that differ from it in one factor of the property and in nothing else,
        `(W, m)`.
        """
        grid = np.arange(len(self)).reshape(tuple(self.factors.values()))
        columns = []
        for factor in self.properties[name]:
            axis, size = list(self.factors).index(factor), self.factors[factor]
            columns += [np.roll(grid, -step, axis=axis).reshape(-1) for step in range(1, size)]
        return np.stack(columns, axis=1).astype(np.int64)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The words as they are written: `a1b0c1i07`."""
        widths = {name: len(str(size - 1)) for name, size in self.factors.items()}
        columns = [[f"{name}{level:0{widths[name]}d}" for level in self.levels[name].tolist()] for name in self.factors]
        return tuple("".join(parts) for parts in zip(*columns, strict=True))


SPECIAL = ("[PAD]", "[UNK]")
POSITIONS = ("subject", "query")


@dataclass(frozen=True)
class Prompts:
    """Holds N prompts.

    Attributes:
        ids: `(N, T)` piece ids.
        words: `(N,)` index of the subject in the lexicon.
        subject: `(N,)` position of the subject; the query is at the last position.
    """

    ids: Ints
    words: Ints
    subject: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: Ints | slice) -> Prompts:
        """Return the chosen rows, in the order given."""
        return Prompts(self.ids[rows], self.words[rows], self.subject[rows])

    def position(self, name: str) -> Ints:
        """Return the index of a named position in each prompt, `(N,)`."""
        return self.subject if name == "subject" else np.full(len(self), self.ids.shape[1] - 1)


@dataclass(frozen=True)
class Language:
    """Describes a language of prompts of `length` words, the last of which asks for an answer about the subject.

    Attributes:
        lexicon: lexicon of subjects.
        length: number of words T.
        answers: number of answer words.
        fillers: number of words that are not subjects; 0: all other words are subjects, and a marker precedes the one
            that is asked about.
        query: the last word of a prompt.
        weights: `(W,)` relative frequency of each word as a subject; None: all equal.
    """

    lexicon: Lexicon
    length: int
    answers: int
    fillers: int = 16
    query: str = "query"
    weights: NDArray[np.float64] | None = None

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """All pieces in order of their ids; the subjects come last."""
        marker = () if self.fillers else ("marker",)
        answers = tuple(f"answer{i:02d}" for i in range(self.answers))
        fillers = tuple(f"filler{i:02d}" for i in range(self.fillers))
        return (*SPECIAL, self.query, *marker, *answers, *fillers, *self.lexicon.names)

    @property
    def first_answer(self) -> int:
        """Id of the first answer word."""
        return len(SPECIAL) + 1 + (not self.fillers)

    @property
    def first_subject(self) -> int:
        """Id of the lexicon's first word."""
        return len(self.vocabulary) - len(self.lexicon)

    @property
    def answer_words(self) -> tuple[str, ...]:
        """The words that a model can answer with; their logits are the behaviour that is measured."""
        return self.vocabulary[self.first_answer : self.first_answer + self.answers]

    def sample(self, n: int, rng: np.random.Generator) -> Prompts:
        """Draw n prompts at random."""
        shares = None if self.weights is None else self.weights / self.weights.sum()
        words = rng.choice(len(self.lexicon), size=n, p=shares).astype(np.int64)
        earliest = 0 if self.fillers else 1
        subject = rng.integers(earliest, self.length - 1, size=n)
        ids = self._around(n, rng)
        rows = np.arange(n)
        ids[rows, subject] = self.first_subject + words
        if not self.fillers:
            ids[rows, subject - 1] = len(SPECIAL) + 1
        ids[:, -1] = len(SPECIAL)
        return Prompts(ids, words, subject)

    def _around(self, n: int, rng: np.random.Generator) -> Ints:
        size = self.fillers or len(self.lexicon)
        first = self.first_subject - self.fillers
        return rng.integers(first, first + size, size=(n, self.length))

    def pairs(self, n: int, name: str, rng: np.random.Generator) -> tuple[Prompts, Prompts]:
        """Draw n minimal pairs: the same texts, except for one property of the subject."""
        clean = self.sample(n, rng)
        return clean, self.flipped(clean, name, rng)

    def flipped(self, prompts: Prompts, name: str, rng: np.random.Generator) -> Prompts:
        """Return the prompts with another value of a property; if there are several others, one is drawn by
        frequency.
        """
        choices = self.lexicon.partners(name)[prompts.words]
        if self.weights is None:
            chosen = rng.integers(choices.shape[1], size=len(prompts))
        else:
            upper = np.cumsum(self.weights[choices], axis=1)
            chosen = ((1 - rng.random(len(prompts)))[:, None] * upper[:, -1:] > upper).sum(1)
        words = choices[np.arange(len(choices)), chosen]
        ids = prompts.ids.copy()
        ids[np.arange(len(ids)), prompts.subject] = self.first_subject + words
        return Prompts(ids, words, prompts.subject)

    def texts(self, prompts: Prompts) -> list[str]:
        """Return the prompts as texts: their words, separated by spaces."""
        return [" ".join(self.vocabulary[i] for i in row) for row in prompts.ids.tolist()]

    def spans(self, prompts: Prompts) -> list[dict[str, tuple[int, int]]]:
        """Return, for each prompt, the half-open character span of each named position."""
        lengths = np.array([len(word) for word in self.vocabulary])[prompts.ids]
        starts = np.cumsum(lengths + 1, axis=1) - lengths - 1
        rows = np.arange(len(prompts))
        found = []
        for name in POSITIONS:
            at = prompts.position(name)
            first = starts[rows, at]
            found.append(np.stack([first, first + lengths[rows, at]], axis=1).tolist())
        return [dict(zip(POSITIONS, ((a, b), (c, d)), strict=True)) for (a, b), (c, d) in zip(*found, strict=True)]
