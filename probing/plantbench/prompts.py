"""Language, Prompts: short prompts about one subject word, minimal pairs of them, and their rows for a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from probing.plantbench.lexicon import Ints, Lexicon

SPECIAL = ("[PAD]", "[UNK]")
POSITIONS = ("subject", "query")


@dataclass(frozen=True)
class Prompts:
    """A set of N prompts.

    Attributes:
        ids: `(N, T)` piece ids.
        words: `(N,)` the subject's word in the lexicon.
        subject: `(N,)` its position; the query is the last one.
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
        """Return where a named position is in each prompt, `(N,)`."""
        return self.subject if name == "subject" else np.full(len(self), self.ids.shape[1] - 1)


@dataclass(frozen=True)
class Language:
    """A language of prompts: `length` words, the last of which asks for an answer about the subject.

    Attributes:
        lexicon: of subjects.
        length: T.
        answers: how many answer words there are.
        fillers: words that are no subjects; 0: the other words are subjects too, and a marker precedes the one meant.
        query: the last word.
        weights: `(W,)` how often each word is a subject, in any unit; None: equally often.
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
        """The words that the behaviour is about."""
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
        """Return the prompts with another value of a property; where there are several, it is drawn by their
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
        """Return the prompts as words and spaces."""
        return [" ".join(self.vocabulary[i] for i in row) for row in prompts.ids.tolist()]

    def spans(self, prompts: Prompts) -> list[dict[str, tuple[int, int]]]:
        """Return half-open character spans of the named positions of each prompt."""
        lengths = np.array([len(word) for word in self.vocabulary])[prompts.ids]
        starts = np.cumsum(lengths + 1, axis=1) - lengths - 1
        rows = np.arange(len(prompts))
        found = []
        for name in POSITIONS:
            at = prompts.position(name)
            first = starts[rows, at]
            found.append(np.stack([first, first + lengths[rows, at]], axis=1).tolist())
        return [dict(zip(POSITIONS, ((a, b), (c, d)), strict=True)) for (a, b), (c, d) in zip(*found, strict=True)]
