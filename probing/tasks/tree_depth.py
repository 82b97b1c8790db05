"""Labels every word with its depth in the dependency tree."""

from __future__ import annotations

from typing import Any

from probing.contracts.task import Task
from probing.labels import Kind
from probing.tasks._columns import refuse_argument, require_column
from probing.text.corpus import Corpus, Example


class TreeDepth(Task):
    """`tree_depth`: the label is the number of arcs from a word up to the root, 0 for the root itself.

    References:
        Hewitt & Manning 2019, section 2 (parse depth norm).
    """

    level = "word"
    kind: Kind = "real"

    def prepare(self, corpus: Corpus) -> None:
        """Check that every sentence is a tree.

        Raises:
            UnknownName: the corpus has no column `head` with a value for each word.
            DegenerateDesign: there is a column `head`, but all its values are missing.
            CorpusError: heads are out of range or form a circle; the message names the sentence.
        """
        refuse_argument(self)
        require_column(corpus, "head", "word")
        for example in corpus.examples:
            _ = example.depths

    def labels(self, example: Example) -> tuple[Any, ...]:
        """Return the depth of every word; None if a head on its way up is missing."""
        if "head" not in example.word_columns:
            return (None,) * len(example.words)
        return tuple([None if depth is None else float(depth) for depth in example.depths])


MEMBER = TreeDepth
