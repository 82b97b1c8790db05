"""Labels every sentence with its number of words."""

from __future__ import annotations

from typing import Any

from probing.contracts.task import Task
from probing.errors import DegenerateDesign
from probing.labels import Kind
from probing.tasks._columns import refuse_argument
from probing.text.corpus import Corpus, Example


class SentenceLength(Task):
    """`sentence_length`: the label is the number of words of the sentence, with punctuation, as the corpus splits it
    into words.
    """

    level = "sentence"
    kind: Kind = "real"

    def prepare(self, corpus: Corpus) -> None:
        """Check that the corpus has words.

        Raises:
            DegenerateDesign: no example has words.
        """
        refuse_argument(self)
        if not any(example.words for example in corpus.examples):
            raise DegenerateDesign("no example has words", needed="words", found="none", where=corpus.source)

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the number of words of the sentence."""
        return (float(len(example.words)),)


MEMBER = SentenceLength
