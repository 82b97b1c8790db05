"""Defines `Behaviour`, the base class of behaviours, and `Readout`. A behaviour is the part of a model's output that is
measured. A piece is a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from probing.errors import unknown_name
from probing.results.use import Answers
from probing.text.alignment import Encoded

Ints = NDArray[np.int64]
WORD = "word"


@dataclass(frozen=True, eq=False)
class Texts:
    """Holds N rows (words or whole texts) as a model reads them; several rows may come from one example.

    Attributes:
        tokenizer: the model's tokenizer.
        encoded: the tokenised examples.
        example: `(N,)` for each row, the index of its example in `encoded`.
        pieces: by name of a position, N arrays with the indices of the tokens that it covers in each row; where rows
            are words, the only name is "".
        labels: by name of a label column, `(N,)` class codes.
    """

    tokenizer: Any
    encoded: tuple[Encoded, ...]
    example: Ints
    pieces: Mapping[str, tuple[Ints, ...]]
    labels: Mapping[str, Ints] = field(default_factory=dict)

    def last_of(self, position: str) -> Ints:
        """Return, for each row, the index of the last token at a position, `(N,)`. For the position `end` it is the
        last token of the text that is not special.

        Raises:
            UnknownName: there is no such position.
        """
        name = "" if position == WORD and WORD not in self.pieces else position
        if name == "end" and name not in self.pieces:
            return np.array([_last_of_text(self.encoded[e]) for e in self.example], dtype=np.int64)
        if name not in self.pieces:
            raise unknown_name("position", position, [*self.pieces, "end"])
        return np.array([pieces[-1] for pieces in self.pieces[name]], dtype=np.int64)


def _last_of_text(one: Encoded) -> int:
    content = np.flatnonzero(~one.special)
    return int(content[-1]) if len(content) else len(one) - 1


@dataclass(frozen=True, eq=False)
class Outputs:
    """Holds the outputs of a model for a batch of B rows, padded to T tokens.

    Attributes:
        values: `(B, V)` logits at one token, or the output of a sequence head; or `(B, T, D)` final states, 0 at
            padding.
        content: `(B, T)` bool, true at tokens that are neither padding nor special.
        real: `(B, T)` bool, true at tokens that are not padding.
    """

    values: Tensor
    content: Tensor
    real: Tensor


Readout = Callable[[Outputs], Tensor]
"""The behaviour `(B, V)` of B rows, differentiable in the outputs."""


class Behaviour(ABC):
    """Base class of behaviours: each defines which part of the model's output is measured, as a vector for each row (a
    sentence or word). Before `fit`, an object holds only its options. Each behaviour is one file of `behaviours/`,
    which names its class as `MEMBER`.

    Class attributes:
        source: which output it reads: `logits` at one token, the `output` of a sequence head, or the final `states`.
    """

    source: ClassVar[Literal["logits", "output", "states"]]

    @property
    def are_logits(self) -> bool:
        """Whether the behaviour consists of logits, so that its softmax gives probabilities."""
        return False

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the behaviour reads. Results record their content, so that a changed file leads to a new
        measurement.
        """
        return ()

    def answer_pieces(self, tokenizer: Any) -> Answers:
        """Return, for each answer, the tokens whose logits are measured, as pairs (vocabulary id, text); an empty tuple
        for a behaviour that does not consist of logits of single tokens. `tokenizer` is the model's.

        Raises:
            NoBehaviour: the model cannot give one of the answers.
        """
        return ()

    def pieces(self, texts: Texts) -> Ints | None:
        """Return, for each row, the index of the token whose logits are read, `(N,)`; None if `source` is not `logits`.
        `texts` are the rows.

        Raises:
            NoBehaviour: a row has no such token.
        """
        return None

    def check(self, tokenizer: Any) -> Behaviour:
        """Check, as far as is possible before the model runs, that the model can show the behaviour; return the
        behaviour.

        Args:
            tokenizer: the model's tokenizer.

        Raises:
            NoBehaviour: the model cannot give one of the answers.
        """
        return self

    @abstractmethod
    def fit(self, texts: Texts, clean: Callable[[], Iterable[Outputs]]) -> Readout:
        """Fit the behaviour on the rows and return a `Readout`, a function that is called with each batch of outputs
        and returns the measured values; `self` is never changed.

        Args:
            texts: the rows.
            clean: a function that runs the unedited model and yields its outputs batch by batch, all rows in order;
                each call runs the model again.

        Raises:
            NoBehaviour: there is nothing to measure.
        """
