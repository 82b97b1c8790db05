"""Labels every word with its language-specific part of speech."""

from __future__ import annotations

from probing.tasks._columns import WordColumnTask


class Xpos(WordColumnTask):
    """`xpos`: the label of a word is its value in the corpus's column `xpos`."""

    column = "xpos"


MEMBER = Xpos
