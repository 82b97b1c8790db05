"""Labels every word that has a morphological feature with the feature's value: `feature:Number`."""

from __future__ import annotations

from probing.errors import BadParameter, unknown_name
from probing.tasks._columns import WordColumnTask, require_column
from probing.text.corpus import Corpus

_PREFIX = "feature:"


class Feature(WordColumnTask):
    """`feature:<Name>`: the labels are the values of a morphological feature; words without the feature are
    left out.
    """

    def __init__(self, argument: str = "") -> None:
        super().__init__(argument)
        self.column = _PREFIX + argument

    def prepare(self, corpus: Corpus) -> None:
        """Check that some word has the feature.

        Raises:
            BadParameter: the task is `feature` without a name.
            UnknownName: the corpus has no column for a feature of this name; the message names the nearest and lists
                all.
            DegenerateDesign: there is such a column, but no word has a value in it.
        """
        known = [name.removeprefix(_PREFIX) for name in corpus.column_names() if name.startswith(_PREFIX)]
        if not self.argument:
            raise BadParameter(
                "which feature?",
                needed="feature:NAME",
                found="feature",
                where=corpus.source,
                next_step="features here: " + (", ".join(sorted(known)) or "none"),
            )
        if self.argument not in known:
            raise unknown_name("feature", self.argument, known, where=corpus.source)
        require_column(corpus, self.column, "word")


MEMBER = Feature
