"""Answers as pieces of the vocabulary; not a character of an answer is stripped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from probing.contracts.behaviour import Outputs, Readout
from probing.errors import BadParameter, NoBehaviour
from probing.recipes import escaped, parts_of
from probing.results.use import Answers

SEPARATOR = "|"
ALIKE = "/"
_BLOCK = "\N{LOWER ONE EIGHTH BLOCK}"  # the space of SentencePiece


def parsed(answers: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return answers given as a sequence, or as `yes|no` (a stroke inside an answer is `\\|`); empty: none were given.

    Raises:
        BadParameter: only one, or one twice.
    """
    found = tuple(parts_of(answers, SEPARATOR) if isinstance(answers, str) else answers or ())
    if found and (len(found) < 2 or len(set(found)) < len(found)):
        raise BadParameter(
            "answers are compared with each other",
            needed="two or more different ones",
            found=", ".join(map(repr, found)),
        )
    return found


def as_text(answers: Sequence[str]) -> str | None:
    """Return the text that `parsed` reads as these answers; None for None."""
    return SEPARATOR.join(escaped(answer, SEPARATOR) for answer in answers) or None


def measured(tokenizer: Any, answers: Sequence[str]) -> Answers:
    """Return, for each answer, the id and the text of its pieces."""
    return tuple(tuple((piece, piece_text(tokenizer, piece)) for piece in ids) for ids in ids_of(tokenizer, answers))


def piece_text(tokenizer: Any, piece: int) -> str:
    """Return what a piece stands for in a text, with the space it begins with; its name where it is no whole
    character.
    """
    name = str(tokenizer.convert_ids_to_tokens(piece))
    if _BLOCK in name:
        return name.replace(_BLOCK, " ")  # decoding one piece by itself would drop it
    text = str(tokenizer.decode([piece], clean_up_tokenization_spaces=False))
    return name if "\N{REPLACEMENT CHARACTER}" in text or not text else text


def ids_of(tokenizer: Any, answers: Sequence[str]) -> list[list[int]]:
    """Return the vocabulary ids of each answer: one id, as it is written, or those of `was/is`, one answer of two
    pieces.

    Raises:
        NoBehaviour: an answer that the vocabulary does not have, or that is cut in several pieces.
    """
    found = [_ids(tokenizer, answer) for answer in answers]
    every = [piece for ids in found for piece in ids]
    if len(set(every)) < len(every):
        raise NoBehaviour("two answers are one piece", needed="different pieces", found=", ".join(map(repr, answers)))
    return found


def _ids(tokenizer: Any, answer: str) -> list[int]:
    whole = _pieces(tokenizer, answer)
    if ALIKE in answer and not _is_one(tokenizer, whole):
        return [_one(tokenizer, part, _pieces(tokenizer, part)) for part in answer.split(ALIKE)]
    return [_one(tokenizer, answer, whole)]


def _pieces(tokenizer: Any, answer: str) -> list[int]:
    return [int(piece) for piece in tokenizer(answer, add_special_tokens=False)["input_ids"]]


def _is_one(tokenizer: Any, ids: Sequence[int]) -> bool:
    return len(ids) == 1 and ids[0] != getattr(tokenizer, "unk_token_id", None)


def _one(tokenizer: Any, answer: str, ids: Sequence[int]) -> int:
    if not _is_one(tokenizer, ids):
        unknown, pieces = getattr(tokenizer, "unk_token_id", None), tokenizer.convert_ids_to_tokens(list(ids))
        raise NoBehaviour(
            f"the answer {answer!r} is no single piece",
            needed="answers that are one piece each",
            found="a piece that the vocabulary lacks" if unknown in ids else f"{len(ids)} pieces {pieces}",
            next_step="write it as it follows the text, such as ' yes' with its space, or choose another",
        )
    return ids[0]


def centred(ids: Sequence[Sequence[int]]) -> Readout:
    """Return a readout of the logits of the answers less their mean; an answer of several pieces has the logit of any:
    log Σ exp.
    """
    alone = all(len(one) == 1 for one in ids)

    def read(outputs: Outputs) -> torch.Tensor:
        where = [torch.tensor(one, device=outputs.values.device) for one in ids]
        if alone:
            chosen = outputs.values[:, torch.cat(where)].float()
        else:
            chosen = torch.stack([outputs.values[:, one].float().logsumexp(1) for one in where], dim=1)
        return chosen - chosen.mean(1, keepdim=True)

    return read
