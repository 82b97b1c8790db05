"""Labels every word with its universal part of speech."""

from __future__ import annotations

from probing.tasks._columns import WordColumnTask


class Upos(WordColumnTask):
    """`upos`: the label of a word is its value in the corpus's column `upos`."""

    column = "upos"


MEMBER = Upos
