"""Measures the logits of a masked language model at its mask token."""

from __future__ import annotations

import numpy as np

from probing.contracts.behaviour import Ints, Texts
from probing.errors import NoBehaviour
from probing.use.behaviours.next_token import NextToken


class MaskedToken(NextToken):
    """Measures logits at the mask token of each text: those of the answers minus their mean or, without answers, those
    of the whole vocabulary, weighted as in `next_token`.

    Args:
        answers: two or more answers of one token each, as a list or as `yes|no`; None means the whole vocabulary.
        position: where logits are read: `mask`, the only mask token of the text, or a named position (for texts with
            several mask tokens).
    """

    def __init__(self, *, answers: str | list[str] | tuple[str, ...] | None = None, position: str = "mask") -> None:
        """Store the options; the class describes them.

        Raises:
            BadParameter: there is only one answer, or an answer is given twice.
        """
        super().__init__(answers=answers, position=position)

    def pieces(self, texts: Texts) -> Ints | None:
        if self.position != "mask" or "mask" in texts.pieces:
            return texts.last_of(self.position)
        mask = texts.tokenizer.mask_token_id
        found = [np.flatnonzero(texts.encoded[e].ids == mask) for e in texts.example]
        for row, pieces in enumerate(found):
            if mask is None or len(pieces) != 1:
                raise NoBehaviour(
                    "a text has not one mask piece",
                    needed="one mask piece, or a named position",
                    found="a tokenizer without a mask piece" if mask is None else f"{len(pieces)} of them",
                    where=f"row {row}",
                    next_step="use next_token, or another model"
                    if mask is None
                    else f"put {texts.tokenizer.mask_token} into the text, or give position=NAME",
                )
        return np.array([pieces[0] for pieces in found], dtype=np.int64)


MEMBER = MaskedToken
