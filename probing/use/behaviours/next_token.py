"""Measures the next-token logits of a causal language model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

from probing.contracts.behaviour import Behaviour, Ints, Outputs, Readout, Texts
from probing.results.use import Answers
from probing.use.behaviours._answers import as_text, centred, ids_of, measured, parsed, reduced


class NextToken(Behaviour):
    """Measures the logits of the next token: those of the answers minus their mean or, without answers, those of the
    whole vocabulary, weighted so that squared changes approximate a KL divergence.

    Without answers, what is measured is y = diag(√p̄)(I − 1p̄ᵀ) logits, with p̄ the mean prediction of the unedited
    model, so that ½|Δy|² ≈ KL in nats and rare tokens weigh little. If the vocabulary has more than 256 tokens, y is
    projected onto at most 256 directions: its leading principal components over the rows of the experiment, and the
    differences between the means of the classes of the property that is tested.

    Args:
        answers: two or more answers of one token each, as a list or as `yes|no`, written with the space that precedes
            them in the text: for most tokenizers ` yes` and `yes` are different tokens. `was/is|were/are` joins tokens
            with the same meaning into one answer, whose logit is the log of their summed exponentials. In an option
            written as text, `\\,` is a comma and `\\|` a vertical bar inside an answer. None means the whole
            vocabulary.
        position: where logits are read: `end`, the last token that is not special; `word`; or a named position, of
            which the last token is read.
    """

    source: ClassVar[Literal["logits", "output", "states"]] = "logits"

    def __init__(self, *, answers: Sequence[str] | str | None = None, position: str = "end") -> None:
        """Store the options; the class describes them.

        Raises:
            BadParameter: there is only one answer, or an answer is given twice.
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
