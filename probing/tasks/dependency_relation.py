"""Labels every word with its dependency relation to its head."""

from __future__ import annotations

from probing.tasks._columns import WordColumnTask


class DependencyRelation(WordColumnTask):
    """`dependency_relation`: the labels are the word column `deprel`, with its subtypes (`nsubj:pass`)."""

    column = "deprel"


MEMBER = DependencyRelation
