"""Next-piece logits of a causal model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

from probing.contracts.behaviour import Behaviour, Ints, Outputs, Readout, Texts
from probing.results.use import Answers
from probing.use.behaviours._answers import as_text, centred, ids_of, measured, parsed, reduced


class NextToken(Behaviour):
    """The logits of the next piece: those of answers minus their mean, or of the whole vocabulary in units of nats.

    Without answers, y is diag(√p̄)(I − 1p̄ᵀ) logits with p̄ the mean clean prediction, so that ½|Δy|² ≈ KL and rare
    pieces weigh little; if there are more than 256 alternatives, y is its leading components.
    """

    source: ClassVar[Literal["logits", "output", "states"]] = "logits"

    def __init__(self, *, answers: Sequence[str] | str | None = None, position: str = "end") -> None:
        """Choose the answers and where they are read.

        Args:
            answers: two or more, one piece each, also as `yes|no`, written to the space as they follow the text: ` yes|
                no` is other pieces than `yes|no` for most tokenizers. `was/is|were/are` puts pieces together that mean
                the same: the logit of an answer is then that of any of them. None: the whole vocabulary. In the text of
                a recipe `\\,` is a comma, and `\\|` a stroke.
            position: where it is read: `end`, the last piece that is not special, `word`, or a named position (of a
                span its last piece).

        Raises:
            BadParameter: only one answer, or one twice.
        """
        self._answers = parsed(answers)
        self.answers = as_text(self._answers)  # equal answers are equal recipes, however they were given
        self.position = position

    @property
    def are_logits(self) -> bool:
        return bool(self._answers)

    def answer_pieces(self, tokenizer: Any) -> Answers:
        return measured(tokenizer, self._answers)

    def pieces(self, texts: Texts) -> Ints | None:
        return texts.last_of(self.position)

    def check(self, tokenizer: Any) -> Behaviour:
        ids_of(tokenizer, self._answers)
        return self

    def fit(self, texts: Texts, clean: Callable[[], Iterable[Outputs]]) -> Readout:
        return centred(ids_of(texts.tokenizer, self._answers)) if self._answers else reduced(texts, clean)


MEMBER = NextToken
