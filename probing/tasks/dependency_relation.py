"""Labels every word with its dependency relation to its head."""

from __future__ import annotations

from probing.tasks._columns import WordColumnTask


class DependencyRelation(WordColumnTask):
    """`dependency_relation`: the label of a word is its value in the corpus's column `deprel`, subtypes (`nsubj:pass`)
    included.
    """

    column = "deprel"


MEMBER = DependencyRelation
