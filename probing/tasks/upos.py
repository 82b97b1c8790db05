"""Labels every word with its universal part of speech."""

from __future__ import annotations

from probing.tasks._columns import WordColumnTask


class Upos(WordColumnTask):
    """`upos`: the labels are the word column `upos`."""

    column = "upos"


MEMBER = Upos
