"""Answers as they are measured, and those whose twin with, or without, a space before it is far likelier."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probing.contracts.behaviour import Outputs
from probing.results.use import Answers, visible

FAR = math.log(10)
_MARKS = ("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}", "\N{LOWER ONE EIGHTH BLOCK}")  # spaces of BPE and SentencePiece


@dataclass(frozen=True)
class Twin:
    """A piece of an answer, and the piece that differs from it by a space at the beginning alone."""

    piece: int
    text: str
    twin: int
    twin_text: str


def twins_of(tokenizer: Any, answers: Answers) -> tuple[Twin, ...]:
    """Return the twins that the vocabulary has and that are no pieces of the answers themselves."""
    given = {piece for answer in answers for piece, _ in answer}
    found = []
    for piece, text in (one for answer in answers for one in answer):
        name = str(tokenizer.convert_ids_to_tokens(piece))
        marked = next((mark for mark in _MARKS if name.startswith(mark)), "")
        for other in [name.removeprefix(marked)] if marked else [mark + name for mark in _MARKS]:
            twin = tokenizer.convert_tokens_to_ids(other) if other else None
            # For a name that the vocabulary lacks some tokenizers give the unknown piece.
            if isinstance(twin, int) and tokenizer.convert_ids_to_tokens(twin) == other and twin not in given:
                found.append(Twin(piece, text, twin, text.removeprefix(" ") if marked else " " + text))
    return tuple(found)


class TwinWatch:
    """Compares answers with their twins in clean outputs, batch by batch.

    Attributes:
        answers: of the behaviour, as measured.
    """

    def __init__(self, tokenizer: Any, answers: Answers) -> None:
        self.answers = answers
        self._twins = twins_of(tokenizer, answers)
        self._sums: NDArray[np.float64] = np.zeros(len(self._twins))
        self._rows = 0

    def see(self, outputs: Outputs) -> None:
        """Add the logits `(B, V)` of B rows: their differences are those of log-probabilities.

        A piece that the tokenizer has and the model gives no logit of is no twin.
        """
        if not self._rows:
            self._twins = tuple(twin for twin in self._twins if twin.twin < outputs.values.shape[-1])
            self._sums = np.zeros(len(self._twins))
        if self._twins:
            ids = [[twin.piece for twin in self._twins], [twin.twin for twin in self._twins]]
            own, other = (outputs.values[:, one].double() for one in ids)
            self._sums += (other - own).sum(0).cpu().numpy()
            self._rows += len(outputs.values)

    def doubts(self) -> tuple[str, ...]:
        """Return a sentence for each answer whose twin is more than ten times as likely, in the mean of
        log-probabilities.
        """
        means = self._sums / max(self._rows, 1)
        return tuple(_sentence(twin, float(mean)) for twin, mean in zip(self._twins, means, strict=True) if mean > FAR)


def _sentence(twin: Twin, apart: float) -> str:
    times = f"{math.exp(apart):,.0f}" if apart < math.log(1e6) else f"10^{apart / math.log(10):.0f}"
    differs = "with a space before it" if len(twin.twin_text) > len(twin.text) else "without the space before it"
    return (
        f"the answer '{visible(twin.text)}' is hardly what the model says here: '{visible(twin.twin_text)}', the same "
        f"{differs}, is {times} times as likely; spaces in answers count, so write it as it follows the text"
    )
